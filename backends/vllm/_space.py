"""What a search may change of a profile: the ranges that its fields name, made possible on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic import BaseModel

from stratagem.backends.vllm.profiles import OWN, Method, Profile, Speculative
from stratagem.core.errors import ConfigurationError

FIELDS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "speculative",
)  # none changes what is answered
KV_TYPE = "kv_cache_dtype"  # does, and is searched on demand
NONE = "none"  # no speculation
METHODS = (
    "ngram",
    "suffix",
    *(method for method in OWN if method != "retrieval"),
)  # need no model and no file
_WIDE = 16  # a range whose end is so many times its beginning is searched by ratios


@dataclass(frozen=True, slots=True)
class Integers:
    """All from low to high, both included."""

    low: int
    high: int

    @property
    def by_ratio(self) -> bool:
        """Whether steps are ratios rather than differences."""
        return self.high >= _WIDE * self.low


@dataclass(frozen=True, slots=True)
class Choices:
    """One of them."""

    values: tuple[Any, ...]


Space = Mapping[str, Integers | Choices]


def space(
    base: Profile,
    fields: Sequence[str],
    methods: Sequence[str],
    possible: Callable[[Profile], bool],
    concurrency: int,
) -> Space:
    """The dimensions in the order in which they are chosen.

    A field that the profile leaves to vLLM is left to it. Values that are not possible here are left out, and more
    sequences in a step than are ever in flight; a range is widened to hold the profile's own value.

    Raises:
        ConfigurationError: there is no such field or method, or nothing to search.
    """
    for what, given, known in (
        ("field", fields, (*FIELDS, KV_TYPE)),
        ("method of speculation", methods, (NONE, *get_args(Method))),
    ):
        for name in given:
            if name not in known:
                raise ConfigurationError(
                    f"There is no {what} {name!r} to search.", remedy=f"Known are {', '.join(known)}."
                )
    found: dict[str, Integers | Choices] = {}
    for name in fields:
        if name == "speculative":
            found |= _speculative(base, methods, possible)
            continue
        own: Any = getattr(base, name) or ("auto" if name == KV_TYPE else None)
        if own is None:
            continue
        dimension = _dimension(Profile, name, own)
        if isinstance(dimension, Choices):
            values = tuple(v for v in dimension.values if possible(base.model_copy(update={name: v})))
            dimension = Choices(values)
        elif name == "max_num_seqs":
            dimension = Integers(dimension.low, max(own, min(dimension.high, concurrency)))
        found[name] = dimension
    if not any(_has_choice(dimension) for dimension in found.values()):
        raise ConfigurationError(
            "There is nothing to search.", remedy="Name more fields, or fix fewer by flags."
        )
    return found


def _has_choice(dimension: Integers | Choices) -> bool:
    return dimension.low < dimension.high if isinstance(dimension, Integers) else len(dimension.values) > 1


def _dimension(model: type[BaseModel], name: str, own: Any) -> Integers | Choices:
    """What the field's parameter says, with the value that it has now."""
    extra: Any = model.model_fields[name].json_schema_extra
    values = tuple(extra["search"])
    if len(values) == 2 and all(isinstance(value, int) for value in values):
        return Integers(min(values[0], own), max(values[1], own))
    return Choices(values if own in values else (own, *values))


def _speculative(
    base: Profile, methods: Sequence[str], possible: Callable[[Profile], bool]
) -> Iterator[tuple[str, Integers | Choices]]:
    own = NONE if base.speculative is None else base.speculative.method
    candidates = dict.fromkeys((own, NONE, *methods))
    allowed = [name for name in candidates if name in (own, NONE) or possible(_with(base, name, {}))]
    yield "speculative", Choices(tuple(allowed))
    how = base.speculative or Speculative()
    if how.depth is not None and any(name != NONE for name in allowed):
        yield "speculative.depth", _dimension(Speculative, "depth", how.depth)
    if how.prompt_lookup_max is not None and any(name.startswith("ngram") for name in allowed):
        name = "prompt_lookup_max"
        yield f"speculative.{name}", _dimension(Speculative, name, how.prompt_lookup_max)


def _with(base: Profile, method: str, changes: Mapping[str, Any]) -> Profile:
    """The profile with that method, by its own settings where it has it already."""
    if method == NONE:
        return base.model_copy(update={"speculative": None})
    own = base.speculative
    start = (
        own if own is not None and own.method == method else Speculative.model_validate({"method": method})
    )
    return base.model_copy(update={"speculative": start.model_copy(update=dict(changes))})


def chosen(dimensions: Space, choose: Callable[[str, Integers | Choices], Any]) -> dict[str, Any]:
    """A value for each dimension that means something beside those before it."""
    values: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        method = values.get("speculative", NONE)
        if name == "speculative.depth" and method == NONE:
            continue
        if name == "speculative.prompt_lookup_max" and not method.startswith("ngram"):
            continue
        values[name] = choose(name, dimension)
    return values


def values_of(base: Profile, dimensions: Space) -> dict[str, Any]:
    """The profile's own place in the space."""

    def own(name: str, _: Integers | Choices) -> Any:
        if name == "speculative":
            return NONE if base.speculative is None else base.speculative.method
        if name == KV_TYPE:
            return base.kv_cache_dtype or "auto"
        head, _dot, key = name.partition(".")
        return getattr(base.speculative, key) if head == "speculative" else getattr(base, name)

    return chosen(dimensions, own)


def applied(base: Profile, values: Mapping[str, Any]) -> Profile:
    """The profile at a place in the space; its steps have room for a token, and for guesses, of each sequence."""
    made = base.model_copy(update={name: value for name, value in values.items() if "specul" not in name})
    if "speculative" in values:
        nested = {name.partition(".")[2]: value for name, value in values.items() if "." in name}
        made = _with(made, values["speculative"], nested)
    tokens, seqs = made.max_num_batched_tokens, made.max_num_seqs
    if "max_num_batched_tokens" in values and tokens is not None and seqs is not None:
        each = 1 if made.speculative is None else 1 + (made.speculative.depth or 0)
        made = made.model_copy(update={"max_num_batched_tokens": max(tokens, seqs * each)})
    return made


def dumped(dimensions: Space) -> dict[str, Any]:
    """As plain data."""
    return {name: asdict(dimension) for name, dimension in dimensions.items()}


def loaded(data: Mapping[str, Any]) -> Space:
    """From what :func:`dumped` gave."""
    return {
        name: Choices(tuple(each["values"])) if "values" in each else Integers(**each)
        for name, each in data.items()
    }
