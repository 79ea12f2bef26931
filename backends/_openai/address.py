"""What a user gives to reach a server, checked at once: later it would fail in the middle of a run."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx2

from stratagem.core.errors import ConfigurationError


def checked_url(url: str) -> str:
    """Without a trailing slash. Raises ConfigurationError, which does not quote it: it may hold a password."""
    url = url.strip().rstrip("/")
    try:
        httpx2.URL(url)
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx2.InvalidURL):
        usable = False
    if not usable:
        raise ConfigurationError(
            "The base URL is no address of a server.", remedy="Write it like http://localhost:8000/v1."
        )
    return url


def checked_key(key: str) -> str:
    """Without surrounding white space. Raises ConfigurationError for what no HTTP header can hold."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            "The API key has characters that cannot be sent.", remedy="Copy it again: a key is plain ASCII."
        )
    return key
