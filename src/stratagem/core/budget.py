"""Budgets that are reserved before spending and settled after.

A call reserves the most it can cost; only when that fits into what is neither spent nor reserved, here and in
every enclosing ledger, may it start. So no number of concurrent calls can overspend. When it has ended it is
settled with what it did cost and the rest is free again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stratagem.core.errors import BudgetExhausted, ConfigurationError
from stratagem.core.usage import Usage


class Budget(BaseModel):
    """Limits; ``None`` is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None = Field(default=None, ge=0)  # prompt and completion tokens together
    calls: int | None = Field(default=None, ge=0)
    """Requests sent. A call of n samples holds one where the backend says so (``Capabilities.one_call``, as the
    embedded engine does); else n, since a server may be sent each sample on its own, until it has ended."""
    seconds: float | None = Field(default=None, ge=0)  # wall time
    money: float | None = Field(
        default=None, ge=0
    )  # by the price lists of the backends, one of which must have one

    @classmethod
    def of(cls, given: Budget | str | Mapping[str, Any] | None) -> Budget | None:
        """A budget from limits as text or by name; a budget and ``None`` pass unchanged.

        Raises:
            ConfigurationError: it is none, naming the key and what is allowed there.
        """
        if given is None or isinstance(given, Budget):
            return given
        if isinstance(given, str):
            return cls.parse(given)
        if isinstance(given, Mapping):
            return cls._limited({str(key): value for key, value in given.items()})
        raise ConfigurationError(
            f"budget={given!r} is no budget.",
            remedy='Write it like "tokens=20000,seconds=30", or sg.Budget(...).',
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``"tokens=20000,seconds=30"``."""
        pairs: dict[str, str] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            key, _, value = part.partition("=")
            if key in pairs:
                raise ConfigurationError(f"The budget names {key!r} twice.", remedy="Name it once.")
            pairs[key] = value
        return cls._limited(pairs)

    @classmethod
    def _limited(cls, pairs: Mapping[str, Any]) -> Self:
        names = ", ".join(cls.model_fields)
        for key in pairs:
            if key not in cls.model_fields:
                raise ConfigurationError(f"Unknown budget key {key!r}.", remedy=f"Use some of: {names}.")
        if not pairs:
            raise ConfigurationError("The budget is empty.", remedy=f"Use some of: {names}.")
        try:
            return cls.model_validate(pairs)
        except ValidationError as error:
            bad = error.errors()[0]
            raise ConfigurationError(
                f"Budget {bad['loc'][0]}={bad['input']!r}: {bad['msg'].lower()}.",
                remedy="Write it like tokens=20000,calls=50,seconds=30,money=0.5.",
            ) from None


@dataclass(frozen=True, slots=True)
class Amount:
    """The most that a call can cost."""

    tokens: int = 0
    calls: int = 0
    money: float = 0.0

    def __mul__(self, n: int) -> Amount:
        return Amount(self.tokens * n, self.calls * n, self.money * n)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.calls + other.calls, self.money + other.money)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.calls - other.calls, self.money - other.money)


_NOTHING = Amount()


def _charge(usage: Usage) -> Amount:
    return Amount(usage.tokens + usage.uncertain_tokens, usage.calls, usage.money)


# Whoever holds a reservation in this context must not wait for another: it might wait for itself.
_holding: ContextVar[bool] = ContextVar("stratagem_holding", default=False)

_MONEY_EPSILON = 1e-9  # sums of float prices may miss the limit by rounding


@dataclass(slots=True, eq=False)
class Reservation:
    """A hold on a ledger, to be settled exactly once (see :meth:`Ledger.reserve`)."""

    ledger: Ledger
    amount: Amount
    wanted: Amount = _NOTHING  # where the budget held less than that

    def settle(self, usage: Usage) -> None:
        """Replace the hold by what was spent. A second call settles nothing more."""
        hold, self.amount = self.amount, _NOTHING
        self.ledger._settle(hold, usage)

    def cut(self) -> None:
        """Note that what was held has been used up where more was wanted."""
        if self.wanted != _NOTHING:
            self.ledger._refuse(self.wanted)

    def extend(self, amount: Amount) -> bool:
        """Hold ``amount`` more, if it fits now."""
        if not self.ledger._fits(amount):
            self.ledger._refuse(amount)
            return False
        self.ledger._hold(amount)
        self.amount = self.amount + amount
        return True


@dataclass(slots=True, eq=False)
class _Waiter:
    ledger: Ledger
    amount: Amount
    future: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Ledger:
    """Accounts of a run against its budget, nested in those of the run around it.

    Belongs to one event loop; every method but :meth:`reserve` is synchronous and so atomic.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        parent: Ledger | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget or Budget()
        self.parent = parent
        self.spent = Usage()
        self.reserved = Amount()
        self.refusal = ""  # why something was not done, where it did not fit
        self._clock = clock
        self._waiters: deque[_Waiter] = parent._waiters if parent else deque()
        own = math.inf if self.budget.seconds is None else clock() + self.budget.seconds
        self.deadline: float = min(own, parent.deadline if parent else math.inf)

    def _chain(self) -> Iterator[Ledger]:
        ledger: Ledger | None = self
        while ledger is not None:
            yield ledger
            ledger = ledger.parent

    def _fits_here(self, amount: Amount, *, reserved: bool) -> bool:
        used = _charge(self.spent) + amount
        if reserved:
            used = used + self.reserved
        limit = self.budget
        return (
            (limit.tokens is None or used.tokens <= limit.tokens)
            and (limit.calls is None or used.calls <= limit.calls)
            and (limit.money is None or used.money <= limit.money + _MONEY_EPSILON)
        )

    def _fits(self, amount: Amount, *, reserved: bool = True) -> bool:
        """Whether the amount fits everywhere, with or without what others hold now."""
        return all(ledger._fits_here(amount, reserved=reserved) for ledger in self._chain())

    @property
    def refused(self) -> bool:
        """Whether something was not done because it did not fit."""
        return bool(self.refusal)

    @property
    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return self.deadline - self._clock()

    @property
    def time_is_up(self) -> bool:
        """Whether the deadline has come, to the rounding of a timer."""
        return self.seconds_left <= 1e-6

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit here or around depends on tokens; if not, prompts need not be counted."""
        return any(
            ledger.budget.tokens is not None or ledger.budget.money is not None for ledger in self._chain()
        )

    @property
    def limits_money(self) -> bool:
        """Whether a limit here or around is one of money."""
        return any(ledger.budget.money is not None for ledger in self._chain())

    def left(self) -> Budget:
        """What is not spent yet, here and around, with what is reserved; ``None`` where there is no limit."""
        return Budget(
            tokens=self._left("tokens"),
            calls=self._left("calls"),
            money=self._left("money"),
            seconds=None if math.isinf(self.deadline) else max(0.0, self.seconds_left),
        )

    def _left(self, key: str) -> Any:
        left = [
            getattr(ledger.budget, key) - getattr(_charge(ledger.spent), key)
            for ledger in self._chain()
            if getattr(ledger.budget, key) is not None
        ]
        return max(0, min(left)) if left else None

    def affordable(self, each: Amount, most: int, *, once: Amount = _NOTHING) -> int:
        """The largest k <= ``most`` for which ``once + k * each`` fits now; 0 if none does."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(once + each * middle):
                low = middle
            else:
                high = middle - 1
        return low

    def child(self, budget: Budget | None = None) -> Ledger:
        """A ledger inside this one."""
        return Ledger(budget, self, clock=self._clock)

    async def reserve(self, amount: Amount) -> Reservation:
        """Hold ``amount``, waiting for other calls to settle if only that makes it fit.

        Raises:
            BudgetExhausted: it would not fit even if all that is reserved came back, or the caller holds a
                reservation itself, or time is up.
        """
        if self.time_is_up:
            raise self.refuse_time()
        fits = self._fits(amount)
        if not fits and (_holding.get() or not self._fits(amount, reserved=False)):
            raise self._refuse(amount)
        if not fits or (self._waiters and not _holding.get()):
            waiter = _Waiter(self, amount)
            self._waiters.append(waiter)
            self._serve()
            try:
                await waiter.future
            except asyncio.CancelledError:
                if waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                    self._settle(amount, Usage())  # granted and cancelled in the same tick
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                    self._serve()  # it may have stood before one that fits
                raise
            return Reservation(self, amount)
        self._hold(amount)
        return Reservation(self, amount)

    def _hold(self, amount: Amount) -> None:
        for ledger in self._chain():
            ledger.reserved = ledger.reserved + amount

    def _settle(self, hold: Amount, usage: Usage) -> None:
        for ledger in self._chain():
            ledger.reserved = ledger.reserved - hold
            ledger.spent = ledger.spent + usage
        self._serve()

    def _serve(self) -> None:
        """Give those who wait what they wait for, in order: nobody is passed by who needs the same ledger."""
        taken: set[Ledger] = set()  # where somebody earlier waits
        for waiter in tuple(self._waiters):
            ledger, amount = waiter.ledger, waiter.amount
            tight = [at for at in ledger._chain() if not at._fits_here(amount, reserved=True)]
            if waiter.future.done():
                self._waiters.remove(waiter)
            elif not ledger._fits(amount, reserved=False):
                self._waiters.remove(waiter)
                waiter.future.set_exception(ledger._refuse(amount))
            elif tight or not taken.isdisjoint(ledger._chain()):
                taken.update(tight or ledger._limited())
            else:
                self._waiters.remove(waiter)
                ledger._hold(amount)
                waiter.future.set_result(None)

    def _limited(self) -> Iterator[Ledger]:
        return (ledger for ledger in self._chain() if ledger.budget != Budget())

    def refuse_time(self) -> BudgetExhausted:
        """The error for a deadline that has passed; marks the ledgers whose it is."""
        for ledger in self._chain():
            if ledger.time_is_up:
                ledger.refusal = "time is up"
        return BudgetExhausted("The budget is exhausted: time is up.")

    def _refuse(self, amount: Amount) -> BudgetExhausted:
        """The error for an amount that does not fit; marks the ledgers up to the one that is too small."""
        chain = list(self._chain())
        full = (i for i, ledger in enumerate(chain) if not ledger._fits_here(amount, reserved=True))
        tightest = next(full, 0)
        why = "; ".join(chain[tightest]._short_of(amount))
        for ledger in chain[: tightest + 1]:
            ledger.refusal = why
        return BudgetExhausted(f"The budget is exhausted: {why}.")

    def _short_of(self, amount: Amount) -> Iterator[str]:
        """Each limit of this ledger that has no room for the amount, in words."""
        spent, held = _charge(self.spent), self.reserved
        for key, limit in self.budget.model_dump(exclude_none=True, exclude={"seconds"}).items():
            used, under_way, more = (getattr(each, key) for each in (spent, held, amount))
            if used + under_way + more > limit:
                others = f"{under_way:.10g} held by calls under way, " if under_way else ""
                yield f"{key}={limit:.10g}, {used:.10g} spent, {others}the next call may need {more:.10g}"

    @property
    def idle(self) -> bool:
        """Whether nothing is reserved and nobody waits."""
        return self.reserved.tokens == 0 and self.reserved.calls == 0 and not self._waiters


@contextmanager
def holding() -> Iterator[None]:
    """Mark this context as holder of a reservation: inside, :meth:`Ledger.reserve` does not wait."""
    token = _holding.set(True)
    try:
        yield
    finally:
        _holding.reset(token)
