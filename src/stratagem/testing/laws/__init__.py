"""Laws that every strategy, verifier and backend keeps, checked in one line of a test:

    from stratagem.testing import laws

    def test_mine_keeps_the_laws() -> None:
        laws.strategy(lambda: Mine(n=4))

A broken law raises an ``AssertionError`` that opens with the law's name.
"""

from stratagem.testing.laws._backend import backend
from stratagem.testing.laws._strategy import strategy
from stratagem.testing.laws._verifier import verifier

__all__ = ["backend", "strategy", "verifier"]
