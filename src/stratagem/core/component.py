"""Named, configurable parts: strategies and verifiers that load from and dump to plain data.

A component is a frozen pydantic model; its fields are its hyper-parameters. ``kind`` names its class in YAML
and JSON. A third party subclasses and names the class under an entry point of the family's group; within one
process the class statement alone is enough.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic.config import JsonDict
from pydantic_core import CoreSchema, core_schema

from stratagem.core.errors import ConfigurationError, UnknownKindError


def parameter(default: Any, description: str, *, search: tuple[Any, ...] | None = None, **limits: Any) -> Any:
    """A hyper-parameter: its default, one line of help, limits (``ge``, ``le``, ...), and the values or the
    (low, high) range that an architecture search tries."""
    extra: JsonDict | None = None if search is None else {"search": list(search)}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Component(BaseModel):
    """Base of the families (Strategy, Verifier); a family sets ``family``, a member sets ``kind``."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    family: ClassVar[str] = ""  # what errors call it, and the entry-point group stratagem.<plural>
    group: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    _members: ClassVar[dict[str, type[Component]]]

    def __init__(self, /, **data: Any) -> None:
        """Raises ConfigurationError: naming the key and what is allowed there."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            told = "; ".join(_explain(type(self), each) for each in error.errors())
            raise ConfigurationError(f"{self.kind or type(self).__name__}: {told}.") from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            cls._members = {}
        elif "kind" in cls.__dict__:
            cls._members[cls.kind] = cls

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Every known member of the family by kind, imported from its entry point where need be.

        Left out is what cannot be imported: :meth:`unusable` says why.
        """
        cls.unusable()
        return dict(sorted(cls._members.items()))  # type: ignore[arg-type]

    @classmethod
    def unusable(cls) -> dict[str, ConfigurationError]:
        """What is wrong with the family's entry points that cannot be used, by kind."""
        found: dict[str, ConfigurationError] = {}
        for point in entry_points(group=cls.group):
            if point.name not in cls._members:
                try:
                    cls._import(point.name)
                except ConfigurationError as error:
                    found[point.name] = error
        return found

    @classmethod
    def named(cls, kind: str) -> type[Self]:
        """The member called ``kind`` (``best-of-n`` and ``best_of_n`` are the same)."""
        kind = kind.replace("-", "_")
        if kind not in cls._members:
            cls._import(kind)
        if kind not in cls._members:
            points = {p.name for p in entry_points(group=cls.group)} | set(cls._members)
            near = "".join(f"Did you mean {each}? " for each in get_close_matches(kind, points, n=1))
            remedy = f"{near}Known are: {', '.join(sorted(points))}."
            raise UnknownKindError(f"Unknown {cls.family} {kind!r}.", remedy=remedy)
        return cls._members[kind]  # type: ignore[return-value]

    @classmethod
    def _import(cls, kind: str) -> None:
        for point in entry_points(group=cls.group, name=kind):
            try:
                member = point.load()
            except Exception as error:  # a plug-in's module may do whatever it likes
                raise ConfigurationError(
                    f"The {cls.family} {kind!r} ({point.value}) cannot be imported: {error}."
                ) from error
            if not (isinstance(member, type) and issubclass(member, Component) and member.group == cls.group):
                raise ConfigurationError(f"Entry point {point.name!r} = {point.value} is no {cls.family}.")
            cls._members[kind] = member

    @classmethod
    def load(cls, source: Mapping[str, Any] | str | Path) -> Self:
        """From plain data, a ``.yaml``/``.yml``/``.json`` file, or a kind alone (``"best_of_n"``).

        Raises:
            ConfigurationError: naming the key and what is allowed there.
        """
        if isinstance(source, Path) or (isinstance(source, str) and Path(source).suffix in SUFFIXES):
            return cls._build(_read(Path(source)), where=str(source))
        if isinstance(source, str):
            source = {"kind": source}
        return cls._build(source, where=cls.family)

    @classmethod
    def _build(cls, data: Any, *, where: str, path: tuple[str, ...] = ()) -> Self:
        """From data that stands in ``where`` under the keys of ``path``."""
        if isinstance(data, cls):
            return data
        place = f"{where}: {'.'.join(path)}" if path else where
        if isinstance(data, str):
            data = {"kind": data}
        if isinstance(data, type) and issubclass(data, Component):
            raise ConfigurationError(
                f"In {place}: {data.__name__} is a class.", remedy=f"Make one: {data.__name__}()."
            )
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            raise ConfigurationError(
                f"In {place}: a {cls.family} is a mapping with a key 'kind', not {_short(data)}.",
                remedy="For example: {kind: " + next(iter(cls.kinds()), "...") + "}.",
            )
        try:
            member = cls.named(data["kind"])
        except ConfigurationError as error:
            if place == cls.family:
                raise
            raise type(error)(f"In {place}: {error.message}", remedy=error.remedy) from error
        fields = {
            str(key): member._with_parts(key, value, where, (*path, str(key)))
            for key, value in data.items()
            if key != "kind"
        }
        try:
            return member(**fields)
        except ConfigurationError as error:
            raise type(error)(f"In {place}: {error.message}", remedy=error.remedy) from None

    @classmethod
    def _with_parts(cls, key: Any, value: Any, where: str, path: tuple[str, ...]) -> Any:
        """A field's data with the components in it built, so that what is wrong with one is said with its path."""
        field = cls.model_fields.get(key)
        family = None if field is None else _family(field.annotation)
        if family is None or value is None:
            return value
        if isinstance(value, list | tuple):
            return [family._build(item, where=where, path=(*path, str(i))) for i, item in enumerate(value)]
        return family._build(value, where=where, path=path)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        types = set(_types(cls.model_fields[info.field_name or ""].annotation))
        if bool not in types and not types.isdisjoint({int, float}):
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, bool):  # which pydantic takes for 0 or 1
                    raise ValueError("input should be a number, not true or false")
        return value

    def dump(self) -> dict[str, Any]:
        """Plain data that :meth:`load` takes: ``kind`` and every field."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if "family" not in cls.__dict__ or not cls.family:
            return schema
        # A field typed by the family takes any member, as an object or as data, and dumps it whole.
        return core_schema.no_info_plain_validator_function(
            lambda data: cls._build(data, where=cls.family),
            json_schema_input_schema=core_schema.dict_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda member: member.dump()),
        )

    @classmethod
    def summary(cls) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]


SUFFIXES = {".yaml", ".yml", ".json"}  # of the files that load() reads


def _types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


def _family(annotation: Any) -> type[Component] | None:
    """The family whose members a field of that type holds, alone or in a sequence."""
    found = (t for t in _types(annotation) if isinstance(t, type) and issubclass(t, Component))
    return next((t for t in found if t.family and "family" in t.__dict__), None)


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _once_each(path, pairs))
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path}:{error.lineno}: not JSON: {error.msg}.") from None
        except RecursionError:
            raise ConfigurationError(f"{path} is nested too deeply.") from None
    import yaml

    try:
        return parse_yaml(text)
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply.") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigurationError(f"{path}:{line}: not YAML: {problem}.") from None


def _once_each(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ConfigurationError(f"{path}: the key {twice!r} is there twice.")
    return data


def parse_yaml(text: str) -> Any:
    """Plain data from YAML. A key that stands twice in a mapping is an error, as YAML has it.

    Raises:
        yaml.YAMLError: with the line where it knows it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        problem = f"the key {key.value!r} is there twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    keys.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _explain(member: type[Component], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed are {', '.join(sorted(member.model_fields)) or 'none'}"
    message = error["msg"].removeprefix("Value error, ")
    said = message[0].lower() + message[1:]
    return f"{key} = {_short(error['input'])}: {said}" if key else said.rstrip(".")
