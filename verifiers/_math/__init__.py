"""The mathematics under the `math` verifier: parse an answer, and say whether two are the same.

No text is ever evaluated: a tokenizer and a recursive-descent parser build inert trees, and every computation
on them is counted and bounded, so both functions end quickly on any string.
"""

from stratagem.verifiers._math.answer import parse
from stratagem.verifiers._math.compare import Equality, equal
from stratagem.verifiers._math.values import Number, Value

__all__ = ["Equality", "Number", "Value", "equal", "parse"]
