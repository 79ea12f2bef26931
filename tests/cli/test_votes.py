"""The table of votes counts as the strategy has counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from subprocess import CompletedProcess

import pytest
from rich.console import Console

import stratagem as sg
from stratagem._cli.votes import votes
from stratagem.testing.server import SimCompletion, SimRequest, SimulatedServer

Cli = Callable[..., CompletedProcess[str]]


def rows(answers: Sequence[str | None], chosen: str | None, equality: sg.Verifier | None = None) -> list[str]:
    """The lines of the table below its head, spaces and bars aside."""
    console = Console(width=200, color_system=None)
    candidates = [sg.Candidate(text=a or "?", answer=a, finish="stop", token_count=1) for a in answers]
    with console.capture() as capture:
        console.print(votes(candidates, chosen, equality))
    return [" ".join(line.replace("━", "").split()) for line in capture.get().splitlines()[1:]]


def test_by_text() -> None:
    answers = ["3", "1/2", None, "0.5", " 3 ", "3", "0.5"]
    assert rows(answers, "0.5") == ["0.5 2", "3 3", "1/2 1", "no answer 1"]
    assert rows(answers, None) == ["no answer 1", "3 3", "0.5 2", "1/2 1"]
    assert rows(list("abcdefgh"), "h") == ["h 1", "a 1", "b 1", "c 1", "d 1", "e 1", "2 more 2"]


def test_by_the_equality_of_the_strategy() -> None:
    answers = ["3", "1/2", None, "0.5", "3", "3", "50%", "0.5"]
    assert rows(answers, "0.5", sg.Math()) == ["0.5 = 1/2 = 50% 4", "3 3", "no answer 1"]
    assert rows(answers, "3", sg.Math()) == ["3 3", "1/2 = 0.5 = 50% 4", "no answer 1"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("-s", "self_consistency", "--set", "equality=math"), ["0.5 = 1/2 4", "3 2"]),
        (("-s", "weighted_vote", "--set", "equality=math"), ["1/2 = 0.5 4", "3 2"]),  # its heaviest
        (("-s", "self_consistency"), ["0.5 2", "3 2", "1/2 2"]),
    ],
)
def test_the_command_shows_the_groups_that_were_counted(
    cli: Cli, settings: tuple[str, ...], expected: list[str]
) -> None:
    said = ["0.5", "3", "1/2", "0.5", "3", "1/2"]
    first: list[int] = []

    def responder(request: SimRequest) -> list[SimCompletion]:
        assert request.seed is not None
        first.append(request.seed)
        start = request.seed - min(first)
        return [SimCompletion(f"The answer is {said[start + i]}.") for i in range(request.n)]

    async def main() -> None:
        async with SimulatedServer(responder=responder) as server:
            asked = ("solve", "What is 1 / 2?", "--base-url", server.url, "--set", "n=6")
            done = await asyncio.to_thread(cli, *asked, *settings)
            assert done.returncode == 0, done.stderr
            lines = [" ".join(line.replace("━", "").split()) for line in done.stdout.splitlines()]
            head = lines.index("answer votes")
            assert lines[head + 1 : head + 1 + len(expected)] == expected

    asyncio.run(main())
