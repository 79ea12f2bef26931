"""From what stands on the command line to objects, with errors that name it."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import stratagem as sg
from stratagem.core.asking import POLICY, REWARD
from stratagem.core.backend import Backend
from stratagem.core.component import SUFFIXES, Component, parse_yaml
from stratagem.core.errors import ConfigurationError, DataError
from stratagem.core.protocols import Strategy
from stratagem.core.usage import Prices

_NONE = {"none", "null"}


def read_question(argument: str) -> str:
    """The question itself, or standard input for ``-``.

    Raises:
        DataError: it is not UTF-8.
        ConfigurationError: it is empty.
    """
    if argument == "-":
        data, where = sys.stdin.buffer.read(), "standard input"
    else:
        data, where = os.fsencode(argument), "the question"
    try:
        question = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where[0].upper()}{where[1:]} is not UTF-8 text (byte {error.start}).",
            remedy="Convert it, for example with: iconv -t utf-8.",
        ) from None
    if not question:
        raise ConfigurationError(
            f"The question is empty ({where}).",
            remedy='Write it like: stratagem solve "What is 2 + 3?", or - to read standard input.',
        )
    return question


def connect(
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    price_in: float | None = None,
    price_out: float | None = None,
    *,
    others: Mapping[str, Backend] | None = None,
) -> Backend:
    """The backend that the model options name; prices are per million tokens of prompt and of completion.

    Args:
        others: backends of other roles, which may be what a key is for.

    Raises:
        ConfigurationError: the environment variable is not set, or an option cannot be used.
    """
    import stratagem as sg

    priced: dict[str, Any] = {}
    if price_in is not None or price_out is not None:
        if base_url is None:
            raise ConfigurationError(
                "The shipped model costs no money.",
                remedy="Leave out --price-in and --price-out, or give --base-url.",
            )
        priced["prices"] = Prices(price_in or 0.0, price_out or 0.0)
    if api_key_env is None or (others and base_url is None):
        return sg.connect(base_url, model=model, **priced)
    key = os.environ.get(api_key_env)
    if not key:
        raise ConfigurationError(
            f"The environment variable {api_key_env} is not set.", remedy=f"Run: export {api_key_env}=..."
        )
    if base_url is None:
        raise ConfigurationError(
            "The shipped model takes no API key.", remedy="Leave out --api-key-env, or give --base-url."
        )
    return sg.connect(base_url, model=model, api_key=key, **priced)


def connect_roles(roles: Sequence[str], api_key_env: str | None) -> dict[str, Backend]:
    """The backends that ``--role ROLE=URL#MODEL`` name, by role.

    Raises:
        ConfigurationError: one is of another form, or a role stands twice.
    """
    from stratagem.backends.vllm.pooling import PoolingBackend

    found: dict[str, Backend] = {}
    for each in roles:
        role, _, where = each.partition("=")
        url, _, model = where.partition("#")
        if not role.strip() or not url.strip():
            raise ConfigurationError(
                f"--role {each!r} is not ROLE=URL.", remedy="Write it like judge=http://localhost:8001/v1."
            )
        if role == POLICY or role in found:
            twice = "is what --base-url and --model name" if role == POLICY else "stands twice"
            raise ConfigurationError(f"--role {role} {twice}.", remedy="Name each role once.")
        if role == REWARD or role.startswith(f"{REWARD}-"):
            key = None if api_key_env is None else os.environ.get(api_key_env)
            found[role] = PoolingBackend(url, model or None, key)
        else:
            found[role] = connect(url, model or None, api_key_env)
    return found


async def using(
    llm: Backend, command: Callable[[Backend], Awaitable[int]], others: Mapping[str, Backend] | None = None
) -> int:
    """What ``command`` gives; the backends are closed after it, however it ends."""
    async with AsyncExitStack() as stack:
        for backend in (llm, *(others or {}).values()):
            stack.push_async_callback(backend.aclose)
        return await command(llm)


def config_file(name: str) -> str:
    """What ``--config`` names.

    Raises:
        ConfigurationError: it can be no file with a strategy.
    """
    if Path(name).suffix not in SUFFIXES or Path(name).is_dir():
        raise ConfigurationError(
            f"--config {name!r} is no file that ends in .yaml, .yml or .json.",
            remedy="Name a file with a strategy; a strategy by its name goes after --strategy.",
        )
    return name


def load_tools(spec: str) -> sg.Toolbox:
    """The tools that ``module:name`` names; the module may lie in the current folder.

    Raises:
        ConfigurationError: there is no such module or name, or it is no tool, list of tools or toolbox.
    """
    from stratagem.tools.tool import Tool
    from stratagem.tools.toolbox import Toolbox

    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise ConfigurationError(f"--tools {spec!r} is not MODULE:NAME.", remedy="Write it like shop:tools.")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"--tools {spec}: {error}.") from None
    finally:
        sys.path.remove(os.getcwd())
    if isinstance(found, Toolbox):
        return found
    listed = list(found) if isinstance(found, list | tuple) else [found]
    if not all(isinstance(each, Tool) or callable(each) for each in listed):
        raise ConfigurationError(
            f"--tools {spec} is {type(found).__name__}.",
            remedy="Name a tool, a list of tools, or a sg.Toolbox.",
        )
    return Toolbox(listed)


def build_strategy(source: str, settings: Sequence[str] = ()) -> Strategy:
    """A strategy by name or from a file, with ``key=value`` settings over it.

    A value is typed by the field it is for; ``none`` empties an optional field; ``{...}`` and ``[...]`` are
    YAML. ``verifier.role=judge`` sets a field of a part.

    Raises:
        ConfigurationError: naming the key and what is allowed there.
    """
    data = Strategy.load(source).dump() if Path(source).suffix in SUFFIXES else {"kind": source}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip("."):
            raise ConfigurationError(
                f"--set {setting!r} is not KEY=VALUE.", remedy="Write it like --set n=16."
            )
        _put(data, Strategy.named(data["kind"]), key.strip().split("."), value)
    return Strategy.load(data)


def _put(data: dict[str, Any], member: type[Component], path: Sequence[str], value: str) -> None:
    name, *rest = path
    field = member.model_fields.get(name)
    if not rest:
        data[name] = _decode(value, field.annotation if field else None)
        return
    part = data.get(name)
    if part is None and field is not None:
        part = field.get_default(call_default_factory=True)
    part = part.dump() if isinstance(part, Component) else {"kind": part} if isinstance(part, str) else part
    if not isinstance(part, dict) or "kind" not in part:
        raise ConfigurationError(
            f"--set {'.'.join(path)}: {member.kind} has no part {name!r} to set it on.",
            remedy=f"Name the part first, like --set {name}=KIND.",
        )
    family = _family(member, name, part)
    _put(part, family.named(part["kind"]), rest, value)
    data[name] = part


def _family(member: type[Component], name: str, part: Mapping[str, Any]) -> type[Component]:
    """The family (strategy, verifier) that a field's type names."""
    annotation = member.model_fields[name].annotation if name in member.model_fields else None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Component):
            return candidate
    raise ConfigurationError(f"{member.kind} has no part {name!r}; it was given {part['kind']!r}.")


def _decode(value: str, annotation: Any) -> Any:
    if value.lower() in _NONE and NoneType in get_args(annotation):
        return None
    if value[:1] in ("{", "["):
        import yaml

        try:
            return parse_yaml(value)
        except yaml.YAMLError:
            raise ConfigurationError(
                f"{value!r} is not YAML.", remedy="Close its brackets, and name each key once."
            ) from None
    return value  # pydantic types it by the field
