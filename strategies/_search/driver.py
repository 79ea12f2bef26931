"""The effects of a search: runs what its core asks for, and tells it each result the moment it comes.

There is no barrier here: all expansions that a core offers run at the same time, each step is judged while its
siblings are decoded, and what has become needless is stopped in the engine. Once the budget has refused something
no more is started; what runs ends, and the best answer so far is the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.strategies._search.steps import Partial, Stepwise
from stratagem.strategies._search.tree import Ask, Core, Node

_UNJUDGED = -1.0


async def search(strategy: Stepwise, core: Core, task: Task, run: Run, lanes: int = 1) -> Answer:
    """The best answer that ``core`` finds. Each of several lanes draws with seeds of its own.

    Raises:
        BudgetExhausted: not even one step was affordable.
    """
    # Lanes may come to the same text; which of them asks first must not decide who draws what.
    runs = [run.child() for _ in range(lanes)] if lanes > 1 else [run]
    running: dict[Node, asyncio.Task[None]] = {}
    refused: list[BudgetExhausted] = []
    changed = asyncio.Event()
    best = core.root
    answers: list[Node] = []

    def answer(chosen: Node, among: Sequence[Node]) -> Answer:
        nodes = [chosen, *(node for node in among if node is not chosen)]
        candidates = tuple(candidate(node) for node in nodes)
        return Answer.of(candidates[0], candidates, candidates[0].scores.get(strategy.verifier.kind))

    def candidate(node: Node) -> Candidate:
        made = strategy.candidate(task, node.partial)
        return made if node.ended else replace(made, answer=task.extract(made.text))

    def came(node: Node) -> None:
        nonlocal best
        if node.ended and node.score > _UNJUDGED:
            answers.append(node)
        if best is core.root or (not node.ended, node.rank) < (not best.ended, best.rank):
            best = node
            run.propose(answer(best, answers))

    def go_on() -> None:
        for node in core.needless():
            if node in running:
                running.pop(node).cancel()
        while not refused and (ask := core.ask()) is not None:
            running[ask.node] = group.create_task(expand(ask))

    async def expand(ask: Ask) -> None:
        parent, own = ask.node, runs[ask.node.lane]
        seen: set[tuple[str, bool]] = set()

        async def grown(partial: Partial) -> None:
            child: Node | None = None
            if (partial.written, partial.ended) not in seen:
                seen.add((partial.written, partial.ended))
                came(node_of(strategy, partial, parent, _UNJUDGED))
                try:
                    judged = await strategy.judge(task, own, partial)
                except BudgetExhausted as error:
                    refused.append(error)
                else:
                    child = node_of(strategy, judged, parent, strategy.score(judged))
                    came(child)
            core.tell(parent, child)
            changed.set()

        try:
            await strategy.extend(task, own, parent.partial, ask.n, whole=ask.whole, then=grown)
        except BudgetExhausted as error:
            refused.append(error)
        del running[parent]
        core.told(parent)
        changed.set()

    async with task_group() as group:
        go_on()
        while running:
            await changed.wait()
            changed.clear()
            go_on()
    if best is core.root:
        raise refused[0]
    if refused or not (finished := core.finished()):
        return run.propose(answer(best, answers))
    return run.propose(answer(finished[0], finished))


def node_of(strategy: Stepwise, partial: Partial, parent: Node, score: float) -> Node:
    """A child of ``parent``."""
    return Node(
        partial, score, strategy.bound(partial), parent=parent, lane=parent.lane, logprob=partial.logprob
    )
