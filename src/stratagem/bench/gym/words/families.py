"""Families of word problems. Each takes a draft, the number of steps wanted and of distracting statements."""

from __future__ import annotations

from collections.abc import Callable

from stratagem.bench.gym.words.draft import Draft, Quantity, Rejected
from stratagem.bench.gym.words.lexicon import (
    GOODS,
    HOLDINGS,
    MAKERS,
    NAMES,
    ORDINALS,
    OTHER_THINGS,
    PARTS,
    PLACES,
    STORY_THINGS,
    TIMES,
    TRAVEL,
)

Family = Callable[[Draft, int, int], tuple[Quantity, str]]
"""(draft, steps, distractors) -> (the quantity asked for, the question)."""


SHUFFLED = 0.1
"""Share of the comparisons whose statements stand in any order: these have to be looked up, not just followed."""


def _distract(draft: Draft, sentences: list[str]) -> None:
    """Put in people to whom nobody is compared, and perhaps shuffle all statements."""
    for sentence in sentences:
        draft.statements.insert(draft.rng.randint(0, len(draft.statements)), sentence)
    if draft.rng.random() < SHUFFLED:
        draft.rng.shuffle(draft.statements)


def relations(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """People compared with each other, in any order of statements; some do not matter."""
    rng = draft.rng
    thing, verb, infinitive = rng.choice(HOLDINGS)
    names = rng.sample(NAMES, steps + distractors + 3)
    people: list[tuple[str, Quantity]] = []

    def given() -> tuple[str, Quantity]:
        person = (names.pop(), Quantity(rng.randint(3, 60)))
        draft.say(f"{person[0]} {verb} {person[1].value} {thing}.")
        people.append(person)
        return person

    def derived(base: tuple[str, Quantity]) -> tuple[str, Quantity]:
        name = names.pop()
        frame = f"{name} {verb} {{}} {thing}."
        other, amount = base
        kind = rng.choices(("more", "fewer", "times", "part", "both"), (30, 25, 18, 17, 14))[0]
        if kind == "more":
            k = rng.randint(2, 60)
            quantity = draft.step(frame, amount, "+", k)
            draft.say(
                rng.choice(
                    (
                        f"{name} {verb} {k} more {thing} than {other}.",
                        f"{name} {verb} {k} {thing} more than {other}.",
                    )
                )
            )
        elif kind == "fewer":
            k = rng.randint(2, max(2, min(60, amount.value - 1)))
            quantity = draft.step(frame, amount, "-", k)
            draft.say(f"{name} {verb} {k} fewer {thing} than {other}.")
        elif kind == "times":
            k = rng.choice((2, 2, 2, 3, 3, 4, 5))
            quantity = draft.step(frame, k, "*", amount)
            draft.say(f"{name} {verb} {TIMES[k]} as many {thing} as {other}.")
        elif kind == "part":
            k = rng.choice((2, 2, 3, 4))
            quantity = draft.step(frame, amount, "/", k)
            draft.say(f"{name} {verb} {PARTS[k]} as many {thing} as {other}.")
        else:
            second = rng.choice([person for person in people if person is not base] or [given()])
            quantity = draft.step(frame, amount, "+", second[1])
            draft.say(f"{name} {verb} as many {thing} as {other} and {second[0]} together.")
        people.append((name, quantity))
        return people[-1]

    last = given()
    if rng.random() < 0.3:
        given()
    pair = rng.random() < 0.35 and steps > 1
    for _ in range(steps - pair):
        last = derived(last)
    ending = rng.choice(("together", "more")) if pair else "one"
    if ending == "one":
        target, ask = last[1], f"How many {thing} does {last[0]} {infinitive}?"
        if verb in ("picked", "sold", "read", "baked", "saved", "scored", "planted"):
            ask = f"How many {thing} did {last[0]} {infinitive}?"
    else:
        other = rng.choice([person for person in people if person is not last])
        if ending == "together":
            target = draft.step(f"Together that is {{}} {thing}.", last[1], "+", other[1])
            ask = f"How many {thing} is that for {last[0]} and {other[0]} together?"
        else:
            target = draft.step(f"That is {{}} more {thing}.", last[1], "-", other[1])
            ask = f"How many more {thing} than {other[0]} does {last[0]} {infinitive}?"
    _distract(draft, [f"{names.pop()} {verb} {rng.randint(3, 60)} {thing}." for _ in range(distractors)])
    return target, ask


def ages(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Ages compared with each other, then some years later."""
    rng = draft.rng
    names = rng.sample(NAMES, steps + distractors + 2)
    first = names.pop()
    people = [(first, Quantity(rng.randint(4, 20)))]
    draft.say(f"{first} is {people[0][1].value} years old.")

    def derived(base: tuple[str, Quantity]) -> None:
        name, (other, age) = names.pop(), base
        kind = rng.choices(("older", "younger", "times", "part"), (38, 32, 18, 12))[0]
        frame = f"{name} is {{}} years old."
        if kind == "older":
            k = rng.randint(2, 20)
            quantity = draft.step(frame, age, "+", k)
            draft.say(f"{name} is {k} years older than {other}.")
        elif kind == "younger":
            k = rng.randint(2, max(2, min(20, age.value - 1)))
            quantity = draft.step(frame, age, "-", k)
            draft.say(f"{name} is {k} years younger than {other}.")
        elif kind == "times":
            k = rng.choice((2, 2, 3))
            quantity = draft.step(frame, k, "*", age)
            draft.say(f"{name} is {TIMES[k]} as old as {other}.")
        else:
            k = rng.choice((2, 2, 3))
            quantity = draft.step(frame, age, "/", k)
            draft.say(f"{name} is {PARTS[k]} as old as {other}.")
        if quantity.value > 99:
            raise Rejected
        people.append((name, quantity))

    later = rng.random() < 0.4 and steps > 1
    for _ in range(steps - later):
        derived(people[-1])
    name, target = people[-1]
    ask = f"How old is {name}?"
    _distract(draft, [f"{names.pop()} is {rng.randint(4, 60)} years old." for _ in range(distractors)])
    if later:
        years = rng.randint(2, 15)
        target = draft.step(f"In {years} years {name} is {{}} years old.", target, "+", years)
        ask = f"How old is {name} in {years} years?"
    return target, ask


def story(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Things that change hands over time."""
    rng = draft.rng
    thing = rng.choice(STORY_THINGS)
    x, y, *others = rng.sample(NAMES, 6)
    held = {x: Quantity(rng.randint(5, 60)), y: Quantity(rng.randint(5, 60))}
    two = rng.random() < 0.5 and steps > 1
    draft.say(f"{x} has {held[x].value} {thing}.")
    if two:
        draft.say(f"{y} has {held[y].value} {thing}.")
    noise = [
        rng.choice(
            (
                f"{rng.choice(others)} has {rng.randint(2, 60)} {thing}.",
                f"{rng.choice((x, others[0]))} has {rng.randint(2, 30)} {rng.choice(OTHER_THINGS)}.",
            )
        )
        for _ in range(distractors)
    ]
    sums = two and rng.random() < 0.4

    changed: dict[str, int] = {}

    def change(name: str, op: str, k: Quantity | int) -> None:
        changed[name] = len(draft.steps)
        held[name] = draft.step(f"Now {name} has {{}} {thing}.", held[name], op, k)

    while len(draft.steps) < steps - sums:
        room = steps - sums - len(draft.steps)
        who = rng.choice((x, y)) if two else x
        had = held[who].value
        kind = rng.choices(("gain", "lose", "times", "part", "move"), (30, 30, 10, 15, 25 if two else 0))[0]
        k = rng.randint(2, max(2, min(60, had - 1)))
        if kind == "gain":
            k = rng.randint(2, 60)
            verb = rng.choice(("buys", "finds", "gets", "wins"))
            draft.say(f"{who} {verb} {k} more {thing}.")
            change(who, "+", k)
        elif kind == "lose":
            tail = rng.choice(
                (f"gives {k} {thing} to {rng.choice(others)}", f"loses {k} {thing}", f"sells {k} {thing}")
            )
            draft.say(f"{who} {tail}.")
            change(who, "-", k)
        elif kind == "times":
            k = rng.choice((2, 2, 3))
            draft.say(f"Then {who} gets {'twice' if k == 2 else 'three times'} as many {thing} as before.")
            change(who, "*", k)
        elif kind == "part":
            k = rng.choice((2, 2, 3, 4))
            friends = {2: "a friend", 3: "2 friends", 4: "3 friends"}[k]
            draft.say(f"{who} splits the {thing} equally with {friends}.")
            change(who, "/", k)
        elif room >= 2:
            other = y if who == x else x
            draft.say(f"{who} gives {k} {thing} to {other}.")
            change(who, "-", k)
            change(other, "+", k)
    for sentence in noise:
        draft.statements.insert(rng.randint(1, len(draft.statements)), sentence)
    if sums:
        target = draft.step(f"Together that is {{}} {thing}.", held[x], "+", held[y])
        return target, f"How many {thing} do {x} and {y} have together?"
    who = max((x, y), key=lambda name: changed.get(name, -1))
    return held[who], f"How many {thing} does {who} have now?"


def shopping(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Prices and quantities, sums, coupons, change, shares."""
    rng = draft.rng
    who = rng.choice(NAMES)
    tail = rng.choice(("none", "change", "share", "coupon", "coupon+change", "fee"))
    extra = {"none": 0, "coupon+change": 2}.get(tail, 1)
    body = steps - extra
    if body < 1:
        raise Rejected
    # `body` steps: one product for each item bought in number, and one sum for each item after the first.
    items = (body + 1) // 2 if rng.random() < 0.75 else rng.randint((body + 2) // 2, max(2, body // 2 + 2))
    products = body - (items - 1)
    if not 0 <= products <= items or items > 5:
        raise Rejected
    goods = rng.sample(GOODS, items + distractors)
    listed = rng.random() < 0.5
    many = set(rng.sample(range(items), products))
    bought: list[str] = []
    prices: list[str] = []
    costs: list[Quantity] = []
    for index, good in enumerate(goods):
        price = rng.randint(2, 25)
        prices.append(f"One of the {good} costs {price} dollars.")
        if index >= items:
            continue
        count = rng.randint(2, 12)
        if index in many:
            bought.append(f"{count} {good}" + ("" if listed else f" at {price} dollars each"))
            costs.append(draft.step(f"The {good} cost {{}} dollars.", count, "*", price))
        else:
            price = rng.randint(5, 90)
            bought.append(f"{good} for {price} dollars")
            prices.pop()
            costs.append(Quantity(price))
    if not listed:
        prices = prices[len(prices) - distractors :] if distractors else []
    rng.shuffle(prices)
    total = costs[0]
    for cost in costs[1:]:
        total = draft.step("So far that is {} dollars.", total, "+", cost)
    parts = bought[0] if items == 1 else ", ".join(bought[:-1]) + " and " + bought[-1]
    draft.say(*prices, f"{who} buys {parts}.")
    ask = f"How many dollars does {who} pay?"
    if tail.startswith("coupon"):
        k = rng.randint(2, 20)
        draft.say(f"A coupon takes {k} dollars off.")
        total = draft.step("After the coupon it is {} dollars.", total, "-", k)
    if tail == "fee":
        k = rng.randint(2, 20)
        draft.say(f"Delivery costs {k} dollars.")
        total = draft.step("With delivery it is {} dollars.", total, "+", k)
    if tail.endswith("change"):
        paid = rng.choice([note for note in range(20, 1000, 10) if note > total.value][:6] or [0])
        draft.say(f"{who} has {paid} dollars.")
        total = draft.step(f"{who} has {{}} dollars left.", paid, "-", total)
        ask = f"How many dollars does {who} have left?"
    if tail == "share":
        friends = [k for k in (2, 3, 4, 5, 6) if total.value % k == 0]
        if not friends:
            raise Rejected
        k = rng.choice(friends)
        draft.say(f"{k} friends share the cost equally.")
        total = draft.step("Each pays {} dollars.", total, "/", k)
        ask = "How many dollars does each friend pay?"
    return total, ask


def production(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Rates over hours and days, then what is broken, added, sold and packed."""
    rng = draft.rng
    maker, product, box = rng.choice(MAKERS)
    rate, hours = rng.randint(2, 15), rng.randint(2, 9)
    draft.say(f"{maker} makes {rate} {product} an hour.")
    noise = [
        rng.choice(
            (
                f"It needs {rng.randint(2, 30)} workers.",
                f"It is {rng.randint(2, 40)} years old.",
                f"Another one makes {rng.randint(2, 30)} {product} an hour.",
                f"Each of the {product} costs {rng.randint(2, 30)} dollars.",
            )
        )
        for _ in range(distractors)
    ]
    if steps > 1 and rng.random() < 0.5:
        days = rng.randint(2, 6)
        draft.say(f"It works {hours} hours a day for {days} days.")
        daily = draft.step(f"It makes {{}} {product} a day.", rate, "*", hours)
        total = draft.step(f"It makes {{}} {product} in all.", daily, "*", days)
    else:
        draft.say(f"It works {hours} hours.")
        total = draft.step(f"It makes {{}} {product} in all.", rate, "*", hours)
    ask = f"How many {product} does it make?"
    while len(draft.steps) < steps:
        left = steps - len(draft.steps)
        kind = rng.choice(("broken", "old", "sold", "boxes" if left == 1 else "sold"))
        k = rng.randint(2, max(2, min(60, total.value - 1)))
        if kind == "boxes":
            sizes = [size for size in range(2, 13) if total.value % size == 0]
            if not sizes:
                raise Rejected
            k = rng.choice(sizes)
            draft.say(f"The {product} are packed in {box} of {k}.")
            total = draft.step(f"They fill {{}} {box}.", total, "/", k)
            ask = f"How many {box} do they fill?"
            break
        if kind == "old":
            k = rng.randint(2, 60)
            draft.say(f"{k} {product} from last week are added.")
            total = draft.step(f"There are {{}} {product}.", total, "+", k)
        else:
            draft.say(f"{k} of the {product} are {kind}." if kind == "sold" else f"{k} of them are broken.")
            total = draft.step(f"There are {{}} {product}.", total, "-", k)
        ask = f"How many {product} are there then?"
    for sentence in noise:
        draft.statements.insert(rng.randint(1, len(draft.statements)), sentence)
    return total, ask


def travel(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Legs of a trip at different speeds, and what is left of it."""
    rng = draft.rng
    who = rng.choice(NAMES)
    verb, _ = rng.choice(TRAVEL)
    rest = steps % 2 == 0
    legs = (steps + 1 - rest) // 2
    if legs > len(ORDINALS):
        raise Rejected
    total: Quantity | None = None
    for index in range(legs):
        speed, hours = rng.randint(2, 20), rng.randint(2, 9)
        start = f"{who} {verb}" if index == 0 else f"Then {who} {rng.choice(TRAVEL)[0]}"
        draft.say(f"{start} {speed} miles an hour for {hours} hours.")
        leg = draft.step(f"The {ORDINALS[index]} part is {{}} miles.", speed, "*", hours)
        total = leg if total is None else draft.step("So far that is {} miles.", total, "+", leg)
    assert total is not None
    for _ in range(distractors):
        sentence = rng.choice(
            (
                f"{who} rests for {rng.randint(2, 9)} hours.",
                f"The bag weighs {rng.randint(2, 20)} pounds.",
                f"{who} is {rng.randint(12, 60)} years old.",
            )
        )
        draft.statements.insert(rng.randint(1, len(draft.statements)), sentence)
    if not rest:
        return total, f"How many miles is that for {who}?"
    length = total.value + rng.randint(2, 99)
    draft.say(f"The trip is {length} miles long.")
    return draft.step("There are {} miles left.", length, "-", total), "How many miles are left?"


def places(draft: Draft, steps: int, distractors: int) -> tuple[Quantity, str]:
    """Groups of equal size, then things that come and go."""
    rng = draft.rng
    place, group, thing = rng.choice(PLACES)
    groups, size = rng.randint(2, 12), rng.randint(3, 20)
    draft.say(f"{place} has {groups} {group} with {size} {thing} each.")
    total = draft.step(f"There are {{}} {thing}.", groups, "*", size)
    ask = f"How many {thing} are there?"
    while len(draft.steps) < steps:
        left = steps - len(draft.steps)
        kind = rng.choices(("come", "go", "groups", "share"), (3, 3, 2 if left > 1 else 0, left == 1))[0]
        if kind == "come":
            k = rng.randint(2, 60)
            draft.say(f"{k} more {thing} come in.")
            total = draft.step(f"There are {{}} {thing}.", total, "+", k)
        elif kind == "go":
            k = rng.randint(2, max(2, min(60, total.value - 1)))
            draft.say(f"{k} {thing} are taken away.")
            total = draft.step(f"There are {{}} {thing}.", total, "-", k)
        elif kind == "groups":
            more, each = rng.randint(2, 6), rng.randint(3, 20)
            draft.say(f"Then {more} new {group} with {each} {thing} each are added.")
            new = draft.step(f"The new {group} have {{}} {thing}.", more, "*", each)
            total = draft.step(f"There are {{}} {thing}.", total, "+", new)
        else:
            parts = [k for k in range(2, 7) if total.value % k == 0]
            if not parts:
                raise Rejected
            k = rng.choice(parts)
            draft.say(f"The {thing} are shared equally among {k} people.")
            total = draft.step(f"Each gets {{}} {thing}.", total, "/", k)
            ask = f"How many {thing} does each of them get?"
    for _ in range(distractors):
        sentence = rng.choice(
            (
                f"It is open {rng.randint(2, 12)} hours a day.",
                f"It has {rng.randint(2, 20)} windows.",
                f"{rng.randint(2, 40)} people work there.",
            )
        )
        draft.statements.insert(rng.randint(1, len(draft.statements)), sentence)
    return total, ask


FAMILIES: dict[str, tuple[Family, float]] = {
    "relations": (relations, 0.1),
    "ages": (ages, 0.1),
    "story": (story, 0.22),
    "shopping": (shopping, 0.22),
    "production": (production, 0.12),
    "travel": (travel, 0.1),
    "places": (places, 0.14),
}
"""Each family with its share of the problems."""
