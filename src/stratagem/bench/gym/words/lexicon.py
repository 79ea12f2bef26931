"""Words of the word problems."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ann Ben Cal Dan Eve Fay Gus Hal Ida Jan Kim Lea Max Ned Ola Pam Ray Sue Tom Una Val Wes Zoe Amy Bob "
    "Carl Dora Emil Finn Gina Hugo Iris Jack Kate Liam Mary Nina Owen Paul Rosa Sara Theo Vera Will Yara "
    "Adam Beth Clara David Ella Frank Grace Henry Julia Karim Laura Maria Noah Olga Peter Ruth Simon Tina"
)

# (thing, verb in the third person, infinitive): "Ann has 5 apples", "How many apples does Ann have?"
HOLDINGS = (
    *(
        (thing, "has", "have")
        for thing in _words(
            "apples pens books coins cards stamps shells marbles stickers beads toys plums eggs nuts keys cups "
            "buttons ribbons candles stones tickets balloons pencils crayons puzzles hats dollars"
        )
    ),
    *((thing, "picked", "pick") for thing in _words("apples pears cherries roses lemons peaches berries")),
    *((thing, "sold", "sell") for thing in _words("cakes tickets papers lamps chairs melons rugs")),
    *((thing, "read", "read") for thing in _words("pages books stories poems letters")),
    *((thing, "baked", "bake") for thing in _words("cookies pies rolls muffins loaves")),
    *((thing, "saved", "save") for thing in _words("dollars coins points")),
    *((thing, "scored", "score") for thing in _words("points goals")),
    *((thing, "planted", "plant") for thing in _words("trees tulips bushes seeds")),
)

STORY_THINGS = _words(
    "apples pens books coins cards stamps shells marbles stickers beads toys plums eggs nuts cups buttons "
    "candles stones tickets balloons pencils crayons pears lemons cookies"
)
OTHER_THINGS = _words("cats dogs birds cousins bikes chairs plants sisters games songs")

GOODS = _words(
    "pens books lamps cups hats shirts cakes toys chairs bags kites brushes plates scarves balls games rugs "
    "mugs maps pots"
)

# (maker, product, container)
MAKERS = (
    ("A machine", "toys", "boxes"),
    ("A factory", "lamps", "crates"),
    ("A bakery", "rolls", "bags"),
    ("A printer", "cards", "packs"),
    ("A mill", "boards", "stacks"),
    ("A plant", "bottles", "crates"),
    ("A shop", "candles", "boxes"),
    ("A robot", "parts", "trays"),
)

# (place, group, thing)
PLACES = (
    ("A library", "shelves", "books"),
    ("A farm", "rows", "trees"),
    ("A hall", "rows", "seats"),
    ("A school", "rooms", "desks"),
    ("A shop", "boxes", "pens"),
    ("A garden", "beds", "roses"),
    ("A store", "crates", "melons"),
    ("A museum", "cases", "coins"),
    ("A zoo", "tanks", "fish"),
    ("A kitchen", "trays", "eggs"),
)

TRAVEL = (("walks", "walk"), ("rides", "ride"), ("drives", "drive"), ("runs", "run"), ("sails", "sail"))
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
PARTS = {2: "half", 3: "a third", 4: "a quarter"}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
