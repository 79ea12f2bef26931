"""Searches the profile that serves a workload fastest under a bound on latency, by trying profiles on real servers.

Throughput over such settings is irregular, with several peaks (The Impact of Hyperparameters on Large
Language Model Inference Performance, 2024, https://arxiv.org/abs/2408.01050): nothing is interpolated. Optuna's
tree-structured Parzen estimator (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization) proposes
what to try, from the trials so far and the seed alone, so that an interrupted search goes on as if it had not been.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm._checks import checked
from stratagem.backends.vllm._space import (
    FIELDS,
    METHODS,
    Choices,
    Integers,
    Space,
    applied,
    chosen,
    dumped,
    loaded,
    space,
    values_of,
)
from stratagem.backends.vllm._trials import TrialFile
from stratagem.backends.vllm.plan import Plan, plan
from stratagem.backends.vllm.profiles import Profile, Workload
from stratagem.backends.vllm.server import VLLMServer
from stratagem.core.backend import Request
from stratagem.core.concurrency import task_group
from stratagem.core.errors import (
    BackendError,
    ConfigurationError,
    MissingExtraError,
    StoreError,
)
from stratagem.core.seeds import derive

_STARTUP = 8  # trials by chance before any is proposed from the others
_ATTEMPTS = 16  # at something that was not tried
_PERCENTILE = 0.95


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a profile gave: medians over the repeats."""

    throughput: float  # decoded tokens per second, of all requests together
    latency: float  # seconds that 95 % of the requests took at most, each from its sending to its last token


@dataclass(frozen=True, slots=True)
class Trial:
    """One profile that was tried. Without a measurement it could not be: ``error`` says why."""

    number: int  # 0 is the profile that the search began with
    values: Mapping[str, Any]  # its place in the space
    profile: Profile
    measurement: Measurement | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A search, finished or not."""

    trials: tuple[Trial, ...]
    bound: float | None = None  # seconds

    def within(self, trial: Trial) -> bool:
        """Whether it was measured and its latency is not above the bound."""
        return trial.measurement is not None and (
            self.bound is None or trial.measurement.latency <= self.bound
        )

    def value(self, trial: Trial) -> float:
        """What is maximised: tokens per second within the bound; above it a number from 0 down to -1, by how far;
        -1 for what could not be measured."""
        if trial.measurement is None:
            return -1.0
        if self.bound is None or self.within(trial):
            return trial.measurement.throughput
        return self.bound / trial.measurement.latency - 1.0

    @property
    def base(self) -> Trial:
        """The profile that the search began with."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The first of greatest value: never worse than the base. Where none is within the bound, the nearest."""
        return max(self.trials, key=self.value)


Measure = Callable[[Profile], Awaitable[Measurement]]
Listener = Callable[[Trial], None]


async def search(
    base: Profile,
    dimensions: Space,
    measure: Measure,
    *,
    out: Path | str,
    asked: Mapping[str, Any],
    trials: int = 20,
    bound: float | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> Tuning:
    """Try the base, then profiles of the space, until there are so many trials, earlier ones in ``out`` included.

    What was measured stays in ``out``; under another bound, or with more trials, the search goes on from it. A
    profile that was tried already is not measured again.

    Args:
        asked: all that decides a measurement but the profile, as plain data; another one is refused.
        listener: is called with each trial, those that were there first.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigurationError: ``out`` holds a search of something else, or the base cannot be served.
        BackendError: the base cannot be served.
        StoreError: ``out`` cannot be written, is damaged, or is in use.
    """
    _optuna()
    if trials < 1:
        raise ConfigurationError(f"trials = {trials}: the profile itself is the first.", remedy="Give more.")
    found = {"base": base.model_dump(mode="json"), "space": dumped(dimensions)}
    file = await asyncio.to_thread(TrialFile.open, Path(out), {**asked, "seed": seed}, found)
    try:
        # What this machine has free changes from day to day, and with it the profile of a name.
        base, dimensions = Profile.model_validate(file.header["base"]), loaded(file.header["space"])
        tuning = Tuning(tuple(_read(file.lines)), bound)
        for trial in tuning.trials:
            _tell(listener, trial)
        while len(tuning.trials) < trials:
            first = Trial(0, values_of(base, dimensions), base)
            trial = await _tried(
                _next(base, dimensions, tuning, seed) if tuning.trials else first, tuning, measure
            )
            file.append(_dumped(trial))
            tuning = replace(tuning, trials=(*tuning.trials, trial))
            _tell(listener, trial)
        return tuning
    finally:
        file.close()


def _tell(listener: Listener | None, trial: Trial) -> None:
    if listener is not None:
        listener(trial)


async def _tried(trial: Trial, tuning: Tuning, measure: Measure) -> Trial:
    for earlier in tuning.trials:
        if earlier.profile == trial.profile:
            return replace(trial, measurement=earlier.measurement, error=earlier.error)
    try:
        return replace(trial, measurement=await measure(trial.profile))
    except MissingExtraError:
        raise
    except (ConfigurationError, BackendError) as error:
        if not trial.number:
            raise
        return replace(trial, error=str(error))


def _dumped(trial: Trial) -> dict[str, Any]:
    measurement = None if trial.measurement is None else asdict(trial.measurement)
    profile = trial.profile.model_dump(mode="json")
    return {"values": trial.values, "measurement": measurement, "error": trial.error, "profile": profile}


def _read(lines: Sequence[Mapping[str, Any]]) -> list[Trial]:
    found: list[Trial] = []
    for number, line in enumerate(lines):
        try:
            measurement = line["measurement"] and Measurement(**line["measurement"])
            profile = Profile.model_validate(line["profile"])
            found.append(Trial(number, line["values"], profile, measurement, line["error"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"Trial {number} of the search is damaged: {error}.",
                remedy="Delete its line and those after it.",
            ) from None
    return found


def _next(base: Profile, dimensions: Space, tuning: Tuning, seed: int) -> Trial:
    """What to try next; something new, unless chance gives nothing new any more."""
    number, attempt = len(tuning.trials), 0
    tried = [trial.profile for trial in tuning.trials]
    while True:
        values = _proposed(dimensions, tuning, derive(seed, number, attempt))
        made = Trial(number, values, applied(base, values))
        attempt += 1
        if made.profile not in tried or attempt == _ATTEMPTS:
            return made


def _proposed(dimensions: Space, tuning: Tuning, seed: int) -> dict[str, Any]:
    """A place in the space: a function of the trials so far and the seed."""
    optuna = _optuna()
    kinds = {
        name: optuna.distributions.IntDistribution(dimension.low, dimension.high, log=dimension.by_ratio)
        if isinstance(dimension, Integers)
        else optuna.distributions.CategoricalDistribution(dimension.values)
        for name, dimension in dimensions.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in tuning.trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(trial.values),
                distributions={name: kinds[name] for name in trial.values},
                value=tuning.value(trial),
            )
        )
    ahead = study.ask()

    def choose(name: str, dimension: Integers | Choices) -> Any:
        if isinstance(dimension, Integers):
            return ahead.suggest_int(name, dimension.low, dimension.high, log=dimension.by_ratio)
        return ahead.suggest_categorical(name, dimension.values)

    return chosen(dimensions, choose)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("Optuna", "tune") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# -- on real servers -----------------------------------------------------------------------------------


async def tune(
    model: str | Path,
    requests: Sequence[Request],
    profile: str | Profile = "agent",
    flags: Sequence[str] = (),
    *,
    out: Path | str,
    workload: Workload | None = None,
    latency: float | None = None,
    trials: int = 20,
    repeats: int = 3,
    fields: Sequence[str] = FIELDS,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    python: str | Path | None = None,
    startup_timeout: float = 1800.0,
    listener: Listener | None = None,
    log: Callable[[str], None] | None = None,
) -> Tuning:
    """Search the profile that answers these requests fastest on this machine.

    Each trial starts a server of its own, warms it up, and sends the requests, as many at a time as the workload
    has. They are dealt into as many parts as there are repeats and one for warming up, the same in each trial, so
    that no part finds its prompts in the prefix cache.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        requests: what is going to be asked, in a sample: as many as possible, in any order.
        profile: what to begin with, and to be no worse than.
        flags: flags of `vllm serve`; what they say is not searched.
        out: folder that the trials are kept in; the same call goes on where it was interrupted.
        latency: most seconds that 95 % of the requests may take; default: any.
        trials: in all, the profile itself included.
        fields: what is searched: of max_num_seqs, max_num_batched_tokens, block_size, speculative, and
            kv_cache_dtype, which changes what is answered.
        methods: of speculation to try, where they are possible here; by default those that need no model and no
            file.
        listener: is called with each trial as it ends.
        log: is called with each line that a server writes.

    Raises:
        MissingExtraError: Optuna or vLLM is not installed.
        ConfigurationError: too few requests, nothing to search, or the profile cannot be served.
        StoreError: ``out`` cannot be written, is damaged, or is in use.
    """
    _optuna()
    workload = workload or Workload()
    parts = [list(requests[start :: repeats + 1]) for start in range(repeats + 1)]
    if repeats < 1 or not all(parts):
        raise ConfigurationError(
            f"{len(requests)} requests cannot be dealt into {repeats + 1} parts: {repeats} repeats and a warm-up.",
            remedy="Give more requests, or fewer repeats.",
        )
    most = max(workload.concurrency, *(request.n for request in requests))  # sequences at a time
    planned = await asyncio.to_thread(plan, profile, flags, workload=workload, python=python)
    fixed = {
        name for name in Profile.model_fields if getattr(_EMPTY.overridden(flags)[0], name) not in (None, ())
    }
    searched = [name for name in fields if name not in fixed]
    if workload.repeatable:
        searched = [name for name in searched if name != "speculative"]

    def possible(made: Profile) -> bool:
        try:
            checked(made, planned.hardware, planned.installed)
        except ConfigurationError:
            return False
        return True

    async def measure(made: Profile) -> Measurement:
        checked(made, planned.hardware, planned.installed)
        tried = Plan(made, planned.flags, planned.hardware, planned.installed)
        server = VLLMServer(model, tried.arguments, python=python, startup_timeout=startup_timeout, log=log)
        async with server:
            backend = OpenAIBackend(server.url, server.name, permits=most)
            try:
                return await _measured(backend, parts, workload.concurrency)
            finally:
                await backend.aclose()

    asked = {
        "model": str(model),
        "profile": profile if isinstance(profile, str) else profile.model_dump(mode="json"),
        "flags": list(flags),
        "workload": workload.model_dump(mode="json"),
        "requests": hashlib.sha256("".join(r.key() + str(r.n) for r in requests).encode()).hexdigest(),
        "repeats": repeats,
        "fields": list(fields),
        "methods": list(methods),
        "device": planned.hardware.name or planned.hardware.device,
        "vllm": planned.installed.version if planned.installed is not None else "",
    }
    return await search(
        planned.profile,
        space(planned.profile, searched, methods, possible, workload.concurrency),
        measure,
        out=out,
        asked=asked,
        trials=trials,
        bound=latency,
        seed=seed,
        listener=listener,
    )


_EMPTY = Profile.model_validate(dict.fromkeys(Profile.model_fields) | {"logits_processors": ()})


async def _measured(
    backend: OpenAIBackend, parts: Sequence[Sequence[Request]], concurrency: int
) -> Measurement:
    await _pass(backend, parts[0], concurrency)
    passes = [await _pass(backend, part, concurrency) for part in parts[1:]]
    return Measurement(
        statistics.median(each.throughput for each in passes),
        statistics.median(each.latency for each in passes),
    )


async def _pass(backend: OpenAIBackend, requests: Sequence[Request], concurrency: int) -> Measurement:
    """All requests, at most so many sequences at a time, the next as soon as one has ended."""
    clock = asyncio.get_running_loop().time
    waiting, decoded, taken = iter(requests), 0, list[float]()

    async def work() -> None:
        nonlocal decoded
        for request in waiting:  # shared: whoever is free takes the next
            begin = clock()
            generation = await backend.generate(request)
            taken.append(clock() - begin)
            decoded += generation.usage.completion_tokens

    start = clock()
    async with task_group() as group:
        for _ in range(max(1, concurrency // max(request.n for request in requests))):
            group.create_task(work())
    taken.sort()
    return Measurement(decoded / (clock() - start), taken[math.ceil(_PERCENTILE * len(taken)) - 1])
