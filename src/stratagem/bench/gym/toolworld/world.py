"""What the tools of a world know. A world is a seed: every price, date and name in it follows from that."""

from __future__ import annotations

import asyncio
import datetime
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratagem.bench.gym.base import seeded
from stratagem.bench.gym.words.lexicon import GOODS, NAMES

CITIES = (
    "Oslo",
    "Rome",
    "Paris",
    "Lima",
    "Cairo",
    "Delhi",
    "Tokyo",
    "Bern",
    "Riga",
    "Quito",
    "Seoul",
    "Dakar",
)
EVENTS = ("fair", "race", "party", "play", "trip", "test", "sale", "game", "vote", "feast", "show", "market")
UNITS: Mapping[tuple[str, str], int] = {
    ("kilos", "grams"): 1000,
    ("miles", "feet"): 5280,
    ("hours", "minutes"): 60,
    ("dozens", "pieces"): 12,
    ("weeks", "days"): 7,
    ("dollars", "cents"): 100,
}


class Unknown(LookupError):
    """What is asked for is not in the world."""

    def __str__(self) -> str:
        return f"there is no {self.args[0]}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tool: its names (a world uses one), parameters with their types, result and description."""

    names: tuple[str, ...]
    parameters: tuple[tuple[str, type], ...]
    result: type
    description: str
    does: Callable[..., Any]  # (world, *arguments) -> result


@dataclass(frozen=True, slots=True)
class World:
    """A seed, and what its tools are called."""

    seed: int
    names: Mapping[str, str]  # of the tools there are, by kind

    def call(self, kind: str, *arguments: Any) -> Any:
        """What the tool of that kind gives.

        Raises:
            Unknown: it does not know an argument.
        """
        return KINDS[kind].does(self, *arguments)

    def functions(self, latency: float = 0.0) -> list[Callable[..., Any]]:
        """The tools as plain typed functions, each of which takes ``latency`` seconds."""
        return [_function(self, kind, name, latency) for kind, name in self.names.items()]

    def signatures(self) -> list[str]:
        """The tools in a line each, as a prompt lists them."""
        return [signature(name, KINDS[kind]) for kind, name in self.names.items()]

    def number(self, table: str, key: str, low: int, high: int) -> int:
        """The entry of a table."""
        return seeded("toolworld", self.seed, table, key).randint(low, high)

    def pick(self, table: str, key: str, options: tuple[str, ...]) -> str:
        """The entry of a table of names."""
        return seeded("toolworld", self.seed, table, key).choice(options)


_WORDS: Mapping[type, str] = {int: "integer", str: "string"}


def signature(name: str, kind: Kind) -> str:
    """As :func:`stratagem.tools.notation.signature` writes it for the function."""
    parameters = ", ".join(f"{key}: {_WORDS[each]}" for key, each in kind.parameters)
    return f"{name}({parameters}): {kind.description}"


def _function(world: World, kind: str, name: str, latency: float) -> Callable[..., Any]:
    made = KINDS[kind]

    async def call(**arguments: Any) -> Any:
        if latency:
            await asyncio.sleep(latency)
        return world.call(kind, *(arguments[key] for key, _ in made.parameters))

    call.__name__ = name
    call.__doc__ = made.description
    call.__annotations__ = {**dict(made.parameters), "return": made.result}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=each)
            for key, each in made.parameters
        ],
        return_annotation=made.result,
    )
    return call


def _known(what: str, key: str, keys: tuple[str, ...]) -> str:
    if key not in keys:
        raise Unknown(f"{what} {key!r}")
    return key


def _entry(table: str, what: str, keys: tuple[str, ...], low: int, high: int) -> Callable[[World, str], int]:
    return lambda world, key: world.number(table, _known(what, key, keys), low, high)


def _name(
    table: str, what: str, keys: tuple[str, ...], options: tuple[str, ...]
) -> Callable[[World, str], str]:
    def of(world: World, key: str) -> str:
        return world.pick(table, _known(what, key, keys), tuple(o for o in options if o != key))

    return of


def _distance(world: World, start: str, end: str) -> int:
    cities = sorted((_known("city", start, CITIES), _known("city", end, CITIES)))
    return 0 if start == end else world.number("distance", "/".join(cities), 10, 99)


def _convert(_: World, value: int, unit: str, to: str) -> int:
    if (unit, to) in UNITS:
        return value * UNITS[unit, to]
    raise Unknown(f"way from {unit!r} to {to!r}")


def _date(world: World, event: str) -> str:
    days = world.number("date", _known("event", event, EVENTS), 0, 364)
    return (datetime.date(2027, 1, 1) + datetime.timedelta(days)).isoformat()


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise Unknown(f"date {text!r}") from None


def _days(_: World, start: str, end: str) -> int:
    return abs((_day(end) - _day(start)).days)


def _later(_: World, date: str, days: int) -> str:
    try:
        return (_day(date) + datetime.timedelta(days)).isoformat()
    except OverflowError:
        raise Unknown(f"date {days} days after {date}") from None


_ITEM = (("item", str),)
_PERSON = (("person", str),)
_TWO = (("a", int), ("b", int))

KINDS: Mapping[str, Kind] = {
    "price": Kind(
        ("price", "cost", "price_of"), _ITEM, int, "Price in dollars.", _entry("price", "item", GOODS, 2, 40)
    ),
    "stock": Kind(
        ("stock", "in_stock", "count"),
        _ITEM,
        int,
        "How many there are.",
        _entry("stock", "item", GOODS, 2, 40),
    ),
    "weight": Kind(
        ("weight", "mass"), _ITEM, int, "Weight in kilos.", _entry("weight", "item", GOODS, 2, 20)
    ),
    "maker": Kind(("maker", "made_by"), _ITEM, str, "Who makes it.", _name("maker", "item", GOODS, NAMES)),
    "age": Kind(("age", "years"), _PERSON, int, "Age in years.", _entry("age", "person", NAMES, 5, 80)),
    "boss": Kind(
        ("boss", "boss_of"), _PERSON, str, "Whom they work for.", _name("boss", "person", NAMES, NAMES)
    ),
    "city": Kind(
        ("city", "home", "lives_in"), _PERSON, str, "Where they live.", _name("city", "person", NAMES, CITIES)
    ),
    "distance": Kind(
        ("distance", "miles"), (("start", str), ("end", str)), int, "Miles between cities.", _distance
    ),
    "date": Kind(("date", "date_of"), (("event", str),), str, "When it is.", _date),
    "days": Kind(("days", "days_between"), (("start", str), ("end", str)), int, "Days between dates.", _days),
    "later": Kind(
        ("later", "days_after"), (("date", str), ("days", int)), str, "The date days later.", _later
    ),
    "convert": Kind(
        ("convert", "in_units"),
        (("value", int), ("unit", str), ("to", str)),
        int,
        "Changes a unit.",
        _convert,
    ),
    "add": Kind(("add", "plus", "sum"), _TWO, int, "a and b together.", lambda _, a, b: a + b),
    "subtract": Kind(("subtract", "minus"), _TWO, int, "a without b.", lambda _, a, b: a - b),
    "multiply": Kind(("multiply", "times"), _TWO, int, "a times b.", lambda _, a, b: a * b),
}
