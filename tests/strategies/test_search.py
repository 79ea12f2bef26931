"""Searches over steps on a model whose every answer is known, with the rewards that its judge gives."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import pytest

import stratagem as sg
from stratagem.core.asking import POLICY
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.budget import Budget, Ledger
from stratagem.core.execute import execute
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.strategies._search.beam import Beam, Forest
from stratagem.strategies._search.driver import node_of
from stratagem.strategies._search.frontier import Frontier
from stratagem.strategies._search.mcts import Simulations, puct
from stratagem.strategies._search.steps import Stepwise
from stratagem.strategies._search.tree import Ask, Core, Node, root
from stratagem.testing.language import END, Distribution
from stratagem.testing.loops import run
from stratagem.testing.toy import CAPABLE, ToyModel

TASK = Task.of("Which way?")
DEPTH = 3
TURNS = "abc"
TICK = 0.01  # virtual seconds a token


@functools.cache
def reward(number: int, said: str) -> float:
    """What the judge of maze ``number`` thinks of the last step of what was said."""
    return random.Random(f"{number} {said}").uniform(0.05, 0.95)


@functools.cache
def length(number: int, said: str) -> int:
    """Of a line, by Pareto's law: most are short, and some many times as long."""
    return min(24, int(2 * random.Random(f"{number} {said}").paretovariate(1.0)))


class Maze:
    """Answers of three lines, each one of three words, followed by a skewed number of others where ``long``."""

    def __init__(self, number: int, long: bool = False) -> None:
        self.number, self.long = number, long

    def __call__(self, messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
        if "yes or no" in messages[-1].content:
            p = reward(self.number, messages[-2].content)
            return {END: 1.0} if tokens else {"yes": p, "no": 1 - p}
        text = "".join(tokens)
        if text[-1:] in ("", "\n"):
            return dict.fromkeys(TURNS, 1 / len(TURNS))
        line = text.rpartition("\n")[2]
        if self.long and line.count("~") < length(self.number, text.rstrip(" ~")):
            return {" ~": 1.0}
        return {END: 1.0} if text.count("\n") + 1 == DEPTH else {"\n": 1.0}


def best_way(number: int) -> tuple[str, float]:
    """The best of all answers by the least reward of its steps, by enumeration."""
    ways = ["\n".join(way) for way in itertools.product(TURNS, repeat=DEPTH)]
    scores = {way: min(reward(number, way[:end]) for end in range(1, 2 * DEPTH, 2)) for way in ways}
    assert set(scores) == set(ToyModel(Maze(number)).enumerate(TASK))
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


def greedy_way(number: int) -> str:
    """The best step after the best step."""
    way = ""
    for _ in range(DEPTH):
        way = max((f"{way}\n{turn}".strip() for turn in TURNS), key=lambda said: reward(number, said))
    return way


def answer(strategy: sg.Strategy, model: ToyModel, budget: Budget | None = None, seed: int = 0) -> Answer:
    async def main() -> Answer:
        clock = asyncio.get_running_loop().time
        return await execute(
            strategy, TASK, Run({POLICY: model}, ledger=Ledger(budget, clock=clock), seed=seed)
        )

    return run(main())


# So many steps drawn of three that are equally likely miss one with probability 3 (2/3)^30 = 2e-5.
WIDE = 30
EXACT: dict[str, sg.Strategy] = {
    "beams": sg.BeamSearch(beams=27, width=WIDE),
    "best-first": sg.BestFirst(width=WIDE, expansions=100, parallel=3),
    "best-first in turn": sg.BestFirst(width=WIDE, expansions=100, parallel=1),
    "puct": sg.MCTS(simulations=40, width=WIDE),
    "puct with a prior": sg.MCTS(simulations=40, width=WIDE, prior=True, c_init=3.0, parallel=2),
    "uct": sg.MCTS(simulations=40, width=WIDE, rule="uct", parallel=1),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_optimum_is_found(name: str) -> None:
    misled = 0
    for number in range(5):
        best, score = best_way(number)
        misled += greedy_way(number) != best
        found = answer(EXACT[name], ToyModel(Maze(number)), seed=number)
        assert (found.text, found.stopped) == (best, "complete")
        assert found.confidence == pytest.approx(score)
        assert found.candidates[0].scores == {"step_judge": found.confidence}
    assert misled > 1  # the best first step mostly leads elsewhere


def test_step_best_of_n_takes_the_best_step_after_the_best_step() -> None:
    for number in range(8):
        found = answer(sg.StepBestOfN(n=WIDE, aggregate="last"), ToyModel(Maze(number)))
        assert found.text == greedy_way(number)


def test_trees_differ_and_the_best_of_them_is_the_answer() -> None:
    for number in range(2):
        strategy = sg.DVTS(trees=30, width=1, aggregate="last")
        found = answer(strategy, ToyModel(Maze(number)))
        # Of single steps each tree is one sample of the whole; none is stopped, and the last step counts.
        ways = [c.text for c in found.candidates]
        assert len(ways) == 30
        assert len(set(ways)) > 15
        assert found.text == max(ways, key=lambda way: reward(number, way))


def test_every_step_is_judged_once() -> None:
    """As its siblings are decoded, and not again when it goes on or is drawn again."""
    asked: list[str] = []

    async def pace(request: Request | ScoreRequest) -> None:
        if "yes or no" in request.messages[-1].content:
            asked.append(request.messages[-2].content)

    for strategy in (sg.BeamSearch(width=9), sg.BestFirst(width=9), sg.MCTS(width=9), sg.StepBestOfN(n=9)):
        asked.clear()
        answer(strategy, ToyModel(Maze(1), pace=pace))
        assert len(asked) == len(set(asked)) > 3


# -- stopped early -------------------------------------------------------------------------------------


def fork(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
    """Half of the answers open well and are short, half open badly and then go on for 400 tokens."""
    if "yes or no" in messages[-1].content:
        p = 0.9 if messages[-2].content.startswith("good") else 0.2
        return {END: 1.0} if tokens else {"yes": p, "no": 1 - p}
    text = "".join(tokens)
    if not text:
        return {"good\n": 0.5, "bad\n": 0.5}
    if text.startswith("good"):
        return {"end": 1.0} if text.endswith("\n") else {END: 1.0}
    return {" x": 1.0} if len(tokens) < 400 else {END: 1.0}


@pytest.mark.parametrize(
    "strategy",
    [
        sg.DVTS(trees=8, width=1),
        sg.DVTS(trees=8, width=1, aggregate="product"),
        sg.BeamSearch(beams=4, width=2),
        sg.BestFirst(width=8, parallel=4),
    ],
    ids=lambda s: f"{s.kind}-{s.aggregate}",
)
def test_what_cannot_win_is_stopped_in_the_engine(strategy: Stepwise) -> None:
    """While it is being decoded, not after it."""
    strategy = strategy.model_copy(update={"step_tokens": 512})
    model = ToyModel(fork)
    found = answer(strategy, model)
    assert (found.value, found.text, found.stopped) == (None, "good\nend", "complete")
    assert model.books.aborted > 0
    assert model.books.in_flight == 0
    assert found.usage == model.books.usage
    # Of one bad answer it would be 400.
    assert found.usage.completion_tokens < 200


def test_a_beam_without_a_bound_waits_and_decodes_all() -> None:
    """The last reward says nothing of those to come: what looks bad may still win."""
    model = ToyModel(fork)
    found = answer(sg.BeamSearch(beams=4, width=2, aggregate="last", step_tokens=512), model)
    assert found.text == "good\nend"
    assert model.books.aborted == 0


# -- limits --------------------------------------------------------------------------------------------


def test_a_budget_gives_the_best_answer_so_far_and_a_best_partial_one_where_there_is_none() -> None:
    whole = answer(sg.MCTS(simulations=8, width=3), ToyModel(Maze(0))).usage.tokens
    prompt = ToyModel().prompt_tokens(sg.MCTS().prompt(TASK))
    finished = partial = 0
    for budget in range(prompt + 2, whole + 200, 23):
        model = ToyModel(Maze(0))
        found = answer(sg.MCTS(simulations=8, width=3, step_tokens=4), model, Budget(tokens=budget))
        assert model.books.usage.tokens <= budget
        assert found.usage == model.books.usage
        ends = [c.text.count("\n") == DEPTH - 1 for c in found.candidates]
        finished += ends[0]
        partial += not any(ends)
        if any(ends):  # what has not ended is not among the answers, once there are some
            assert all(ends)
    assert finished > 3
    assert partial > 3


def test_an_expansion_limit_ends_in_an_answer() -> None:
    for expansions in (1, 2, 3):
        found = answer(sg.BestFirst(width=3, expansions=expansions), ToyModel(Maze(2)))
        assert found.stopped == "complete"
        assert found.text.count("\n") == DEPTH - 1


class Abstains(sg.Verifier):
    """Says nothing."""

    kind: ClassVar[str] = "abstains"

    async def __call__(self, task: Task, candidates: Sequence[sg.Candidate], run: Run) -> list[sg.Verdict]:
        return [sg.Verdict(None) for _ in candidates]


def test_a_judge_that_abstains_leaves_the_likeliest() -> None:
    found = answer(
        sg.StepBestOfN(n=20, verifier=Abstains()),
        ToyModel({"": {"a\n": 0.7, "b\n": 0.3}, "a\n": {"so": 1.0}, "b\n": {"no": 1.0}}),
    )
    assert (found.text, found.confidence) == ("a\nso", None)


def test_a_model_that_lacks_what_is_needed_is_told_before_anything_is_spent() -> None:
    model = ToyModel(capabilities=replace(CAPABLE, continue_final=False))
    with pytest.raises(sg.BackendError, match="toy cannot continue its own message, which beam_search needs"):
        answer(sg.BeamSearch(), model)
    assert model.books.usage.calls == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "beam_search", "beams": 0}, "beams = 0"),
        ({"kind": "mcts", "rule": "random"}, "rule = 'random'"),
        ({"kind": "dvts", "delimiter": ""}, "delimiter = ''"),
        ({"kind": "best_first", "verifier": "oracle"}, "oracle"),
    ],
)
def test_bad_input_is_one_clear_error(data: dict[str, object], says: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=says):
        sg.Strategy.load(data)


# -- time ----------------------------------------------------------------------------------------------


async def _tick(_: Request | ScoreRequest) -> None:
    await asyncio.sleep(TICK)


class Timed(NamedTuple):
    """A search with lines of any length, and what it decides by."""

    strategy: Stepwise
    core: Callable[[], Core]
    lanes: int = 1


LONG: dict[str, Any] = {"step_tokens": 512, "max_tokens": 4096}
SEARCHES = {
    "step_best_of_n": Timed(sg.StepBestOfN(n=6, **LONG), lambda: Beam(root(), 1, 6)),
    "beam_search": Timed(sg.BeamSearch(beams=4, width=4, **LONG), lambda: Beam(root(), 4, 4)),
    "dvts": Timed(
        sg.DVTS(trees=5, width=2, **LONG),
        lambda: Forest([Beam(root(lane), 1, 2) for lane in range(5)]),
        lanes=5,
    ),
    "mcts": Timed(
        sg.MCTS(simulations=12, width=3, parallel=4, **LONG),
        lambda: Simulations(
            root(), puct(1.25, 19652, prior=False), simulations=12, width=3, parallel=4, virtual_loss=1
        ),
    ),
    "best_first": Timed(
        sg.BestFirst(width=3, expansions=16, parallel=4, **LONG), lambda: Frontier(root(), 3, 16, 4)
    ),
}


def bound(search: Timed, language: Maze) -> float:
    """When the search is over if everything begins the moment that its decisions allow, by an event list: each
    step takes its tokens and one more for the judge."""
    strategy, core, lanes = search.strategy, search.core(), search.lanes
    outer = Run({POLICY: ToyModel(language)})
    runs = [outer.child() for _ in range(lanes)] if lanes > 1 else [outer]
    events: list[tuple[float, int, Node, Node | None, bool]] = []
    count, now = itertools.count(), 0.0
    dropped: set[Node] = set()

    async def grown(ask: Ask) -> None:
        seen: set[str] = set()
        ends = [now]
        node, own = ask.node, runs[ask.node.lane]
        for partial in await strategy.extend(TASK, own, node.partial, ask.n, whole=ask.whole):
            seconds = (partial.token_count - node.partial.token_count) * TICK
            child = None
            if partial.written not in seen:
                judged = await strategy.judge(TASK, own, partial)
                child = node_of(strategy, judged, node, strategy.score(judged))
                seconds += TICK
            seen.add(partial.written)
            ends.append(now + seconds)
            heapq.heappush(events, (ends[-1], next(count), node, child, False))
        heapq.heappush(events, (max(ends), next(count), node, None, True))

    async def main() -> float:
        nonlocal now
        while True:
            dropped.update(core.needless())
            while (ask := core.ask()) is not None:
                await grown(ask)
            if not (left := [e for e in events if e[2] not in dropped]):
                return now
            events[:] = left
            heapq.heapify(events)
            now, _, node, child, last = heapq.heappop(events)
            if last:
                core.told(node)
            else:
                core.tell(node, child)

    return asyncio.run(main())


@pytest.mark.parametrize("kind", SEARCHES)
def test_nothing_waits_but_for_what_it_depends_on(kind: str) -> None:
    strategy = SEARCHES[kind].strategy

    async def main(number: int) -> float:
        loop = asyncio.get_running_loop()
        await execute(strategy, TASK, Run({POLICY: ToyModel(Maze(number, long=True), pace=_tick)}))
        return loop.time()

    for number in range(4):
        ideal = bound(SEARCHES[kind], Maze(number, long=True))
        taken = run(main(number))
        print(f"{kind} {number}: {taken:.2f} s, bound {ideal:.2f} s")
        assert 0 < taken <= 1.05 * ideal, (number, taken, ideal)


@pytest.mark.parametrize("kind", SEARCHES)
def test_permits_are_not_idle_where_work_is_ready(kind: str) -> None:
    """A batch of questions on few permits: until the last has no more to start, every permit is taken."""
    strategy = SEARCHES[kind].strategy
    permits, batch = 4, 16

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        busy = 0.0

        async def pace(_: Request | ScoreRequest) -> None:
            nonlocal busy
            await asyncio.sleep(TICK)
            busy += TICK

        def language(messages: tuple[Message, ...], tokens: tuple[str, ...]) -> Distribution:
            number = int(messages[0].content.split()[1])
            return Maze(number, long=True)(messages, tokens)

        model = ToyModel(language, pace=pace, permits=permits)
        tasks = [Task.of(f"Maze {number} : which way?") for number in range(batch)]
        await asyncio.gather(*(execute(strategy, task, Run({POLICY: model})) for task in tasks))
        return loop.time(), busy

    wall, busy = run(main())
    idle = 1 - busy / (permits * wall)
    print(f"{kind}: {wall:.2f} s, {100 * idle:.1f} % idle")
    assert idle < 0.05
    assert math.isclose(wall, busy / permits, rel_tol=0.053)
