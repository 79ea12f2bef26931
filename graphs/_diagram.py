"""What is shown of a graph or a strategy: cards and arrows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from langchain_core.runnables import Runnable
from langgraph.graph import END, START, StateGraph

from stratagem.core.calling import Called
from stratagem.core.component import Component
from stratagem.core.protocols import Strategy
from stratagem.graphs.nodes import StrategyNode

Style: TypeAlias = Literal["end", "step", "strategy", "verifier", "done", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a node: its title, its parameters, and cards of the components in it."""

    title: str
    style: Style
    rows: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, Card], ...] = ()  # by name of the parameter


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge between two nodes; ``choice`` where the graph decides at run time."""

    source: str
    target: str
    label: str = ""
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Diagram:
    """Cards by node, and arrows."""

    cards: dict[str, Card]
    arrows: tuple[Arrow, ...]


class PlannedCall(Protocol):
    """A call of a plan (``stratagem.tools.dag.Call``)."""

    @property
    def id(self) -> str: ...
    @property
    def tool(self) -> str: ...


@runtime_checkable
class PlanOfCalls(Protocol):
    """A plan of calls of tools (``stratagem.tools.dag.Plan``)."""

    @property
    def calls(self) -> Sequence[PlannedCall]: ...
    def reduced(self) -> Sequence[tuple[str, str]]: ...


Drawable: TypeAlias = Strategy | StateGraph[Any] | Runnable[Any, Any] | PlanOfCalls | Sequence[Called]


def diagram_of(graph: Drawable) -> Diagram:
    """The diagram of a strategy, of a graph with the strategies in its nodes, of a plan, or of calls."""
    if isinstance(graph, Sequence):
        made = {call.name: _became(call) for call in graph}
        taken = (Arrow(need, call.name) for call in graph for need in call.takes if need in made)
        return Diagram(made, tuple(taken))
    if isinstance(graph, PlanOfCalls):
        planned = {call.id: Card(f"{call.id}: {call.tool}", "step") for call in graph.calls}
        return Diagram(planned, tuple(Arrow(a, b) for a, b in graph.reduced()))
    if isinstance(graph, Strategy):
        cards = {START: Card("start", "end"), graph.kind: _card(graph), END: Card("end", "end")}
        return Diagram(cards, (Arrow(START, graph.kind), Arrow(graph.kind, END)))
    drawn = (graph.compile() if isinstance(graph, StateGraph) else graph).get_graph()
    cards = {}
    for name, part in drawn.nodes.items():
        action = getattr(part.data, "afunc", None)
        if name in (START, END):
            cards[name] = Card(name.strip("_"), "end")
        elif isinstance(action, StrategyNode):
            shown = _card(action.strategy)
            cards[name] = shown if name == shown.title else replace(shown, title=f"{name}: {shown.title}")
        else:
            cards[name] = Card(part.name, "step")
    arrows = tuple(
        Arrow(e.source, e.target, "" if e.data is None else str(e.data), e.conditional) for e in drawn.edges
    )
    return Diagram(cards, arrows)


def _became(call: Called) -> Card:
    title = f"{call.name}: {call.tool}"
    if call.skipped:
        return Card(title, "skipped", (("call", _short(call.call)),))
    rows = (
        ("call", _short(call.call)),
        ("gave", _short(call.error or call.told())),
        ("seconds", f"{call.seconds:.3g}"),
    )
    return Card(title, "failed" if call.error else "done", rows)


def _card(component: Component) -> Card:
    """A component's card: set parameters as rows, components in its parameters as parts."""
    rows, parts = [], []
    for key in type(component).model_fields:
        value = getattr(component, key)
        inside = value if isinstance(value, list | tuple) else (value,)
        components = [part for part in inside if isinstance(part, Component)]
        if components:
            parts += [(key, _card(part)) for part in components]
        elif value is not None and value != () and value != "":
            rows.append((key, _short(value)))
    style: Literal["strategy", "verifier"] = "strategy" if component.family == "strategy" else "verifier"
    return Card(component.kind, style, tuple(rows), tuple(parts))


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 36 else text[:35] + "\u2026"
