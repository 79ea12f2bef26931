"""Units of measurement as words: what is known, how words combine, what converts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from stratagem.verifiers._math.values import Unit

MAX_WORDS: Final = 8
"""A number followed by more words than this is a sentence, not a quantity."""

NOUN: Final = Unit((), Fraction(1))
CURRENCY: Final = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
SCALES: Final = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}

# base unit: words, each with how many base units it is. Exact definitions (international yard and pound).
_TABLE: Final[dict[str, dict[str, str]]] = {
    "metre": {
        "m meter metre": "1",
        "km kilometer kilometre kms": "1000",
        "cm centimeter centimetre": "1/100",
        "mm millimeter millimetre": "1/1000",
        "dm decimeter decimetre": "1/10",
        "µm um micrometer micrometre micron": "1/1000000",
        "nm nanometer nanometre": "1/1000000000",
        "in inch inches": "254/10000",
        "ft foot feet": "3048/10000",
        "yd yard": "9144/10000",
        "mi mile": "1609344/1000",
    },
    "gram": {
        "g gram gramme gm": "1",
        "kg kilogram kilo kgs": "1000",
        "mg milligram": "1/1000",
        "ton tonne": "1000000",
        "lb lbs pound": "45359237/100000",
        "oz ounce": "45359237/1600000",
    },
    "second": {
        "s sec second secs": "1",
        "ms millisecond": "1/1000",
        "min minute mins": "60",
        "h hr hour hrs": "3600",
        "day": "86400",
        "week": "604800",
    },
    "month": {"month": "1", "year yr yrs": "12", "decade": "120", "century centuries": "1200"},
    "litre": {
        "l L liter litre": "1",
        "ml mL milliliter millilitre": "1/1000",
        "cl centiliter centilitre": "1/100",
        "gal gallon": "3785411784/1000000000",
        "qt quart": "946352946/1000000000",
        "pt pint": "473176473/1000000000",
    },
    "dollar": {"dollar usd USD buck": "1", "cent ¢": "1/100"},
    "euro": {"euro eur EUR": "1"},
    "yen": {"yen": "1"},
    "rupee": {"rupee": "1"},
    "degree": {"° degree deg": "1"},
    "celsius": {"°C celsius": "1"},
    "fahrenheit": {"°F fahrenheit": "1"},
    "kelvin": {"kelvin": "1"},
    "joule": {"joule J": "1", "kJ kilojoule": "1000", "kWh": "3600000"},
    "watt": {"watt W": "1", "kW kilowatt": "1000"},
    "newton": {"newton N": "1"},
    "volt": {"volt V": "1"},
    "hertz": {"hertz Hz": "1", "kHz": "1000", "MHz": "1000000"},
    "byte": {"byte": "1", "kB kilobyte": "1000", "MB megabyte": "1000000", "GB gigabyte": "1000000000"},
}

KNOWN: Final[dict[str, Unit]] = {
    word: Unit(((base, 1),), Fraction(factor))
    for base, rows in _TABLE.items()
    for names, factor in rows.items()
    for word in names.split()
} | {
    "mph": Unit((("metre", 1), ("second", -1)), Fraction(1609344, 3600000)),
    "kph": Unit((("metre", 1), ("second", -1)), Fraction(1000, 3600)),
    "pound sterling": Unit((("pound sterling", 1),), Fraction(1)),
}

_SQUARE: Final = {"square": 2, "sq": 2, "cubic": 3}
_PER: Final = frozenset({"per", "/"})
_EACH: Final = frozenset({"a", "an", "each", "every"})


def known(word: str) -> Unit | None:
    """The unit that a word names, singular or plural, in any case where case does not distinguish."""
    for form in (word, word.lower()):
        for stem in (form, form.removesuffix("s"), form.removesuffix("es")):
            if stem and (stem == form or len(stem) > 2) and stem in KNOWN:
                return KNOWN[stem]
    return None


def combine(words: Sequence[str | int]) -> Unit | None:
    """The unit of a phrase such as ("km", "/", "h"), ("square", "cm"), ("m", "^", 2), ("red", "apples").

    Words that name no unit, and all words after them up to a "per", are a noun and do not count. None where
    the phrase is not one of a unit.
    """
    if not words or sum(isinstance(w, str) for w in words) > MAX_WORDS:
        return None
    bases: Counter[str] = Counter()
    factor = Fraction(1)
    sign, prefix, in_noun = 1, 1, False
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not isinstance(word, str) or word == "^":
            return None
        following = words[at] if at < len(words) else None
        lower = word.lower()
        if lower in _PER or (lower in _EACH and isinstance(following, str) and known(following)):
            if following is None:
                return None
            sign, in_noun = -1, False
        elif lower in _SQUARE:
            prefix = _SQUARE[lower]
        else:
            exponent = prefix
            prefix = 1
            if following == "^":
                raised = words[at + 1] if at + 1 < len(words) else None
                if not isinstance(raised, int) or not 1 <= raised <= 4:
                    return None
                exponent, at = raised, at + 2
            unit = None if in_noun else known(word)
            if unit is None:
                in_noun = True
                continue
            for base, e in unit.bases:
                bases[base] += sign * exponent * e
            factor *= unit.factor ** (sign * exponent)
    return Unit(tuple(sorted((b, e) for b, e in bases.items() if e)), factor)
