"""The search for a profile, on made-up servers: what it may change, what it finds, and that it goes on. tests/vllm
searches on real ones."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.backends.vllm._checks import checked
from stratagem.backends.vllm._space import (
    FIELDS,
    KV_TYPE,
    METHODS,
    Choices,
    Integers,
    Space,
    applied,
    chosen,
    space,
    values_of,
)
from stratagem.backends.vllm.hardware import Hardware, Installed
from stratagem.backends.vllm.landscape import save_landscape
from stratagem.backends.vllm.profiles import PROFILES, Profile, Speculative, profile
from stratagem.backends.vllm.tune import Measurement, Trial, Tuning, search, tune
from stratagem.cli import main
from stratagem.core.backend import Message, Request
from stratagem.core.errors import MissingExtraError, StoreError, UnavailableError

LAPTOP = Hardware(device="cpu", name="a laptop", memory=16, free=9)
H100 = Hardware(device="gpu", name="H100", memory=80, free=79, bfloat16=True, capability=(9, 0))
BASE = profile("agent", LAPTOP)
ASKED = {"model": "made up"}
REQUESTS = [Request((Message("user", f"What is {i} + {i}?"),)) for i in range(8)]


def possible(hardware: Hardware, version: str = "0.32.0") -> Callable[[Profile], bool]:
    def can(made: Profile) -> bool:
        try:
            checked(
                made, hardware, Installed(version=version, device=hardware.device, suffix=version > "0.3")
            )
        except sg.ConfigurationError:
            return False
        return True

    return can


def full(base: Profile = BASE, hardware: Hardware = LAPTOP, **options: Any) -> Space:
    return space(
        base,
        options.get("fields", (*FIELDS, KV_TYPE)),
        options.get("methods", METHODS),
        possible(hardware, options.get("version", "0.32.0")),
        options.get("concurrency", 64),
    )


# -- the space -----------------------------------------------------------------------------------------


def test_only_what_is_possible_and_of_use_is_searched() -> None:
    found = full()
    assert found["max_num_seqs"] == Integers(1, 64), "no more than are in flight"
    assert found["max_num_batched_tokens"] == Integers(256, 16384)
    assert found["block_size"] == Choices((32, 64, 128)), "16 does not start on a CPU"
    assert found["kv_cache_dtype"] == Choices(("auto", "fp8"))
    assert found["speculative"] == Choices(("none", *METHODS))
    assert {"ngram", "suffix", "recycling", "trie", "merged"} <= set(METHODS)
    assert full(profile("agent", H100), H100)["block_size"] == Choices((16, 32, 64, 128))
    a100 = H100.model_copy(update={"name": "A100", "capability": (8, 0)})
    assert full(profile("agent", a100), a100)["kv_cache_dtype"] == Choices(("auto",))
    assert full(version="0.24.0")["speculative"] == Choices(("none", "ngram")), "no classes of ones own yet"


def test_the_profiles_own_values_are_in_the_space() -> None:
    for name in PROFILES:
        for hardware in (LAPTOP, H100):
            base = profile(name, hardware)
            found = full(base, hardware)
            assert applied(base, values_of(base, found)) == base.model_copy(
                update={"kv_cache_dtype": base.kv_cache_dtype or "auto"}
            )
    wide = BASE.model_copy(update={"max_num_seqs": 500, "block_size": 256})
    assert full(wide)["max_num_seqs"] == Integers(1, 500)
    assert full(wide)["block_size"] == Choices((256, 32, 64, 128))
    assert "block_size" not in full(BASE.model_copy(update={"block_size": None})), "left to vLLM"


def test_settings_of_speculation_that_are_left_to_vllm_are() -> None:
    base = BASE.model_copy(update={"speculative": Speculative.of_config({"method": "suffix"})})
    found = full(base)
    assert "speculative.depth" not in found
    assert applied(base, values_of(base, found)).speculative == base.speculative


def test_a_draft_model_keeps_its_own_settings() -> None:
    how = Speculative(method="draft_model", model="small", depth=12, extra={"key": 1})
    base = BASE.model_copy(update={"speculative": how})
    found = full(base, methods=("ngram",))
    assert found["speculative"] == Choices(("draft_model", "none", "ngram"))
    assert found["speculative.depth"] == Integers(1, 12)
    made = applied(base, {"speculative": "draft_model", "speculative.depth": 3}).speculative
    assert made == how.model_copy(update={"depth": 3})
    other = applied(base, {"speculative": "ngram", "speculative.depth": 3}).speculative
    assert other == Speculative(method="ngram", depth=3)


def test_settings_of_speculation_are_chosen_only_where_they_mean_something() -> None:
    def picking(method: str) -> dict[str, Any]:
        return chosen(
            full(),
            lambda name, d: (
                method if name == "speculative" else d.low if isinstance(d, Integers) else d.values[0]
            ),
        )

    assert "speculative.depth" not in picking("none")
    assert "speculative.prompt_lookup_max" not in picking("trie")
    assert {"speculative.depth", "speculative.prompt_lookup_max"} <= picking("ngram").keys()


def test_each_place_is_a_profile_that_can_be_served() -> None:
    """A step always has room for a token of each sequence and what is guessed for it."""
    made = applied(
        BASE,
        {"max_num_seqs": 64, "max_num_batched_tokens": 256, "speculative": "trie", "speculative.depth": 8},
    )
    assert made.max_num_batched_tokens == 64 * 9
    assert possible(LAPTOP)(made)
    fixed = applied(BASE, {"max_num_seqs": 64, "speculative": "trie", "speculative.depth": 8})
    assert fixed.max_num_batched_tokens == BASE.max_num_batched_tokens, "not searched: left as it is"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fields": ("dtype",)}, "no field 'dtype'.*Known are max_num_seqs"),
        ({"methods": ("magic",)}, "no method of speculation 'magic'.*Known are none, ngram"),
        ({"fields": ()}, "nothing to search.*Name more fields"),
        ({"fields": ("speculative",), "methods": ()}, "nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_one_error(options: dict[str, Any], words: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=words):
        full(**options)


# -- the search ----------------------------------------------------------------------------------------

SEQS: Space = {"max_num_seqs": Integers(1, 1024)}


def hills(made: Profile) -> Measurement:
    """Two peaks over the number of sequences: 300 at 8, and 500 at 300. More sequences take longer."""
    x = math.log2(made.max_num_seqs or 1)
    speed = 300 * math.exp(-((x - 3) ** 2)) + 500 * math.exp(-((x - math.log2(300)) ** 2))
    return Measurement(speed + 1, (made.max_num_seqs or 1) / 100)


class Surface:
    """Measures by a function, counts, and breaks off where it is told to."""

    def __init__(self, surface: Callable[[Profile], Measurement] = hills, stop: int | None = None) -> None:
        self.surface = surface
        self.asked: list[Profile] = []
        self._stop = stop

    async def __call__(self, made: Profile) -> Measurement:
        if len(self.asked) == self._stop:
            raise asyncio.CancelledError
        self.asked.append(made)
        return self.surface(made)


def searched(
    out: Path, measure: Surface, base: Profile = BASE, dimensions: Space = SEQS, **options: Any
) -> Tuning:
    return asyncio.run(
        search(base, dimensions, measure, **{"out": out, "asked": ASKED, "trials": 24, **options})
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_higher_of_two_peaks_is_found(tmp_path: Path, seed: int) -> None:
    found = searched(tmp_path, Surface(), seed=seed)
    assert found.base.profile == BASE
    assert 150 < (found.best.profile.max_num_seqs or 0) < 600
    assert found.best.measurement == hills(found.best.profile)
    assert hills(found.best.profile).throughput > 300


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_on_latency_leaves_the_lower_peak(tmp_path: Path, seed: int) -> None:
    found = searched(tmp_path, Surface(), seed=seed, bound=0.5)
    assert 4 <= (found.best.profile.max_num_seqs or 0) <= 16
    assert all(
        trial.measurement.latency <= 0.5
        for trial in found.trials
        if found.within(trial) and trial.measurement
    )


def test_the_best_is_never_worse_than_the_profile_itself(tmp_path: Path) -> None:
    at_its_peak = BASE.model_copy(update={"max_num_seqs": 300})
    assert searched(tmp_path, Surface(), at_its_peak, trials=12).best.number == 0


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = Surface()
    expected = searched(tmp_path / "whole", whole, dimensions=full(), trials=20)
    for stop in (0, 1, 7, 13):
        out = tmp_path / str(stop)
        before, after = Surface(stop=stop), Surface()
        with pytest.raises(asyncio.CancelledError):
            searched(out, before, dimensions=full(), trials=20)
        with (out / "trials.jsonl").open("a") as file:
            file.write('{"values": {"max_num')  # what a kill leaves
        told: list[Trial] = []
        assert searched(out, after, dimensions=full(), trials=20, listener=told.append) == expected
        assert before.asked + after.asked == whole.asked, "nothing is measured twice"
        assert tuple(told) == expected.trials


def test_it_goes_on_with_more_trials_and_under_another_bound(tmp_path: Path) -> None:
    first, more, none = Surface(), Surface(), Surface()
    searched(tmp_path, first, trials=6)
    found = searched(tmp_path, more, trials=12, bound=0.5)
    assert len(found.trials) == 12
    assert len(first.asked) == 6
    assert len(more.asked) <= 6
    assert searched(tmp_path, none, trials=12, bound=0.5) == found
    assert none.asked == []


def test_the_profile_is_the_one_it_began_with(tmp_path: Path) -> None:
    """What a profile's name means changes with the memory that is free; a search's base does not."""
    found = searched(tmp_path, Surface(), trials=3)
    other = BASE.model_copy(update={"kv_cache_gib": 0.5})
    again = searched(tmp_path, Surface(), other, trials=5)
    assert again.trials[:3] == found.trials
    assert {trial.profile.kv_cache_gib for trial in again.trials} == {BASE.kv_cache_gib}


def test_a_small_space_is_measured_once(tmp_path: Path) -> None:
    surface = Surface()
    found = searched(tmp_path, surface, dimensions={"block_size": Choices((32, 64))}, trials=5)
    assert len(found.trials) == 5
    assert [made.block_size for made in surface.asked] == [32, 64]


def test_what_cannot_be_served_is_a_trial_unless_it_is_the_profile_itself(tmp_path: Path) -> None:
    def surface(made: Profile) -> Measurement:
        if (made.max_num_seqs or 0) > 100:
            raise UnavailableError("vLLM ran out of memory.")
        return hills(made)

    found = searched(tmp_path, Surface(surface))
    failed = [trial for trial in found.trials if trial.measurement is None]
    assert failed
    assert {trial.error for trial in failed} == {"vLLM ran out of memory."}
    assert all(found.value(trial) == -1 for trial in failed)
    assert 4 <= (found.best.profile.max_num_seqs or 0) <= 16
    large = BASE.model_copy(update={"max_num_seqs": 200})
    with pytest.raises(UnavailableError, match="out of memory"):
        searched(tmp_path / "other", Surface(surface), large)
    assert len((tmp_path / "other" / "trials.jsonl").read_text().splitlines()) == 1, "the header alone"


def test_values_order_trials() -> None:
    def trial(number: int, *measured: float) -> Trial:
        return Trial(number, {}, BASE, Measurement(*measured) if measured else None)

    slow, nearer, fine, failed = trial(0, 900, 4.0), trial(1, 10, 2.5), trial(2, 5, 2.0), trial(3)
    bounded = Tuning((slow, nearer, fine, failed), 2.0)
    assert [bounded.value(t) for t in bounded.trials] == [-0.5, pytest.approx(-0.2), 5, -1]
    assert bounded.best == fine
    assert Tuning((slow, nearer), 2.0).best == nearer, "none is within the bound: the nearest"
    assert Tuning((slow, nearer, fine)).best == slow


# -- refusals ------------------------------------------------------------------------------------------


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    searched(tmp_path, Surface(), trials=2)
    with pytest.raises(
        sg.ConfigurationError, match=r"something else: model is 'made up' there and 'x' now.*Give another"
    ):
        searched(tmp_path, Surface(), asked={"model": "x"})
    with pytest.raises(sg.ConfigurationError, match="seed is 0 there and 1 now"):
        searched(tmp_path, Surface(), seed=1)


def test_a_search_whose_first_trial_failed_may_be_asked_for_otherwise(tmp_path: Path) -> None:
    def failing(_: Profile) -> Measurement:
        raise UnavailableError("no")

    with pytest.raises(UnavailableError):
        searched(tmp_path, Surface(failing), trials=2)
    found = searched(tmp_path, Surface(), trials=2, asked={"model": "x"}, seed=1)
    assert len(found.trials) == 2
    again = searched(tmp_path, Surface(failing), trials=2, asked={"model": "x"}, seed=1)
    assert again.trials == found.trials, "and what was measured then stays"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense\n", "trials.jsonl:1 is damaged"),
        ("[]\n", "trials.jsonl:1 is damaged"),
        ("{}\n", "not the file of a search"),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "trials.jsonl").write_text(text)
    with pytest.raises(StoreError, match=words):
        searched(tmp_path, Surface())


def test_a_damaged_trial_is_one_error(tmp_path: Path) -> None:
    searched(tmp_path, Surface(), trials=2)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(json.dumps({"values": {}}) + "\n")
    with pytest.raises(StoreError, match="Trial 2 of the search is damaged"):
        searched(tmp_path, Surface())


def test_one_search_at_a_time(tmp_path: Path) -> None:
    async def nested(made: Profile) -> Measurement:
        await search(BASE, SEQS, Surface(), out=tmp_path, asked=ASKED)
        return hills(made)

    with pytest.raises(StoreError, match="Another search is writing"):
        asyncio.run(search(BASE, SEQS, nested, out=tmp_path, asked=ASKED))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Cannot write to"):
        searched(tmp_path / "file", Surface())


def test_without_optuna_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for begin in (
        lambda: searched(tmp_path / "out", Surface()),
        lambda: asyncio.run(tune("no model", REQUESTS, out=tmp_path / "out")),
    ):
        with pytest.raises(MissingExtraError, match=r"Optuna is not installed.*stratagem\[tune\]"):
            begin()
    assert not (tmp_path / "out").exists()


def test_without_vllm_it_is_the_same_error_as_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna  # noqa: F401 - it is looked for on the path, which is empty from here on

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingExtraError, match=r"vLLM is not installed"):
        asyncio.run(tune("no model", REQUESTS, out=tmp_path / "out"))


def test_too_few_requests_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(sg.ConfigurationError, match=r"8 requests cannot be dealt into 9 parts.*Give more"):
        asyncio.run(tune("no model", REQUESTS, out=tmp_path, repeats=8))
    with pytest.raises(sg.ConfigurationError, match=r"trials = 0"):
        searched(tmp_path, Surface(), trials=0)


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (["--limit", "3"], "3 requests cannot be dealt into 4 parts"),
        (["--python", "/no/python"], "/no/python is no Python interpreter"),
        (["--profile", "fast"], "Unknown profile 'fast'"),
        (["--task", "gym:nothing"], "No gym skill 'nothing'"),
        (["--trials", "0"], "Invalid value for '--trials'"),
    ):
        command = ["stratagem", "vllm", "tune", "no model", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", command)
        assert main() == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert words in " ".join(told.err.split())
    assert not (tmp_path / "out").exists()


# -- the picture ---------------------------------------------------------------------------------------


def test_the_landscape_shows_every_trial(tmp_path: Path) -> None:
    def surface(made: Profile) -> Measurement:
        if made.block_size == 128:
            raise UnavailableError("no")
        return hills(made)

    found = searched(tmp_path, Surface(surface), dimensions=full(), bound=0.5)
    save_landscape(found, tmp_path / "landscape.svg")
    text = (tmp_path / "landscape.svg").read_text()
    assert text.startswith("<?xml")
    save_landscape(Tuning(found.trials[:1]), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StoreError, match="Cannot write"):
        save_landscape(found, tmp_path / "no" / "such.png")


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Tuning((Trial(0, {}, BASE, Measurement(1, 1)),))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*stratagem\[tune\]"):
        save_landscape(found, tmp_path / "x.png")
