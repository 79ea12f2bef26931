"""From an address to a backend, through the entry points of group ``stratagem.backends``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

from stratagem.core.asking import JUDGE, POLICY, REWARD
from stratagem.core.backend import Backend
from stratagem.core.errors import ConfigurationError

GROUP = "stratagem.backends"


def connect(
    url: str | Sequence[str] | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    **options: Any,
) -> Backend:
    """The shipped model in this process, or any OpenAI-compatible server.

    Args:
        url: base URL of a server, as ``http://localhost:8000/v1``; several of servers that serve the same model,
            for a pool with failover; ``None`` for the embedded engine.
        model: name on that server (default: the only one it has), or a folder with a model for the
            embedded engine (default: the model that is shipped).
        api_key: for servers that want one (default: the environment variable ``OPENAI_API_KEY``).
        options: of the backend, such as ``permits=32``, ``timeout=60.0``.
    """
    if url is None:
        if api_key is not None:
            raise ConfigurationError("The embedded model takes no api_key.", remedy="Give the server's URL.")
        return _open("embedded", folder=model, **options)
    if not isinstance(url, str):
        if model is None:
            raise ConfigurationError("Several servers need the model's name.", remedy="Give model=...")
        options = {"retries": 1} | options
        members = [connect(one, model=model, api_key=api_key, **options) for one in url]
        return _open("pooled", backends=members, name=f"pool#{model}")
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{url!r} is no URL of a server.", remedy="Write it like http://localhost:8000/v1."
        )
    return _open("openai", base_url=url, model=model, api_key=api_key, **options)


@cache
def shipped() -> Backend:
    """The shipped model, as one backend for all in this process that name none.

    It is read when it is first used, by whatever event loop, and stays until the process ends.
    """
    return connect()


def checked_roles(models: Mapping[str, Backend]) -> dict[str, Backend]:
    """The same backends by role.

    Raises:
        ConfigurationError: something is no backend, or a role is almost one of those that have a name.
    """
    for role, backend in models.items():
        if not isinstance(backend, Backend):
            raise ConfigurationError(
                f"The model of the role {role!r} is {type(backend).__name__}, no backend.",
                remedy='Give sg.connect("http://localhost:8000/v1"), or sg.connect() for the shipped model.',
            )
        for known in get_close_matches(role, (POLICY, JUDGE, REWARD), n=1, cutoff=0.8):
            if not role.startswith(known):  # further ones, as reward-safety, are as good as any name
                raise ConfigurationError(f"Nobody plays the role {role!r}.", remedy=f"Write {known!r}.")
    return dict(models)


def _open(kind: str, **options: Any) -> Backend:
    for point in entry_points(group=GROUP, name=kind):
        factory: Callable[..., Backend] = point.load()
        allowed = signature(factory).parameters
        for option in options:
            if option not in allowed:
                raise ConfigurationError(
                    f"The {kind} backend has no option {option!r}.", remedy=f"It has {', '.join(allowed)}."
                )
        return factory(**options)
    raise ConfigurationError(f"No backend {kind!r} is registered.", remedy="Reinstall stratagem.")
