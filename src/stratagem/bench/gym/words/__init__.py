"""Multi-step word problems in varied English."""

from stratagem.bench.gym.words.skill import Words

__all__ = ["Words"]
