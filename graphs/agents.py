"""Agents as LangGraph graphs: divide, execute and aggregate are nodes, with a checkpoint after each.

    begin --> divide --(calls)--> execute --> aggregate --(more)--> divide
                 \\--(an answer)--> END           \\--(no more rounds)--> conclude --> END

The same turns as in ``await strategy(task, run)``, where they can be watched, interrupted and resumed. A checkpoint
lies between the plan and its calls, so calls wait until the plan is written; the strategy by itself starts them
while it still is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import TypeAdapter

from stratagem.core.asking import POLICY
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Approval, Toolbox
from stratagem.core.connect import shipped
from stratagem.core.errors import BudgetExhausted, ConfigurationError
from stratagem.core.kept import InMemory, Kept
from stratagem.core.run import Run
from stratagem.core.task import Answer, Task
from stratagem.core.trace import Record, Trace
from stratagem.core.usage import Usage
from stratagem.graphs.nodes import roles
from stratagem.strategies._agent import Agent, Round, answer, so_far

_ROUNDS = TypeAdapter(tuple[Round, ...])
_USAGE = TypeAdapter(Usage)


class AgentState(TypedDict, total=False):
    """The state of an agent's graph, all plain data."""

    question: Any  # a text, or a task's plain data
    said: str  # what the model wrote last
    rounds: list[dict[str, Any]]  # turns with calls, and what became of them
    usage: dict[str, Any]  # spent so far
    answer: dict[str, Any] | None  # plain data of an Answer, once there is one
    maker: str  # which graph has divided: what another one has begun is not known
    sitting: str  # tells the calls of one question apart from those of others in the thread


class _Nodes:
    def __init__(
        self,
        strategy: Agent,
        tools: Toolbox,
        models: Mapping[str, Backend] | None,
        budget: Budget | None,
        seed: int,
        keep: Callable[[str], Kept] | None,
        asks: bool,
    ) -> None:
        self._forgets = keep is None  # with its process
        self._keep = keep or _Memory().of
        self._maker = secrets.token_hex(8)
        self._asks = asks
        self.strategy = strategy
        self._tools = tools
        self._models = models
        self._budget = budget
        self._seed = seed

    def _run(self, state: AgentState, runtime: Runtime[Any], approve: Approval | None = None) -> Run:
        def stream(record: Record) -> None:
            runtime.stream_writer(json.loads(record.json()))

        ledger = Ledger(self._budget)
        ledger.spent = _usage(state)
        info = runtime.execution_info
        run_id = (info.thread_id if info is not None else None) or ""
        models = self._models or {POLICY: shipped()}
        trace = Trace(run_id, listeners=[stream])
        # Each round's calls of their own: a node that runs again asks for the same ones again.
        kept = self._keep(f"{run_id}/{state.get('sitting', '')}/{len(state.get('rounds', ()))}")
        return Run(
            models,
            ledger=ledger,
            seed=self._seed,
            trace=trace,
            run_id=run_id,
            tools=self._tools,
            kept=kept,
            approve=approve,
        )

    async def begin(self, state: AgentState) -> AgentState:
        """A question, perhaps another one in a thread that has answered one."""
        return {"sitting": secrets.token_hex(8), "said": "", "rounds": [], "usage": {}, "answer": None}

    async def divide(self, state: AgentState, runtime: Runtime[Any]) -> AgentState:
        """The model writes calls, or the answer."""
        run, task, rounds = self._run(state, runtime), _task(state), _rounds(state)
        try:
            said = await self.strategy.write(task, run, rounds)
        except BudgetExhausted:
            return _stopped(run, rounds)
        if any(self.strategy.called(line) is not None for line in said.split("\n")):
            return {"said": said, "usage": asdict(run.ledger.spent), "maker": self._maker}
        return _answered(run, answer(task, rounds, said))

    async def execute(self, state: AgentState, runtime: Runtime[Any]) -> AgentState:
        """The calls are made, each as soon as what it takes is there. Where calls wait to be allowed and nothing
        else can be done, all of them are put into one interrupt; resumed, the node finds what it has done in what
        is kept.
        """
        task, rounds = _task(state), _rounds(state)
        allowed: dict[tuple[str, str], bool | Mapping[str, Any]] = {}
        # Another graph may have begun the calls before it ended, and nobody knows which.
        unknown = self._forgets and state.get("maker") != self._maker

        async def approve(name: str, call: str) -> bool | Mapping[str, Any] | None:
            if unknown:
                return False
            return allowed.get((name, call)) if self._asks else True

        while True:
            run = self._run(state, runtime, approve)
            done = await self.strategy.act(task, run, state.get("said", ""), rounds)
            waiting = {call.name: call.call for call in done.calls if call.waiting}
            if not waiting:
                break
            allowed |= {(name, waiting[name]): told for name, told in _decided(waiting).items()}
        dumped = _ROUNDS.dump_python((*rounds, done), mode="json")
        return {"rounds": dumped, "usage": asdict(run.ledger.spent)}

    async def conclude(self, state: AgentState, runtime: Runtime[Any]) -> AgentState:
        """The model has to answer."""
        run, task, rounds = self._run(state, runtime), _task(state), _rounds(state)
        try:
            last = await self.strategy.conclude(task, run, rounds)
        except BudgetExhausted:
            return _stopped(run, rounds)
        return _answered(run, answer(task, rounds, last.said))

    async def aggregate(self, state: AgentState) -> AgentState:
        """What the calls gave stands in the talk; the checkpoint of the round lies here."""
        return {"said": ""}

    def after_divide(self, state: AgentState) -> Literal["execute", "__end__"]:
        return "__end__" if state.get("answer") else "execute"

    def after_aggregate(self, state: AgentState) -> Literal["divide", "conclude"]:
        rounds = _rounds(state)
        return "divide" if self.strategy.goes_on(rounds) else "conclude"


def agent_graph(
    strategy: Agent,
    tools: Toolbox,
    *,
    llm: Backend | None = None,
    models: Mapping[str, Backend] | None = None,
    budget: Budget | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    keep: Callable[[str], Kept] | None = None,
    ask_approval: bool = False,
) -> StateGraph[AgentState]:
    """A graph that answers ``{"question": ...}`` with ``"answer"``: compile it with your own checkpointer.

    Args:
        strategy: an agent that goes on turn by turn (:class:`~stratagem.strategies.dta.DivideThenAggregate`, ReAct,
            sequential calling).
        llm: the model that answers; short for ``models={"policy": llm}``; without both, the shipped model.
        budget: limits of tokens, calls and money of the whole thread; ``seconds`` are those of one node.
        seed: the same seed gives the same answer as the strategy by itself.
        keep: where finished calls of a round are kept, by its name, as ``Journal("runs.sqlite").of``; by default in
            this process, the last 1,000 rounds: it has to live until an interrupted node goes on.
        ask_approval: a call of a destructive tool interrupts the graph, all that wait at once, with
            ``{"approve": [{"name": ..., "call": ...}, ...]}``; resume with ``Command(resume=True)``, or ``False``,
            or ``{name: True, ...}``, where in place of ``True`` a mapping changes arguments of the call.
    """
    if not strategy.turns:
        raise ConfigurationError(
            f"{strategy.kind} goes back and forth between turns, which no graph of turns does.",
            remedy="Use node(strategy, tools=...), or another agent.",
        )
    nodes = _Nodes(strategy, tools, roles(llm, models), Budget.of(budget), seed, keep, ask_approval)
    graph = StateGraph(AgentState)
    graph.add_node("begin", nodes.begin)
    graph.add_node("divide", nodes.divide)
    graph.add_node("execute", nodes.execute)
    graph.add_node("aggregate", nodes.aggregate)
    graph.add_node("conclude", nodes.conclude)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "divide")
    graph.add_conditional_edges("divide", nodes.after_divide)
    graph.add_edge("execute", "aggregate")
    graph.add_conditional_edges("aggregate", nodes.after_aggregate)
    graph.add_edge("conclude", END)
    return graph


class _Memory:
    """Keeps the calls of the last rounds in this process: those of a round that waits so long are made anew."""

    MOST: ClassVar[int] = 1000

    def __init__(self) -> None:
        self._kept: dict[str, InMemory] = {}

    def of(self, name: str) -> InMemory:
        kept = self._kept[name] = self._kept.pop(name) if name in self._kept else InMemory()
        while len(self._kept) > self.MOST:
            del self._kept[next(iter(self._kept))]
        return kept


def _decided(waiting: Mapping[str, str]) -> dict[str, bool | Mapping[str, Any]]:
    """What the resumed graph was told of each call that waits; told nonsense, it asks again."""
    asked: dict[str, Any] = {"approve": [{"name": name, "call": call} for name, call in waiting.items()]}
    while True:
        answer = interrupt(asked)
        told: Mapping[str, Any] = answer if isinstance(answer, Mapping) else dict.fromkeys(waiting, answer)
        allowed: dict[str, bool | Mapping[str, Any]] = {}
        for name in waiting:
            if isinstance(one := told.get(name), bool | Mapping):
                allowed[name] = one
        if len(allowed) == len(waiting):
            return allowed
        asked["error"] = (
            f"{answer!r} does not say what is allowed. Resume with Command(resume=True), or False, or a mapping of "
            f"each of {', '.join(waiting)} to one of them, or to a mapping of arguments to change."
        )


def _task(state: AgentState) -> Task:
    question = state.get("question", "")
    return Task.model_validate(question) if isinstance(question, Mapping) else Task.of(question)


def _rounds(state: AgentState) -> tuple[Round, ...]:
    return _ROUNDS.validate_python(state.get("rounds", ()))


def _usage(state: AgentState) -> Usage:
    return _USAGE.validate_python(state.get("usage", {}))


def _answered(run: Run, found: Answer) -> AgentState:
    usage = run.ledger.spent
    told = {
        "usage": usage,
        "run_id": run.run_id,
        "stopped": "budget" if run.ledger.refused else found.stopped,
        "reason": run.ledger.refusal or found.reason,
    }
    return {"answer": found.model_copy(update=told).model_dump(mode="json"), "usage": asdict(usage)}


def _stopped(run: Run, rounds: tuple[Round, ...]) -> AgentState:
    """What is known where the budget does not hold another turn."""
    if not rounds:
        raise BudgetExhausted("The budget does not hold one turn.", remedy="Give it more tokens.")
    return _answered(run, so_far(rounds).model_copy(update={"stopped": "budget"}))
