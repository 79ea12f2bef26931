"""Plans: calls of tools that take each other's results, as a graph without cycles.

A plan is a list of calls in JSON. An argument, or any part of one, may be ``{"$ref": "a", "path": ["x", 0]}``: item
0 of field ``x`` of the result of call ``a``; without ``path``, the whole result. References are data and stay data:
no result is ever pasted into a text. What is wrong with a plan is listed in it, for whoever made it.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stratagem.core.text import encodable
from stratagem.tools.tool import Failed, Tool

ProblemKind: TypeAlias = Literal[
    "malformed", "unknown_tool", "bad_arguments", "cycle", "dangling_reference", "duplicate_id"
]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a plan, in words that whoever made it can act on."""

    kind: ProblemKind
    call: str | None  # its id, where it has one
    message: str


_NAMED = 20  # of the calls in a cycle


class Reference(BaseModel):
    """A call's result, or the part of it that ``path`` leads to by keys and positions from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    call: str = Field(alias="$ref")
    path: Annotated[list[str | Annotated[int, Field(ge=0)]], Field(strict=True)] = []

    def of(self, result: Any) -> Any:
        """That part of ``result``, as a copy; :class:`Failed` where there is none."""
        value: Any = result
        for i, key in enumerate(self.path):
            at_key = isinstance(value, dict) and key in value
            if not at_key and not (isinstance(value, list) and isinstance(key, int) and key < len(value)):
                place = "".join(f"[{k!r}]" for k in self.path[:i])
                has = f"keys {list(value)[:20]}" if isinstance(value, dict) else _shape(value)
                return Failed("reference", f"{self.call}{place} has no {key!r}; it has {has}.")
            value = value[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return copy.deepcopy(value)  # a function may change what it is given


def _shape(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, list) else f"no parts: it is {json.dumps(value)[:60]}"


class Call(BaseModel):
    """One call of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    tool: str
    arguments: dict[str, Any] = {}
    """JSON with a :class:`Reference` wherever one stood."""
    on_failure: Literal["skip", "fail", "default", "ask"] = "skip"
    """After a failure: leave out what depends on it, stop the whole plan, go on with ``default``, or ask whoever
    made the plan for other arguments (and leave out what depends on it where there are none)."""
    alternatives: list[dict[str, Any]] = []
    """Other arguments, tried in turn after a failure."""
    default: Any = None
    retries: int | None = Field(default=None, ge=0)
    """In place of the tool's own number; without effect on a destructive tool."""

    @field_validator("arguments")
    @classmethod
    def _withreferences(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return {key: _typed(part) for key, part in encodable(value).items()}
        except RecursionError:
            raise ValueError("nested too deeply") from None

    @field_validator("alternatives")
    @classmethod
    def _each_withreferences(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [cls._withreferences(each) for each in value]

    @classmethod
    def parse(cls, data: Any) -> Call | Problem:
        """From plain data."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            name = data.get("id") if isinstance(data, Mapping) else None
            told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'call'}: {e['msg']}" for e in error.errors())
            return Problem("malformed", name if isinstance(name, str) else None, f"{told}.")

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """All that stand in the arguments, in order."""
        sets = (self._open, *self.alternatives)
        return tuple(reference for each in sets for value in each.values() for reference in references(value))

    @cached_property
    def _open(self) -> dict[str, Any]:
        """The arguments that hold a reference."""
        return {key: value for key, value in self.arguments.items() if any(True for _ in references(value))}

    @cached_property
    def own_needs(self) -> frozenset[str]:
        """The calls without whose results it cannot be made with its own arguments."""
        return frozenset(each.call for value in self._open.values() for each in references(value))

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The calls whose results it takes, each once."""
        return tuple(dict.fromkeys(reference.call for reference in self.references))

    def problems(self, tools: Mapping[str, Tool]) -> Iterator[Problem]:
        """What is wrong with it whatever stands around it."""
        if self.tool not in tools:
            known = ", ".join(sorted(tools))
            yield Problem("unknown_tool", self.id, f"There is no tool {self.tool!r}. Known are: {known}.")
            return
        for message in tools[self.tool].misfits(self.arguments, unknown=frozenset(self._open)):
            yield Problem("bad_arguments", self.id, message)

    def filled(
        self, results: Mapping[str, Any], arguments: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | Failed:
        """The arguments, or others, with results in place of references."""
        try:
            return {
                key: _filled(value, results) if isinstance(value, Reference | dict | list) else value
                for key, value in (self.arguments if arguments is None else arguments).items()
            }
        except _NoSuchPart as error:
            return error.failed
        except RecursionError as error:
            return Failed("reference", f"The arguments of {self.id} are nested too deeply.", error)


class _NoSuchPart(Exception):
    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return Reference.model_validate(value)
        return {key: _typed(part) for key, part in value.items()}
    return [_typed(part) for part in value] if isinstance(value, list) else value


def references(value: Any) -> Iterator[Reference]:
    """All that stand in an argument, in order."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from references(part)


def _filled(value: Any, results: Mapping[str, Any]) -> Any:
    if isinstance(value, Reference):
        if value.call not in results:
            raise _NoSuchPart(Failed("reference", f"{value.call} has given no result."))
        found = value.of(results[value.call])
        if isinstance(found, Failed):
            raise _NoSuchPart(found)
        return found
    if isinstance(value, dict):
        return {key: _filled(part, results) for key, part in value.items()}
    return [_filled(part, results) for part in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Plan:
    """Calls with what is wrong with them. Of calls with one id the first stands."""

    calls: tuple[Call, ...]
    problems: tuple[Problem, ...] = field(default=())

    @classmethod
    def parse(cls, source: str | Sequence[Any], tools: Mapping[str, Tool]) -> Plan:
        """From JSON text, plain data or calls; ``problems`` is empty where nothing is wrong."""
        if isinstance(source, str):
            try:
                source = json.loads(source)
            except (ValueError, RecursionError) as error:
                return cls((), (Problem("malformed", None, f"The plan is not JSON: {error}."),))
        if not isinstance(source, list | tuple):
            return cls((), (Problem("malformed", None, "A plan is a list of calls."),))
        parsed = [Call.parse(each) for each in source]
        calls: dict[str, Call] = {}
        for each in parsed:
            if isinstance(each, Call):
                calls.setdefault(each.id, each)
        problems = [each for each in parsed if isinstance(each, Problem)]
        ids = Counter(each.id for each in parsed if isinstance(each, Call))
        problems += [duplicate(name) for name, count in ids.items() if count > 1]
        for call in calls.values():
            problems += call.problems(tools)
        problems += loose_ends({name: call.needs for name, call in calls.items()})
        return cls(tuple(calls.values()), tuple(problems))

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """An edge from each call to each that takes its result."""
        return _graph({call.id: call.needs for call in self.calls})

    def reduced(self) -> list[tuple[str, str]]:
        """Its edges without those that longer paths imply.

        Raises:
            ValueError: the plan has a cycle.
        """
        if not nx.is_directed_acyclic_graph(self.graph):
            raise ValueError("A plan with a cycle has no transitive reduction; see its problems.")
        return list(nx.transitive_reduction(self.graph).edges)

    def critical_path(self, seconds: Callable[[Call], float]) -> tuple[tuple[str, ...], float]:
        """The chain of calls that takes longest, and its seconds: no execution is faster.

        Raises:
            ValueError: the plan has a cycle.
        """
        by_id = {call.id: call for call in self.calls}
        ends: dict[str, float] = {}
        before: dict[str, str | None] = {}
        try:
            for name in nx.topological_sort(self.graph):
                last = max(self.graph.predecessors(name), key=ends.__getitem__, default=None)
                before[name] = last
                ends[name] = seconds(by_id[name]) + (0.0 if last is None else ends[last])
        except nx.NetworkXUnfeasible:
            raise ValueError("A plan with a cycle has no critical path; see its problems.") from None
        path: list[str] = []
        step = max(ends, key=ends.__getitem__, default=None)
        while step is not None:
            path.append(step)
            step = before[step]
        return tuple(reversed(path)), max(ends.values(), default=0.0)

    def mermaid(self) -> str:
        """The plan as a flow chart; an edge that longer paths imply is left out."""
        number = {call.id: f"n{i}" for i, call in enumerate(self.calls)}
        nodes = [f'    {number[call.id]}["{_quoted(f"{call.id}: {call.tool}")}"]' for call in self.calls]
        edges = [f"    {number[a]} --> {number[b]}" for a, b in self.reduced()]
        return "\n".join(["flowchart TD", *nodes, *edges])


def _quoted(text: str) -> str:
    """Mermaid's entities for what is not plain text to it."""
    return "".join(c if c.isalnum() or c in " :_.-" else f"#{ord(c)};" for c in text)


def _graph(needs: Mapping[str, Iterable[str]]) -> nx.DiGraph[str]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(needs)
    graph.add_edges_from((need, name) for name, each in needs.items() for need in each if need in graph)
    return graph


def duplicate(name: str) -> Problem:
    """The problem of a second call with that id."""
    return Problem("duplicate_id", name, f"Two calls have the id {name!r}; the first stands.")


def loose_ends(needs: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Of calls, by id with the calls that each waits for: references to calls that are not there, and cycles, one
    problem for each call in one."""
    found = [
        Problem("dangling_reference", name, f"{name} takes the result of {need!r}, which is no call.")
        for name, each in needs.items()
        for need in each
        if need not in needs
    ]
    graph = _graph(needs)
    for part in nx.strongly_connected_components(graph):
        if len(part) > 1 or graph.has_edge(*2 * tuple(part)):
            names = ", ".join(sorted(part)[:_NAMED])
            if len(part) > _NAMED:
                names += f" and {len(part) - _NAMED} more"
            found += [
                Problem("cycle", name, f"These wait for each other in a cycle: {names}.")
                for name in sorted(part)
            ]
    return found
