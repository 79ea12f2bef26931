"""Reward model: r(x, y) in [0, 1] by a model that was trained to give it; of steps, agg_k r(x, steps 1..k).

Sources: Cobbe et al. 2021 (arXiv 2110.14168) for the reward of an answer; Lightman et al. 2023 (2305.20050) for
that of its steps, with the aggregations of `step_judge`. A reward trained on comparisons is a logit: its sigmoid is
the probability that the answer beats one of reward 0 (Bradley and Terry 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from stratagem.core.asking import REWARD
from stratagem.core.backend import Message
from stratagem.core.component import parameter
from stratagem.core.errors import ConfigurationError
from stratagem.core.protocols import Verdict, Verifier
from stratagem.core.rewards import Aggregate, aggregated
from stratagem.core.run import Run
from stratagem.core.task import Candidate, Task
from stratagem.verifiers.step_judge import step_ends

_Prompt = tuple[Message, ...]


class RewardModel(Verifier):
    """The run's reward model rewards the answer, or the partial answer up to each of its steps."""

    kind: ClassVar[str] = "reward_model"

    aggregate: Aggregate = parameter(
        "last",
        "last: the reward of the whole answer; else those of its steps as one.",
        search=("min", "product", "last", "mean"),
    )
    role: str = parameter(REWARD, "The role that the reward model plays in the run.", min_length=1)

    async def check(self, run: Run) -> None:
        """Raises ConfigurationError where no reward model plays the role."""
        if not (await run.model(self.role).capabilities()).reward:
            raise ConfigurationError(
                f"No reward model plays the role {self.role!r}.",
                remedy=f"Give one: models={{{self.role!r}: stratagem.backends.vllm.pooling.PoolingBackend(url)}}.",
            )

    async def __call__(self, task: Task, candidates: Sequence[Candidate], run: Run) -> list[Verdict]:
        """One verdict per candidate. What has the same prompt is asked as one call, each text once.

        Raises:
            ConfigurationError: no reward model plays the role.
        """
        if candidates:
            await self.check(run)
        prompts = [candidate.prompt or task.messages for candidate in candidates]
        partials = [self._partials(candidate.text) for candidate in candidates]
        texts: dict[_Prompt, dict[str, None]] = {}
        for prompt, partial in zip(prompts, partials, strict=True):
            texts.setdefault(prompt, {}).update(dict.fromkeys(partial))

        async def rewarded(prompt: _Prompt) -> dict[str, float]:
            asked = list(texts[prompt])
            scores = (await run.score(prompt, asked, role=self.role)).scores if asked else ()
            logs = [math.fsum(entry.logprob for entry in entries) for entries in scores]
            return dict(zip(asked, map(math.exp, logs), strict=True))

        found = dict(zip(texts, await run.map(rewarded, texts), strict=True))
        verdicts: list[Verdict] = []
        for prompt, partial in zip(prompts, partials, strict=True):
            rewards = [found[prompt][text] for text in partial]
            verdicts.append(
                Verdict(aggregated(self.aggregate, rewards)) if rewards else Verdict(None, "no steps")
            )
        return verdicts

    def newest(self) -> Verifier:
        return self.model_copy(update={"aggregate": "last"})

    def _partials(self, text: str) -> list[str]:
        ends = step_ends(text)
        return [text[:end] for end in (ends[-1:] if self.aggregate == "last" else ends)]
