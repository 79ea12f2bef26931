"""Families of questions about a world. Each drafts the calls that answer its question, and words it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stratagem.bench.gym.toolworld.world import CITIES, EVENTS, World
from stratagem.bench.gym.words.lexicon import GOODS, NAMES

IDS = "abcdefghijklmnop"
COMMUTATIVE = ("add", "multiply", "distance", "days")


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of a call of the draft."""

    call: int
    value: Any


@dataclass(frozen=True, slots=True)
class Drafted:
    """A call: what it takes and why it is made, in words of a thought."""

    kind: str
    arguments: tuple[Any, ...]
    result: Ref
    thought: str
    round: int


@dataclass
class Draft:
    """A plan that grows call by call, with the result of each."""

    rng: random.Random
    world: World
    calls: list[Drafted] = field(default_factory=list)
    round: int = 0  # of the calls to come: a later round chooses by what an earlier one gave

    def call(self, kind: str, *arguments: Any) -> Ref:
        """Add a call."""
        values = [plain(each) for each in arguments]
        result = Ref(len(self.calls), self.world.call(kind, *values))
        thought = THOUGHTS[kind].format(*values)
        self.calls.append(Drafted(kind, arguments, result, thought, self.round))
        return result

    def names(self, n: int, options: tuple[str, ...]) -> list[str]:
        """Some of the options, each once."""
        return self.rng.sample(options, n)


def plain(argument: Any) -> Any:
    """The argument, or the result that it refers to."""
    return argument.value if isinstance(argument, Ref) else argument


THOUGHTS = {
    "price": "I need the price of {0}.",
    "stock": "I need the stock of {0}.",
    "weight": "I need the weight of {0}.",
    "maker": "I need the maker of {0}.",
    "age": "I need the age of {0}.",
    "boss": "I need the boss of {0}.",
    "city": "I need the city of {0}.",
    "distance": "I need the way from {0} to {1}.",
    "date": "I need the date of the {0}.",
    "days": "I need the days from {0} to {1}.",
    "later": "I go {1} days on from {0}.",
    "convert": "I change {0} {1} to {2}.",
    "add": "I add {0} and {1}.",
    "subtract": "I take {1} from {0}.",
    "multiply": "I multiply {0} by {1}.",
}

Family = Callable[[Draft], tuple[Ref, str]]


def _sum(draft: Draft, parts: list[Ref]) -> Ref:
    total = parts[0]
    for part in parts[1:]:
        total = draft.call("add", total, part)
    return total


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def basket(draft: Draft) -> tuple[Ref, str]:
    """What several amounts of goods cost or weigh together."""
    rng = draft.rng
    kind = rng.choice(("price", "price", "weight"))
    items = draft.names(rng.choice((1, 2, 2, 3)), GOODS)
    counts = [rng.randint(2, 9) for _ in items]
    each = [draft.call(kind, item) for item in items]
    parts = [draft.call("multiply", n, one) for n, one in zip(counts, each, strict=True)]
    total = _sum(draft, parts)
    things = _listed([f"{n} {item}" for n, item in zip(counts, items, strict=True)])
    together = " together" if len(items) > 1 else ""
    if kind == "weight":
        if rng.random() < 0.5:
            return draft.call(
                "convert", total, "kilos", "grams"
            ), f"How many grams do {things} weigh{together}?"
        return total, f"How many kilos do {things} weigh{together}?"
    if rng.random() < 0.25:
        return draft.call("convert", total, "dollars", "cents"), f"How many cents do {things} cost{together}?"
    return total, rng.choice((f"What do {things} cost{together}?", f"How much must I pay for {things}?"))


def compare(draft: Draft) -> tuple[Ref, str]:
    """How much more one has of something than another."""
    rng = draft.rng
    if rng.random() < 0.35:
        a, b = sorted(draft.names(2, NAMES), key=lambda name: -draft.world.call("age", name))
        one, two = draft.call("age", a), draft.call("age", b)
        return draft.call("subtract", one, two), f"How many years older is {a} than {b}?"
    kind = rng.choice(("price", "stock", "weight"))
    a, b = sorted(draft.names(2, GOODS), key=lambda item: -draft.world.call(kind, item))
    one, two = draft.call(kind, a), draft.call(kind, b)
    asks = {
        "price": f"How much more do {a} cost than {b}?",
        "stock": f"How many more {a} than {b} are there?",
        "weight": f"How many kilos more do {a} weigh than {b}?",
    }
    return draft.call("subtract", one, two), asks[kind]


def worth(draft: Draft) -> tuple[Ref, str]:
    """What all that there is of some goods is worth, or weighs."""
    rng = draft.rng
    kind, ask = rng.choice(
        (("price", "What are all {} in stock worth?"), ("weight", "What do all {} in stock weigh?"))
    )
    items = draft.names(rng.choice((1, 1, 2)), GOODS)
    pairs = [(draft.call("stock", item), draft.call(kind, item)) for item in items]
    return _sum(draft, [draft.call("multiply", *pair) for pair in pairs]), ask.format(_listed(items))


def calendar(draft: Draft) -> tuple[Ref, str]:
    """Dates of events, and days between them."""
    rng = draft.rng
    one, two = draft.names(2, EVENTS)
    kind = rng.random()
    if kind < 0.4:
        days = draft.call("days", draft.call("date", one), draft.call("date", two))
        return days, f"How many days are there from the {one} to the {two}?"
    if kind < 0.7:
        n = rng.randint(2, 60)
        return draft.call("later", draft.call("date", one), n), f"What is the date {n} days after the {one}?"
    n = rng.randint(2, 8)
    first = draft.call("date", one)
    days = draft.call("convert", n, "weeks", "days")
    return draft.call("later", first, days), f"What is the date {n} weeks after the {one}?"


def journey(draft: Draft) -> tuple[Ref, str]:
    """How far people who must first be found live from each other."""
    rng = draft.rng

    def place() -> tuple[Ref | str, str]:
        kind = rng.random()
        if kind < 0.25:
            city = rng.choice(CITIES)
            return city, city
        if kind < 0.5:
            [person] = draft.names(1, NAMES)
            return draft.call("city", person), f"the city of {person}"
        if kind < 0.75:
            [item] = draft.names(1, GOODS)
            return draft.call("city", draft.call("maker", item)), f"the city of the maker of {item}"
        [person] = draft.names(1, NAMES)
        return draft.call("city", draft.call("boss", person)), f"the city of the boss of {person}"

    while True:
        start, end = place(), place()
        if isinstance(start[0], Ref) or isinstance(end[0], Ref):
            break
    miles = draft.call("distance", start[0], end[0])
    words = f"from {start[1]} to {end[1]}"
    if rng.random() < 0.25:
        return draft.call("convert", miles, "miles", "feet"), f"How many feet is it {words}?"
    return miles, f"How many miles is it {words}?"


def people(draft: Draft) -> tuple[Ref, str]:
    """Ages of people, some of whom must first be found."""
    rng = draft.rng
    found: list[tuple[Ref | str, str]] = []
    for name in draft.names(rng.choice((2, 2, 3)), NAMES):
        kind = rng.random()
        if kind < 0.5:
            found.append((name, name))
        elif kind < 0.8:
            found.append((draft.call("boss", name), f"the boss of {name}"))
        else:
            [item] = draft.names(1, GOODS)
            found.append((draft.call("maker", item), f"the maker of {item}"))
    total = _sum(draft, [draft.call("age", each) for each, _ in found])
    return total, f"How old are {_listed([words for _, words in found])} together?"


def choice(draft: Draft) -> tuple[Ref, str]:
    """What is asked of the cheaper or the dearer of two goods: only its price says which that is."""
    rng = draft.rng
    while True:
        items = draft.names(2, GOODS)
        one, two = (draft.world.call("price", item) for item in items)
        if one != two:
            break
    first = draft.call("price", items[0])
    draft.call("price", items[1])
    cheaper = rng.random() < 0.5
    chosen = items[(one > two) == cheaper]
    word = "cheaper" if cheaper else "dearer"
    draft.round = 1
    of = f"Take the {word} of {items[0]} and {items[1]}."
    kind = rng.random()
    if kind < 0.35:
        return draft.call("stock", chosen), f"{of} How many of them are there?"
    if kind < 0.6:
        return draft.call("age", draft.call("maker", chosen)), f"{of} How old is their maker?"
    stock = draft.call("stock", chosen)
    price = first if chosen == items[0] else Ref(1, two)
    return draft.call("multiply", stock, price), f"{of} What are all of them in stock worth?"


FAMILIES: dict[str, tuple[Family, float]] = {
    "basket": (basket, 0.24),
    "compare": (compare, 0.12),
    "worth": (worth, 0.12),
    "calendar": (calendar, 0.12),
    "journey": (journey, 0.14),
    "people": (people, 0.14),
    "choice": (choice, 0.12),
}
"""Each family with its share of the questions."""
