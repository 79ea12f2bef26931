"""Attempts, what they cost, and when to try again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from stratagem.backends._openai.endpoint import Attempt, Endpoint
from stratagem.backends._openai.failure import CAUGHT, Failure, classify
from stratagem.core.errors import BackendTimeoutError, BudgetExhausted
from stratagem.core.trace import Retried, emit
from stratagem.core.usage import Meter, Usage

T = TypeVar("T")

_FIRST_DELAY = 0.5  # seconds; doubles with each attempt
_LONGEST_DELAY = 30.0


class Failed(Exception):
    """An attempt failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


@dataclass(slots=True)
class Tally:
    """What one call of the backend has spent; each attempt is entered once, here and in the caller's meter."""

    meter: Meter | None
    total: Usage = field(default_factory=Usage)

    def add(self, usage: Usage) -> None:
        """Count what an attempt has spent."""
        self.total = self.total + usage
        if self.meter is not None:
            self.meter.add(usage)

    def again(self) -> bool:
        """Whether the caller affords to send once more what may have been billed."""
        return self.meter is None or self.meter.again()


@dataclass(frozen=True, slots=True)
class Sender:
    """Makes attempts at one endpoint."""

    endpoint: Endpoint
    where: str
    retries: int
    rng: Random
    longest_wait: float  # seconds; a server that wants us to wait longer is given up

    async def attempt(
        self,
        once: Callable[[Attempt], Awaitable[tuple[T, Usage]]],
        *,
        model: str,
        tally: Tally,
        lost: Callable[[], Usage],
    ) -> T:
        """One attempt. `once` gives the result and its usage; `lost` what a broken or cancelled one may cost.

        Raises Failed.
        """
        attempt = Attempt()
        try:
            result, usage = await once(attempt)
        except CAUGHT as error:
            failure = classify(error, where=self.where, model=model, sent=attempt.sent)
            if failure.maybe_billed:
                tally.add(lost())
            raise Failed(failure) from error
        except BaseException:
            if attempt.sent:
                tally.add(lost())
            raise
        tally.add(usage)
        return result

    async def whole(
        self,
        once: Callable[[Attempt], Awaitable[tuple[T, Usage]]],
        *,
        model: str,
        tally: Tally,
        lost: Callable[[], Usage],
    ) -> T:
        """As many attempts as make sense, each with a permit. Raises what :meth:`wait` raises."""
        number = 0
        while True:
            with self.endpoint.permits.claim(1) as claim:
                lease = await claim.take()
            try:
                await self.endpoint.admitted()
                return await self.attempt(once, model=model, tally=tally, lost=lost)
            except Failed as error:
                failed = error
            finally:
                lease.close()
            number += 1
            await self.wait(failed, number, tally)

    async def wait(self, failed: Failed, number: int, tally: Tally | None) -> None:
        """Waits until the next attempt may be made after `number` failed ones.

        Full jitter: uniform in [0, min(30, 0.5 * 2^(number-1))] seconds, added to what the server asked for in
        Retry-After, which holds back all other requests too.

        Raises:
            StratagemError: the failure's own error, if no further attempt makes sense or is left.
            BudgetExhausted: the attempt may have been billed and another one is not affordable.
        """
        failure = failed.failure
        asked = failure.retry_after or 0.0
        if not failure.resend or number > self.retries or asked > self.longest_wait:
            raise failure.error from failed.__cause__
        maybe_billed = failure.maybe_billed and tally is not None
        if maybe_billed and tally is not None and not tally.again():
            message = (
                f"The budget is exhausted: it does not hold a second attempt after: {failure.error.message}"
            )
            raise BudgetExhausted(message) from failure.error
        delay = asked + self.rng.uniform(0.0, min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(number - 1, 16)))
        if asked:
            self.endpoint.pause(asked)
        emit(Retried(failure.error.message, number, delay, maybe_billed))
        await asyncio.sleep(delay)

    async def ask(self, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a request that costs nothing and may be repeated at will.

        Raises StratagemError; a server that is not there is told at once, a silent one after two attempts.
        """
        if body is None:
            return await self._free(lambda attempt: self.endpoint.get(url, attempt))
        return await self._free(lambda attempt: self.endpoint.post(url, body, attempt))

    async def page(self, url: str) -> str:
        """As :meth:`ask`, of an answer that is text."""
        return await self._free(lambda attempt: self.endpoint.page(url, attempt))

    async def _free(self, send: Callable[[Attempt], Awaitable[T]]) -> T:
        async def once(attempt: Attempt) -> tuple[T, Usage]:
            return await send(attempt), Usage()

        number = 0
        while True:
            try:
                return await self.attempt(once, model="", tally=Tally(None), lost=Usage)
            except Failed as failed:
                number += 1
                late = isinstance(failed.failure.error, BackendTimeoutError)
                if failed.failure.absent or (late and number > 1):
                    raise failed.failure.error from failed.__cause__
                await self.wait(failed, number, None)
