"""Addresses of servers, as messages may show them."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def public(url: str) -> str:
    """The URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
