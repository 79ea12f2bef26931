"""What the tests of the laws share."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def broken(law: str, check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError) as caught:
        check()
    assert str(caught.value).startswith(law + ": ")
