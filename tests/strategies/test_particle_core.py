"""The pure core of particle filters against numbers that enumeration gives, and against the laws of resampling."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any, get_args

import pytest

from particles import filtered, grown, posterior, rewards, shares, z_score
from stratagem.strategies._search.particles import (
    Filter,
    Order,
    Particle,
    Weights,
    log_weight,
    swap_probability,
)
from stratagem.strategies._search.resampling import Scheme, effective_size, resample, scaled

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
Text = Particle[str]

SORTS: list[dict[str, Any]] = [
    *({"scheme": scheme, "ess": 1.0} for scheme in SCHEMES),
    {"ess": 0.5},
    {"together": 2, "ess": 0.8},
    {"together": 3, "ess": 1.0, "scheme": "multinomial"},
]


def _id(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", SORTS, ids=_id)
def test_the_normalising_constant_is_unbiased(options: dict[str, Any]) -> None:
    _, exact = posterior(math.prod)
    found = [math.exp(filtered(5, seed, **options).log_normalizer) for seed in range(20_000)]
    score = z_score(found, exact)
    print(f"{options}: {math.fsum(found) / len(found):.6f} of {exact:.6f}, {score:+.2f} standard errors")
    assert abs(score) <= 3


@pytest.mark.parametrize("options", [{"aggregate": min}, {"tau": 2.0}, {"together": 2, "ess": 0.8}], ids=_id)
def test_the_normalising_constant_of_other_targets(options: dict[str, Any]) -> None:
    _, exact = posterior(options.get("aggregate", math.prod), options.get("tau", 1.0))
    found = [math.exp(filtered(4, seed, **options).log_normalizer) for seed in range(1500)]
    assert abs(z_score(found, exact)) <= 4


@pytest.mark.parametrize("options", [*SORTS, {"aggregate": min, "tau": 2.0}], ids=_id)
def test_many_particles_have_the_posterior(options: dict[str, Any]) -> None:
    exact, _ = posterior(options.get("aggregate", math.prod), options.get("tau", 1.0))
    found = shares(filtered(2000, 1, **options))
    for text, p in exact.items():
        assert found[text] == pytest.approx(p, abs=0.045), text


def test_one_step_gives_nine_tenths() -> None:
    """p(A) = p(B) = 1/2, rewards 0.9 and 0.1: known answers of the method."""
    for weights, share in {"likelihood": 0.9, "odds": 0.988, "exponential": 0.690}.items():
        made = Filter[str](20_000, 0, key=str, scheme="multinomial", ess=1.0)
        rng = random.Random(0)
        [order] = made.begin()
        for slot in order.slots[:-1]:
            assert made.tell(slot, _letter(order, rng, weights)) == []
        made.tell(order.slots[-1], order.particle.grown("A", log_weight(weights, 0.9), ended=False))  # type: ignore[arg-type]
        resampled = Counter(particle.states[-1] for particle in made.particles)
        assert resampled["A"] / 20_000 == pytest.approx(share, abs=0.01)
        assert len(set(made.log_weights)) == 1


def _letter(order: Order[str], rng: random.Random, weights: Any) -> Text:
    letter = rng.choice("AB")
    return order.particle.grown(letter, log_weight(weights, 0.9 if letter == "A" else 0.1), ended=True)


def test_weights_of_rewards() -> None:
    def normalised(weights: Weights, *given: float) -> list[float]:
        found, _ = scaled([log_weight(weights, r) for r in given])
        return [w / math.fsum(found) for w in found]

    assert normalised("odds", 0.9, 0.1) == pytest.approx([0.988, 0.012], abs=5e-4)
    assert normalised("exponential", 0.9, 0.1) == pytest.approx([0.690, 0.310], abs=5e-4)
    assert normalised("likelihood", 0.9, 0.1) == pytest.approx([0.9, 0.1])
    for weights in get_args(Weights):
        assert normalised(weights, 0.3, 0.3, 0.3) == pytest.approx([1 / 3] * 3)
        assert math.isfinite(log_weight(weights, 0.0))
        assert math.isfinite(log_weight(weights, 1.0))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_keeps_the_number_and_the_shares(scheme: Scheme) -> None:
    rng = random.Random(0)
    for case in range(300):
        weights = [rng.choice([0.0, rng.random(), rng.random() ** 8]) for _ in range(rng.randint(1, 12))]
        weights[rng.randrange(len(weights))] = rng.random() + 0.1
        n = rng.randint(1, 15)
        parents = resample(scheme, weights, n, rng)
        assert len(parents) == n
        assert all(weights[p] > 0 for p in parents)
        counts, total = Counter(parents), math.fsum(weights)
        for i, w in enumerate(weights):
            share = n * w / total
            if scheme == "systematic":
                assert math.floor(share - 1e-9) <= counts[i] <= math.ceil(share + 1e-9), case
            if scheme == "residual":
                assert counts[i] >= math.floor(share - 1e-9)
            if scheme == "stratified":
                assert abs(counts[i] - share) < 2
    mean = Counter[int]()
    for _ in range(4000):
        mean.update(resample(scheme, [0.5, 0.3, 0.0, 0.2], 5, rng))
    assert [mean[i] / 20_000 for i in range(4)] == pytest.approx([0.5, 0.3, 0.0, 0.2], abs=0.015)


def test_effective_size() -> None:
    assert effective_size([0.2] * 5) == pytest.approx(5)
    assert effective_size([1.0] * 5) == 5  # equal weights are never resampled for rounding
    assert effective_size([1.0, 0.0, 0.0]) == 1
    assert effective_size([0.9, 0.1]) == pytest.approx(1 / 0.82)


def test_resampling_waits_for_the_effective_size() -> None:
    never, always = filtered(8, 3, ess=1e-9), filtered(8, 3, ess=1.0)
    assert all(meeting.parents is None for meeting in never.meetings)
    assert all(meeting.parents is not None for meeting in always.meetings)
    assert never.log_weights == pytest.approx([p.log_weight for p in never.particles])
    for share in (0.5, 0.8):
        for meeting in filtered(8, 3, ess=share).meetings:
            assert (meeting.parents is not None) == (meeting.effective_size < share * 8)


def test_all_slots_meet_at_every_step_and_small_groups_by_themselves() -> None:
    assert {meeting.slots for meeting in filtered(7, 0).meetings} == {tuple(range(7))}
    made = filtered(7, 0, together=3, ess=0.5)
    by_step: dict[int, list[int]] = {}
    for meeting in made.meetings:
        assert 2 <= len(meeting.slots) <= 3
        by_step.setdefault(meeting.step, []).extend(meeting.slots)
    assert all(len(slots) == len(set(slots)) for slots in by_step.values())
    assert len({meeting.slots for meeting in made.meetings}) > 3  # new ones at each step


@pytest.mark.parametrize(
    "options", [{}, {"ess": 1.0, "scheme": "stratified"}, {"together": 2, "ess": 0.9}], ids=_id
)
def test_what_ends_first_does_not_matter(options: dict[str, Any]) -> None:
    for seed in range(10):
        ends = [filtered(9, seed, order=order, **options) for order in range(8)]
        assert all(e.particles == ends[0].particles for e in ends)
        assert all(e.log_weights == pytest.approx(ends[0].log_weights) for e in ends)


def test_small_groups_go_on_while_others_are_still_at_their_first_step() -> None:
    made = Filter[str](9, 0, key=str, together=3, ess=0.5)
    [order] = made.begin()
    rng = random.Random(0)
    reached = Counter[int]()
    pending = [(order, slot) for slot in order.slots if slot != 0]  # slot 0 never comes
    while pending:
        o, slot = pending.pop()
        reached[slot] = max(reached[slot], len(o.particle.states) + 1)
        kept = o.particle.grown("a" * (len(o.particle.states) + 1), rng.uniform(-1, 0), ended=False)
        pending += [(other, s) for other in made.tell(slot, kept) for s in other.slots]
    assert reached[0] == 0
    assert max(reached.values()) >= 2

    barrier = Filter[str](9, 0, key=str)
    [order] = barrier.begin()
    assert all(barrier.tell(slot, order.particle.grown("a", 0.0, ended=False)) == [] for slot in range(1, 9))


def test_copies_are_ordered_together_and_independent() -> None:
    made = Filter[str](4, 0, key=str, ess=1.0)
    [order] = made.begin()
    assert order.slots == (0, 1, 2, 3)
    orders: list[Order[str]] = []
    for slot, (step, potential) in enumerate([("a", 0.0), ("b", -50.0), ("c", -50.0), ("d", 0.0)]):
        orders += made.tell(slot, order.particle.grown(step, potential, ended=False))
    assert [(o.particle.states, o.slots) for o in orders] == [(("a",), (0, 1)), (("d",), (2, 3))]
    before = made.particles[1]
    made.tell(0, before.grown("ax", 0.0, ended=True))
    assert made.particles[1] is before
    assert before.states == ("a",)


def test_a_finished_particle_keeps_its_weight_unless_recounted() -> None:
    def weight(recount: bool) -> float:
        made = Filter[str](2, 0, key=str, ess=1e-9, recount=recount)
        [order] = made.begin()
        made.tell(0, order.particle.grown("end", -1.0, ended=True))
        [order] = made.tell(1, order.particle.grown("a", -0.5, ended=False))
        [order] = made.tell(1, order.particle.grown("ab", -0.25, ended=False))
        assert made.tell(1, order.particle.grown("abc", -0.125, ended=True)) == []
        return made.log_weights[0]

    assert (weight(False), weight(True)) == (-1.0, -3.0)


def test_the_reference_survives_with_its_weight_at_each_step() -> None:
    nothing: Text = Particle()
    path = nothing.grown("a", -9.0, ended=False).grown("ac", 5.0, ended=False).grown("ac1", 8.0, ended=True)
    copies = 0
    for seed in range(200):
        made = Filter[str](4, seed, key=str, ess=1.0, reference=path)
        rng = random.Random(seed)
        orders = made.begin()
        step = 0
        while orders:
            step += 1
            assert made.particles[0] == path.cut(min(step, 3))
            told = [(o, slot) for o in orders for slot in o.slots]
            assert all(slot != 0 for _, slot in told)
            for o, _ in told:
                if o.particle.states and o.particle == path.cut(len(o.particle.states)):
                    copies += 1
                    assert len(o.particle.states) == step - 1
                    assert not o.particle.ended
            orders = [new for o, slot in told for new in made.tell(slot, grown(o.particle, rng, math.prod))]
        assert made.particles[0] == path
        # In step 1 it weighs e^-9 against about 1/2: compared by its end it would be copied every time.
        first = made.meetings[0]
        assert first.parents is not None
        assert first.parents[0] == 0
    assert 0 < copies < 200 * 3


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_particle_gibbs_keeps_the_posterior(tau: float) -> None:
    """Two particles a filter: without the right conditional law the chain would drift far off."""
    exact, _ = posterior(math.prod, tau)
    rng = random.Random(0)
    reference: Text | None = None
    seen = Counter[str]()
    rounds = 6000
    for seed in range(rounds):
        made = filtered(3, seed, ess=0.7, tau=tau, reference=reference)
        reference = made.draw(rng)
        seen[reference.states[-1]] += 1
    for text, p in exact.items():
        assert seen[text] / rounds == pytest.approx(p, abs=0.03), text


def test_swaps() -> None:
    assert swap_probability((1, 2), (0, 1)) == 1.0
    assert swap_probability((1, 2), (1, 0)) == pytest.approx(math.exp(-0.5))
    assert swap_probability((2, 1), (0, 1)) == pytest.approx(math.exp(-0.5))  # whoever asks
    assert swap_probability((1, 1.5), (7, 7)) == 1.0


def test_swaps_keep_both_laws() -> None:
    """Two chains that only exchange, begun exactly: the colder keeps its law."""
    rng = random.Random(0)
    cold, _ = posterior(math.prod)
    hot, _ = posterior(math.prod, 3.0)
    found = Counter[str]()
    for _ in range(20_000):
        x, y = (rng.choices(list(law), list(law.values()))[0] for law in (cold, hot))
        w = (math.log(math.prod(rewards(x))), math.log(math.prod(rewards(y))))
        found[y if rng.random() < swap_probability((1, 3), w) else x] += 1
    for text, p in cold.items():
        assert found[text] / 20_000 == pytest.approx(p, abs=0.015)
