"""Every error of Stratagem, typed by the boundary it crossed.

::

    StratagemError                    .remedy says what to do
    |-- ConfigurationError            what the caller wrote: a name, a key, a value, a file
    |   |-- UnknownKindError          no strategy, verifier or skill of that name
    |   |-- DataError                 a data file that cannot be read as what it should be
    |   `-- MissingExtraError         an optional library is not installed
    |-- BackendError                  the model's side
    |   |-- UnavailableError          no server there, or it refuses connections
    |   |-- BackendTimeoutError       it answered too late
    |   |-- RateLimitedError          it asked us to slow down, more often than we may retry
    |   |-- ProtocolError             it answered something that is not the protocol
    |   `-- RejectedError             it understood the request and refused it
    |       |-- ContextLengthError    prompt and answer do not fit the model
    |       `-- UnsupportedError      it cannot do what was asked (see its capabilities)
    |-- VerifierError                 a verifier broke, or gave a score outside [0, 1]
    |-- StrategyError                 a strategy broke, or ended with nothing to answer
    |-- StoreError                    a journal, cache or checkpoint cannot be read or written
    `-- BudgetExhausted               control flow: nothing more may be spent

Plug-ins raise plain Python; :func:`boundary` turns what crosses into the error of that boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StratagemError(Exception):
    """Base of all errors. ``str(error)`` names the thing and, where there is one, the remedy."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy


class ConfigurationError(StratagemError):
    """What the caller wrote cannot be used."""


class UnknownKindError(ConfigurationError):
    """No component of that kind is registered."""


class DataError(ConfigurationError):
    """A data file cannot be read as what it should be."""


class MissingExtraError(ConfigurationError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed.", remedy=f"Run: pip install 'stratagem[{extra}]'")


class BackendError(StratagemError):
    """A model call failed."""


class UnavailableError(BackendError):
    """No server answers there."""


class BackendTimeoutError(BackendError):
    """The server answered too late."""


class RateLimitedError(BackendError):
    """The server asked to slow down more often than we may retry."""


class ProtocolError(BackendError):
    """The server answered something that is not the protocol."""


class RejectedError(BackendError):
    """The server understood the request and refused it."""


class ContextLengthError(RejectedError):
    """Prompt and answer do not fit the model's context."""


class UnsupportedError(RejectedError):
    """The backend cannot do what was asked."""


class VerifierError(StratagemError):
    """A verifier broke, or gave a score outside [0, 1]."""


class StrategyError(StratagemError):
    """A strategy broke, or ended with nothing to answer."""


class StoreError(StratagemError):
    """A journal, cache or checkpoint cannot be read or written."""


class BudgetExhausted(StratagemError):
    """Nothing more may be spent; caught by whoever set the budget."""


def root_cause(error: BaseException) -> BaseException:
    """The error in a (nested) group that explains the others: a failure before an exhausted budget."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(e) for e in error.exceptions]
    return next((e for e in causes if not isinstance(e, BudgetExhausted)), causes[0])


@contextmanager
def boundary(error: type[StratagemError], what: str) -> Iterator[None]:
    """Turn a plain exception raised inside into ``error``; Stratagem's own errors pass unchanged.

    >>> with boundary(VerifierError, "verifier 'mine'"):
    ...     raise ValueError("no such unit")
    Traceback (most recent call last):
    stratagem.core.errors.VerifierError: verifier 'mine' failed: ValueError: no such unit
    """
    try:
        yield
    except StratagemError:
        raise
    except Exception as raised:
        cause = root_cause(raised)  # a plug-in's own task group raises groups
        if isinstance(cause, StratagemError):
            raise cause from raised
        raise error(f"{what} failed: {type(cause).__name__}: {cause}") from raised
