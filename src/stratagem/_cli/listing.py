"""``stratagem strategies``: what can be named on the command line and in YAML, with its parameters."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stratagem._cli.console import ACCENT, DIM, STRONG, say_error, show, write_line
from stratagem.core.component import Component
from stratagem.core.protocols import Strategy, Verifier

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of a component. ``limits`` are by pydantic's names (ge, gt, le, lt, ...)."""

    name: str
    type: str
    default: Any
    required: bool
    limits: dict[str, float]
    description: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One strategy or verifier."""

    kind: str
    summary: str
    parameters: tuple[Parameter, ...]


async def list_components(kinds: Sequence[str] = (), *, as_json: bool) -> int:
    """Print every strategy and verifier, or those of these kinds; gives the exit code.

    Raises:
        ConfigurationError: there is no such kind.
    """
    families = {"strategies": entries(Strategy), "verifiers": entries(Verifier)}
    if kinds:
        wanted = {kind.replace("-", "_") for kind in kinds}
        families = {n: [e for e in members if e.kind in wanted] for n, members in families.items()}
        for kind in wanted - {entry.kind for members in families.values() for entry in members}:
            Strategy.named(kind)  # says what there is
        families = {name: members for name, members in families.items() if members or as_json}
    if as_json:
        data = {name: [asdict(entry) for entry in members] for name, members in families.items()}
        write_line(json.dumps(data, ensure_ascii=False, indent=2))
    else:
        show(*_rendered(families))
    for error in (*Strategy.unusable().values(), *Verifier.unusable().values()):
        say_error(str(error), label="skipped")
    return 0


def entries(family: type[Strategy] | type[Verifier]) -> list[Entry]:
    """All members of a family, by kind."""
    return [
        Entry(kind, member.summary(), tuple(_parameters(member))) for kind, member in family.kinds().items()
    ]


def _parameters(member: type[Component]) -> Iterator[Parameter]:
    for name, field in member.model_fields.items():
        limits = _limits(field.metadata) | _limits(field.annotation)
        default = None if field.is_required() else _plain(field.get_default(call_default_factory=True))
        yield Parameter(
            name, _type(field.annotation), default, field.is_required(), limits, _description(field)
        )


def _description(field: FieldInfo) -> str:
    return field.description or ""


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.dump()
    return list(value) if isinstance(value, tuple) else value


def _limits(where: Any) -> dict[str, float]:
    """Limits in pydantic metadata, or inside an annotation such as ``Annotated[float, Field(ge=0)] | None``."""
    found: dict[str, float] = {}
    if isinstance(where, FieldInfo):
        found |= _limits(where.metadata)
    elif isinstance(where, list):
        for item in where:
            found |= {sign: getattr(item, sign) for sign in _SIGNS if getattr(item, sign, None) is not None}
            found |= _limits(item) if isinstance(item, FieldInfo) else {}
    elif get_origin(where) is Annotated:
        found |= _limits(list(get_args(where)[1:]))
    else:
        for part in get_args(where):
            found |= _limits(part)
    return found


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in args)
    if origin is Literal:
        return " or ".join(str(value) for value in args)
    if origin in (list, tuple):
        return f"list of {_type(args[0])}" if args else "list"
    if annotation is types.NoneType:
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return annotation.family
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _rendered(families: dict[str, list[Entry]]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for title, members in families.items():
        parts += [*([Text()] if parts else []), Text(title.capitalize(), style=f"{STRONG} underline")]
        for entry in members:
            parts += [Text(), Text.assemble((entry.kind, f"{STRONG} {ACCENT}"), "  ", entry.summary)]
            if entry.parameters:
                parts.append(Padding(_table(entry.parameters), (0, 0, 0, 2)))
    return [*parts, Text(), Text("Set one with --set n=8, or in YAML: {kind: best_of_n, n: 8}.", style=DIM)]


def _table(parameters: tuple[Parameter, ...]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=22)
    table.add_column(style=DIM, overflow="fold")
    for p in parameters:
        form = "; ".join([p.type, *(f"{_SIGNS[key]} {value:g}" for key, value in p.limits.items())])
        default = Text("required", style=STRONG) if p.required else Text(_shown(p.default))
        table.add_row(p.name, default, Text(f"{p.description} ({form})".strip()))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and "kind" in value:
        return str(value["kind"])
    if isinstance(value, str) and value and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False)
