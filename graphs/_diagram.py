"""What is shown of a graph or a strategy: cards and arrows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_core.runnables import Runnable
from langgraph.graph import END, START, StateGraph

from stratagem.core.component import Component
from stratagem.core.protocols import Strategy
from stratagem.graphs.nodes import StrategyNode


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a node: its title, its parameters, and cards of the components in it."""

    title: str
    style: Literal["end", "step", "strategy", "verifier"]
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


def diagram_of(graph: Strategy | StateGraph[Any] | Runnable[Any, Any]) -> Diagram:
    """The diagram of a strategy, or of a graph with the strategies in its nodes."""
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
