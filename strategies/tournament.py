"""Tournament: n sampled answers meet in pairs; a beats b if (P(a | a, b) + P(a | b, a)) / 2 >= 1/2.

P is a judging model's probability, by one token, that the better of two answers is the one named; each pair is
shown in both orders, since judges prefer a position. Sources: Zheng et al. 2023 (arXiv 2306.05685) for pairwise
judging and its position bias; Liu et al. 2025 (2501.13007) for the knock-out, of n - 1 matches. Where all meet, who
has the greatest mean probability wins.

The draw is fixed by the order of sampling, and a match begins the moment its two players are known, while others
are still being decoded or judged. Two players with the same answer need no judge: the first goes on, as in a tie;
where all meet, it is a draw. Where the budget gave fewer samples, players without an opponent go on. Confidence is
the mean where all meet, else the probability of the closest match of the winning answer.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar, Literal

from stratagem.core.asking import JUDGE
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import UnsupportedError
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._confidence import mean
from stratagem.strategies._sampler import Sampler

Player = tuple[Candidate, float | None]  # with the confidence in it, once it has met another


class Tournament(Sampler):
    """Answers judged in pairs, in both orders. Cost: n completions, at most 2 (n - 1) or n (n - 1) judgements."""

    kind: ClassVar[str] = "tournament"

    n: int = parameter(8, "Samples.", ge=1, search=(2, 64))
    matches: Literal["knock_out", "all"] = parameter(
        "knock_out", "Who meets: winners of winners, or each with each.", search=("knock_out", "all")
    )
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
        most = 0  # what the best so far is known by

        def propose(player: Player, known: int) -> None:
            nonlocal most
            if known > most:
                most = known
                best, closest = player
                run.propose(Answer.of(best, tuple(drawn[i] for i in sorted(drawn)), closest))

        async def arrive(index: int, candidate: Candidate) -> Candidate:
            drawn[index] = candidate
            players[index].set_result(candidate)
            propose((candidate, None), 1)
            return candidate

        async def player(index: int) -> Candidate | None:
            # Who waits and is cancelled must not cancel what others set and wait for.
            return await asyncio.shield(players[index])

        async def play(span: range) -> Player | None:
            """The winner of these samples."""
            if len(span) == 1:
                candidate = await player(span.start)
                return None if candidate is None else (candidate, None)
            middle = (span.start + span.stop) // 2
            a, b = await run.map(play, (range(span.start, middle), range(middle, span.stop)))
            if a is None or b is None:
                return a or b
            p = await self._preference(task, run, a[0], b[0])
            best, p = (a[0], p) if p is None or p >= 0.5 else (b[0], 1 - p)
            same = (a, b) if p is None else ((best, p), a if best is a[0] else b)
            winner = best, min((q for _, q in same if q is not None), default=None)
            propose(winner, len(span))
            return winner

        points: dict[int, list[float]] = {i: [] for i in range(self.n)}

        def leader() -> Player:
            """Who has the greatest mean probability of winning, the first of equals."""
            first = max(drawn, key=lambda i: (mean(points[i]), -i))
            return drawn[first], mean(points[first]) if points[first] else None

        async def meet(pair: tuple[int, int]) -> None:
            a, b = [await player(i) for i in pair]
            if a is not None and b is not None:
                p = await self._preference(task, run, a, b)
                for i, q in zip(pair, (0.5, 0.5) if p is None else (p, 1 - p), strict=True):
                    points[i].append(q)
                propose(leader(), 1 + sum(map(len, points.values())))

        async def championship() -> Player:
            if self.matches == "all":
                await run.map(meet, itertools.combinations(range(self.n), 2))
                return leader()
            winner = await play(range(self.n))
            assert winner is not None  # one at least is drawn
            return winner

        async with task_group() as group:
            playing = group.create_task(championship())
            request = run.request(self.prompt(task), self.n, sampling=self.sampling())
            await run.draw(request, task=task, then=arrive)
            for missing in players:
                if not missing.done():
                    missing.set_result(None)
        best, confidence = playing.result()
        return run.propose(Answer.of(best, tuple(drawn[i] for i in sorted(drawn)), confidence))

    async def _preference(self, task: Task, run: Run, a: Candidate, b: Candidate) -> float | None:
        """The probability that a is better than b; ``None`` where their answers are the same."""
        if a.answer is not None and a.answer == b.answer:
            return None

        async def first_wins(pair: tuple[Candidate, Candidate]) -> float:
            shown = f"Answer A:\n{pair[0].text}\n\nAnswer B:\n{pair[1].text}\n\n{self.question}"
            return (await run.choose(task.ask(shown), ("A", "B")))["A"]

        one, other = await run.map(first_wins, ((a, b), (b, a)))
        return 0.5 + (one - other) / 2  # exactly one half for a judge that sees positions alone
