"""Tournament: n sampled answers meet in a knock-out; a wins over b if (P(a | a, b) + P(a | b, a)) / 2 >= 1/2.

P is a judging model's probability, by one token, that the better of two answers is the one named; each pair is
shown in both orders, since judges prefer a position. Sources: Zheng et al. 2023 (arXiv 2306.05685) for pairwise
judging and its position bias; the knock-out is that of Liu et al. 2025 (2501.13007, PairJudge RM), of n - 1
matches.

The draw is fixed by the order of sampling, and a match begins the moment its two players are known, while others
are still being decoded or judged. Two players with the same answer need no judge: the first goes on, as in a tie.
Where the budget gave fewer samples, the players without an opponent go on. Confidence is that of the closest match
of the winning answer.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import UnsupportedError
from stratagem.core.run import JUDGE, Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._sampler import Sampler

Player = tuple[Candidate, float | None]  # with the least probability by which it has won a match, if it has


class Tournament(Sampler):
    """Knock-out by pairwise judgements in both orders. Cost: n completions and at most 2 (n - 1) judgements."""

    kind: ClassVar[str] = "tournament"

    n: int = parameter(8, "Samples.", ge=1, search=(2, 64))
    question: str = parameter(
        "Which of the two answers is better? Reply with A or B alone.", "Asked of the judge.", min_length=1
    )

    async def __call__(self, task: Task, run: Run) -> Answer:
        judge = await run.model(JUDGE).capabilities()
        if judge.logprobs < 1 and not judge.prompt_logprobs:
            raise UnsupportedError(
                f"{judge.model} gives no log-probabilities, by which {self.kind} compares answers.",
                remedy="Use a backend that does, as the judge.",
            )
        loop = asyncio.get_running_loop()
        players: list[asyncio.Future[Candidate | None]] = [loop.create_future() for _ in range(self.n)]
        drawn: dict[int, Candidate] = {}
        most = 0  # samples that the best so far stands for

        def propose(player: Player, size: int) -> None:
            nonlocal most
            if size > most:
                most = size
                best, closest = player
                run.propose(Answer.of(best, tuple(drawn[i] for i in sorted(drawn)), closest))

        async def arrive(index: int, candidate: Candidate) -> Candidate:
            drawn[index] = candidate
            players[index].set_result(candidate)
            propose((candidate, None), 1)
            return candidate

        async def play(span: range) -> Player | None:
            """The winner of these samples."""
            if len(span) == 1:
                candidate = await players[span.start]
                return None if candidate is None else (candidate, None)
            middle = (span.start + span.stop) // 2
            a, b = await run.map(play, (range(span.start, middle), range(middle, span.stop)))
            if a is None or b is None:
                return a or b
            winner = await self._match(task, run, a, b)
            propose(winner, len(span))
            return winner

        async with task_group() as group:
            playing = group.create_task(play(range(self.n)))
            request = run.request(self.prompt(task), self.n, sampling=self.sampling())
            await run.draw(request, task=task, then=arrive)
            for player in players:
                if not player.done():
                    player.set_result(None)
        winner = playing.result()
        assert winner is not None  # draw gives one at least
        return run.propose(Answer.of(winner[0], tuple(drawn[i] for i in sorted(drawn)), winner[1]))

    async def _match(self, task: Task, run: Run, a: Player, b: Player) -> Player:
        known = [closest for _, closest in (a, b) if closest is not None]
        if a[0].answer is not None and a[0].answer == b[0].answer:
            return a[0], min(known, default=None)

        async def first_wins(pair: tuple[Candidate, Candidate]) -> float:
            shown = f"Answer A:\n{pair[0].text}\n\nAnswer B:\n{pair[1].text}\n\n{self.question}"
            return (await run.choose(task.ask(shown), ("A", "B")))["A"]

        one, other = await run.map(first_wins, ((a[0], b[0]), (b[0], a[0])))
        (winner, closest), p = (a, one - other) if one >= other else (b, other - one)
        return winner, min((1 + p) / 2, 1.0 if closest is None else closest)
