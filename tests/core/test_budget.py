"""Budgets: reserved before, settled after, never overspent; nested, waiting in order, cancellable."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from stratagem.core.budget import Amount, Budget, Ledger, Reservation, holding
from stratagem.core.errors import BudgetExhausted, ConfigurationError
from stratagem.core.usage import Usage
from stratagem.testing.loops import run


def tokens(n: int) -> Amount:
    return Amount(tokens=n, calls=1)


def used(n: int) -> Usage:
    return Usage(completion_tokens=n, calls=1)


def test_64_concurrent_calls_never_settle_over_their_limit() -> None:
    async def main(seed: int) -> None:
        rng = random.Random(seed)
        ledger = Ledger(Budget(tokens=8000))
        under_way = peak = 0

        async def call() -> bool:
            nonlocal under_way, peak
            try:
                reservation = await ledger.reserve(tokens(1000))
            except BudgetExhausted:
                return False
            under_way += 1
            peak = max(peak, under_way)
            await asyncio.sleep(rng.random())
            under_way -= 1
            reservation.settle(used(rng.randint(1, 1000)))
            assert ledger.spent.tokens + ledger.reserved.tokens <= 8000
            return True

        done = await asyncio.gather(*(call() for _ in range(64)))
        assert peak == 8
        assert sum(done) > 8  # what the cheap ones left went to others
        assert 7000 < ledger.spent.tokens <= 8000
        assert ledger.idle

    for seed in range(5):
        run(main(seed))


def test_who_waits_is_served_in_order_and_told_when_it_is_hopeless() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        first = await ledger.reserve(tokens(80))
        order: list[str] = []

        async def wait(name: str, n: int) -> None:
            try:
                reservation = await ledger.reserve(tokens(n))
                order.append(name)
                await asyncio.sleep(1)
                reservation.settle(used(n))
            except BudgetExhausted:
                order.append(f"{name} refused")

        waiting = [asyncio.create_task(wait(n, k)) for n, k in [("a", 30), ("b", 40), ("c", 60)]]
        await asyncio.sleep(0)
        assert order == []
        first.settle(used(30))  # 70 left: a and b fit together, c not beside them nor after them
        await asyncio.gather(*waiting)
        assert order == ["a", "b", "c refused"]
        assert ledger.spent == Usage(completion_tokens=100, calls=3)
        assert ledger.refused
        assert ledger.idle

    run(main())


@pytest.mark.parametrize("granted", [False, True])
def test_cancelled_while_it_waits(granted: bool) -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        first = await ledger.reserve(tokens(100))
        waiting = asyncio.create_task(ledger.reserve(tokens(50)))
        behind = asyncio.create_task(ledger.reserve(tokens(100)))
        await asyncio.sleep(0)
        if granted:
            first.settle(Usage())  # grants; the cancellation arrives in the same turn
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        if not granted:
            first.settle(Usage())
        (await behind).settle(used(100))
        assert ledger.spent.tokens == 100
        assert ledger.idle

    run(main())


def test_who_stood_behind_a_cancelled_one_goes_on() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        held = await ledger.reserve(tokens(60))
        large = asyncio.create_task(ledger.reserve(tokens(50)))
        small = asyncio.create_task(ledger.reserve(tokens(30)))
        await asyncio.sleep(0)
        large.cancel()
        async with asyncio.timeout(5):
            (await small).settle(Usage())
        held.settle(Usage())
        assert ledger.idle

    run(main())


@pytest.mark.parametrize(
    ("limits", "said", "not_said"),
    [
        ("calls=0", "calls=0, 0 spent, the next call may need 1", "tokens"),
        ("calls=9,tokens=10", "tokens=10, 4 spent, the next call may need 7", "calls"),
        ("tokens=1000000,money=0.5", "money=0.5, 0.25 spent, the next call may need 0.3", "tokens"),
        ("calls=1,tokens=10,seconds=60", "tokens=10, 4 spent, .*7; calls=1, 1 spent, .*need 1", "seconds"),
    ],
)
def test_a_refusal_names_the_limits_that_bind(limits: str, said: str, not_said: str) -> None:
    async def main() -> None:
        ledger = Ledger(Budget.parse(limits))
        if ledger.budget.calls != 0:
            (await ledger.reserve(Amount())).settle(Usage(completion_tokens=4, calls=1, money=0.25))
        with pytest.raises(BudgetExhausted, match=said) as caught:
            await ledger.reserve(Amount(tokens=7, calls=1, money=0.3))
        assert not_said not in str(caught.value)

    run(main())


def test_a_refusal_tells_what_is_held() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        (await ledger.reserve(tokens(40))).settle(used(20))
        held = await ledger.reserve(tokens(50))
        with (
            holding(),
            pytest.raises(BudgetExhausted, match=r"20 spent, 50 held by calls under way, .* need 40"),
        ):
            await ledger.reserve(tokens(40))
        held.settle(Usage())

    run(main())


def test_nested_ledgers_charge_all_around() -> None:
    async def main() -> None:
        outer = Ledger(Budget(tokens=100, calls=3))
        inner = outer.child(Budget(tokens=60))
        held = await inner.reserve(tokens(50))
        assert outer.reserved == inner.reserved == tokens(50)
        with pytest.raises(BudgetExhausted, match="tokens=100"):
            await outer.reserve(tokens(101))
        held.settle(used(45))
        assert outer.spent == inner.spent == used(45)
        assert (outer.left().tokens, inner.left().tokens) == (55, 15)
        outer.refusal = ""
        with pytest.raises(BudgetExhausted, match="tokens=60"):
            await inner.reserve(tokens(16))
        assert inner.refused
        assert not outer.refused  # it was not the one that was too small
        with pytest.raises(BudgetExhausted):
            await outer.child(Budget(tokens=1000)).reserve(tokens(56))
        assert outer.refused

    run(main())


def test_freed_by_another_branch() -> None:
    async def main() -> None:
        outer = Ledger(Budget(tokens=100))
        left, right = outer.child(Budget(tokens=80)), outer.child(Budget(tokens=80))
        held = await left.reserve(tokens(80))
        waiting = asyncio.create_task(right.reserve(tokens(60)))
        await asyncio.sleep(0)
        held.settle(used(10))
        (await waiting).settle(used(60))
        assert outer.spent.tokens == 70
        assert outer.idle
        assert right.idle

    run(main())


def test_who_holds_must_not_wait_for_itself() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        held = await ledger.reserve(tokens(80))
        with holding(), pytest.raises(BudgetExhausted):
            await ledger.reserve(tokens(30))
        with holding():
            (await ledger.reserve(tokens(20))).settle(Usage())
        held.settle(Usage())
        assert ledger.idle

    run(main())


def test_a_reservation_is_settled_once_and_may_grow() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        held = await ledger.reserve(tokens(40))
        assert held.extend(tokens(40))
        assert not held.extend(tokens(40))
        assert ledger.reserved == Amount(tokens=80, calls=2)
        held.settle(used(70))
        held.settle(Usage())
        assert ledger.spent == used(70)
        assert ledger.idle

    run(main())


def test_uncertain_tokens_are_charged_in_full() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        (await ledger.reserve(tokens(60))).settle(Usage(completion_tokens=10, uncertain_tokens=50, calls=1))
        with pytest.raises(BudgetExhausted):
            await ledger.reserve(tokens(41))
        assert ledger.left().tokens == 40

    run(main())


def test_time_and_money_and_calls() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timed = Ledger(Budget(seconds=10), clock=loop.time)
        inner = timed.child(Budget(seconds=60))
        await asyncio.sleep(10)
        with pytest.raises(BudgetExhausted, match="time is up"):
            await inner.reserve(tokens(1))
        assert timed.refused
        priced = Ledger(Budget(money=0.3))
        for _ in range(3):
            (await priced.reserve(Amount(money=0.1))).settle(Usage(money=0.1))  # 0.1 + 0.1 + 0.1 > 0.3
        with pytest.raises(BudgetExhausted):
            await priced.reserve(Amount(money=0.01))
        counted = Ledger(Budget(calls=5))
        assert counted.affordable(tokens(7), 64) == 5
        assert Ledger(Budget(tokens=100)).affordable(tokens(7), 64) == 14
        assert Ledger().affordable(tokens(7), 64) == 64
        assert Ledger(Budget(tokens=6)).affordable(tokens(7), 64) == 0

    run(main())


class Books(RuleBasedStateMachine):
    """A tree of ledgers against a plain model of what each has spent and holds."""

    ledgers = Bundle("ledgers")
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Ledger, list[int]] = {}  # spent, reserved

    @rule(target=ledgers, limit=st.integers(0, 200))
    def top(self, limit: int) -> Ledger:
        ledger = Ledger(Budget(tokens=limit))
        self.model[ledger] = [0, 0]
        return ledger

    @rule(target=ledgers, outer=ledgers, limit=st.none() | st.integers(0, 200))
    def inside(self, outer: Ledger, limit: int | None) -> Ledger:
        ledger = outer.child(Budget(tokens=limit))
        self.model[ledger] = [0, 0]
        return ledger

    @rule(target=holds, ledger=ledgers, n=st.integers(0, 120))
    def reserve(self, ledger: Ledger, n: int) -> object:
        fits = all(
            each.budget.tokens is None or sum(self.model[each]) + n <= each.budget.tokens
            for each in _around(ledger)
        )
        with_nothing_held = all(
            each.budget.tokens is None or self.model[each][0] + n <= each.budget.tokens
            for each in _around(ledger)
        )
        coroutine = ledger.reserve(Amount(tokens=n))
        try:
            coroutine.send(None)
        except StopIteration as ended:
            assert fits
            for each in _around(ledger):
                self.model[each][1] += n
            return ended.value
        except BudgetExhausted:
            assert not with_nothing_held
        except RuntimeError:  # it would wait, for which there is no loop here
            assert not fits
            assert with_nothing_held
        return multiple()

    @rule(hold=consumes(holds), share=st.floats(0, 1))
    def settle(self, hold: Reservation, share: float) -> None:
        n = hold.amount.tokens
        spent = int(n * share)
        hold.settle(Usage(completion_tokens=spent))
        for each in _around(hold.ledger):
            self.model[each][0] += spent
            self.model[each][1] -= n

    @invariant()
    def books_agree_and_no_limit_is_passed(self) -> None:
        for ledger, (spent, reserved) in self.model.items():
            assert (ledger.spent.tokens, ledger.reserved.tokens) == (spent, reserved)
            if ledger.budget.tokens is not None:
                assert spent + reserved <= ledger.budget.tokens


def _around(ledger: Ledger) -> list[Ledger]:
    return [ledger, *(_around(ledger.parent) if ledger.parent else [])]


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("token=5", r"'token'.*tokens, calls, seconds, money"),
        ("tokens=many", r"tokens='many'"),
        ("tokens=-1", r"tokens='-1'.*greater than or equal to 0"),
        ("tokens", r"tokens=''"),
        ("seconds=nan", r"seconds"),
        ("5", r"Unknown budget key '5'"),
    ],
)
def test_an_impossible_budget_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Budget.parse(text)


def test_budgets_are_read() -> None:
    assert Budget.parse("tokens=20000, seconds=1.5") == Budget(tokens=20000, seconds=1.5)
    assert Budget.parse(",tokens=20000,, seconds=1.5,") == Budget(tokens=20000, seconds=1.5)
    for text, named in (("", "empty"), (" ,", "empty"), ("tokens=5,tokens=6", "twice")):
        with pytest.raises(ConfigurationError, match=named):
            Budget.parse(text)


def test_nobody_is_passed_by_who_needs_the_same_ledger() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        first = await ledger.reserve(Amount(60))
        order: list[int] = []

        async def later(tokens: int) -> None:
            reservation = await ledger.reserve(Amount(tokens))
            order.append(tokens)
            reservation.settle(Usage())

        async with asyncio.TaskGroup() as group:
            group.create_task(later(61))
            for tokens in (10, 20, 30):  # they would fit beside the first
                group.create_task(later(tokens))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert order == []
            first.settle(Usage())
        assert order == [61, 10, 20, 30]
        assert ledger.idle

    asyncio.run(main())


def test_who_waits_for_another_ledger_holds_up_nobody() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=1000))
        small = ledger.child(Budget(tokens=50))
        held = await small.reserve(Amount(40))
        waiting = asyncio.create_task(small.reserve(Amount(45)))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            (await ledger.reserve(Amount(500))).settle(Usage())
        held.settle(Usage())
        (await waiting).settle(Usage())
        assert ledger.idle

    asyncio.run(main())


def test_a_resend_that_does_not_fit_is_a_refusal() -> None:
    async def main() -> None:
        ledger = Ledger(Budget(tokens=100))
        reservation = await ledger.reserve(Amount(60))
        assert not reservation.extend(Amount(60))
        assert ledger.refused
        reservation.settle(Usage())

    asyncio.run(main())
