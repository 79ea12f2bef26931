"""Agents as LangGraph graphs: divide, execute and aggregate are nodes, with a checkpoint after each.

    divide --(calls)--> execute --> aggregate --(more)--> divide
       \\--(an answer)--> END           \\--(no more rounds)--> conclude --> END

The same turns as in ``await strategy(task, run)``, where they can be watched, interrupted and resumed. A checkpoint
lies between the plan and its calls, so calls wait until the plan is written; the strategy by itself starts them
while it still is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from pydantic import TypeAdapter

from stratagem.core.asking import POLICY
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Toolbox
from stratagem.core.connect import shipped
from stratagem.core.errors import BudgetExhausted
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
    answer: dict[str, Any]  # plain data of an Answer, once there is one


class _Nodes:
    def __init__(
        self,
        strategy: Agent,
        tools: Toolbox,
        models: Mapping[str, Backend] | None,
        budget: Budget | None,
        seed: int,
    ) -> None:
        self.strategy = strategy
        self._tools = tools
        self._models = models
        self._budget = budget
        self._seed = seed

    def _run(self, state: AgentState, runtime: Runtime[Any]) -> Run:
        def stream(record: Record) -> None:
            runtime.stream_writer(json.loads(record.json()))

        ledger = Ledger(self._budget)
        ledger.spent = _usage(state)
        info = runtime.execution_info
        run_id = (info.thread_id if info is not None else None) or ""
        models = self._models or {POLICY: shipped()}
        trace = Trace(run_id, listeners=[stream])
        return Run(models, ledger=ledger, seed=self._seed, trace=trace, run_id=run_id, tools=self._tools)

    async def divide(self, state: AgentState, runtime: Runtime[Any]) -> AgentState:
        """The model writes calls, or the answer."""
        run, task, rounds = self._run(state, runtime), _task(state), _rounds(state)
        try:
            said = await self.strategy.write(task, run, rounds)
        except BudgetExhausted:
            return _stopped(run, rounds)
        if any(self.strategy.called(line) is not None for line in said.split("\n")):
            return {"said": said, "usage": asdict(run.ledger.spent)}
        return _answered(run, answer(task, rounds, said))

    async def execute(self, state: AgentState, runtime: Runtime[Any]) -> AgentState:
        """The calls are made, each as soon as what it takes is there."""
        run, rounds = self._run(state, runtime), _rounds(state)
        done = await self.strategy.act(run, state.get("said", ""), rounds)
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
        return "__end__" if "answer" in state else "execute"

    def after_aggregate(self, state: AgentState) -> Literal["divide", "conclude"]:
        return "divide" if len(state.get("rounds", ())) < self.strategy.rounds else "conclude"


def agent_graph(
    strategy: Agent,
    tools: Toolbox,
    *,
    llm: Backend | None = None,
    models: Mapping[str, Backend] | None = None,
    budget: Budget | str | None = None,
    seed: int = 0,
) -> StateGraph[AgentState]:
    """A graph that answers ``{"question": ...}`` with ``"answer"``: compile it with your own checkpointer.

    Args:
        strategy: an agent that goes on turn by turn (:class:`~stratagem.strategies.dta.DivideThenAggregate`, ReAct,
            sequential calling).
        llm: the model that answers; short for ``models={"policy": llm}``; without both, the shipped model.
        budget: limits of tokens, calls and money of the whole thread; ``seconds`` are those of one node.
        seed: the same seed gives the same answer as the strategy by itself.
    """
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    nodes = _Nodes(strategy, tools, roles(llm, models), budget, seed)
    graph = StateGraph(AgentState)
    graph.add_node("divide", nodes.divide)
    graph.add_node("execute", nodes.execute)
    graph.add_node("aggregate", nodes.aggregate)
    graph.add_node("conclude", nodes.conclude)
    graph.add_edge(START, "divide")
    graph.add_conditional_edges("divide", nodes.after_divide)
    graph.add_edge("execute", "aggregate")
    graph.add_conditional_edges("aggregate", nodes.after_aggregate)
    graph.add_edge("conclude", END)
    return graph


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
    }
    return {"answer": found.model_copy(update=told).model_dump(mode="json"), "usage": asdict(usage)}


def _stopped(run: Run, rounds: tuple[Round, ...]) -> AgentState:
    """What is known where the budget does not hold another turn."""
    if not rounds:
        raise BudgetExhausted("The budget does not hold one turn.", remedy="Give it more tokens.")
    return _answered(run, so_far(rounds).model_copy(update={"stopped": "budget"}))
