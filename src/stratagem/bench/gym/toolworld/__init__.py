"""Worlds of tools: questions that only calls of tools can answer, each with its gold plan."""

from stratagem.bench.gym.toolworld.skill import ToolWorld

__all__ = ["ToolWorld"]
