"""What the cost model predicts against what is measured on this machine's processor, with the shipped model.

    python benchmarks/cost_model.py [--seconds 90] [--plot cost_model.png] [--python .venv-vllm/bin/python]
                                    [--requests FILE]

On the embedded engine, and on a vLLM server where an interpreter with vLLM is named by --python or runs this; both
in float32, and the embedded engine with one thread unless STRATAGEM_THREADS says otherwise, as vLLM has on two
cores: two are hardly faster with so small a model, and lose badly beside another process.

- floors: each prefill and decode step takes at least what the roofline says, by numpy's own speed here with as many
  threads as the engine computes with (goal: none is faster); printed is also how much of the roof each reaches;
- requests: T(p, o), fitted to one grid of prompts and answers, against requests of other lengths (goal: the median
  error is at most 15 %); beside it how far two halves of the rounds differ on the same requests: an error no larger
  than that may be the machine's;
- runs: wall time of self-consistency, one run at a time, against its trace's idealized runtime: its completions one
  after another, and all at once (no goal: batches beat the first, and are slower than the second).

What else runs on the machine comes and goes, so everything is asked once in each round, in a new order: what is
fitted, what is tested, numpy's speed, a run; rounds go on for so many --seconds on each engine, ten at least. The
fastest round counts: noise only adds. A decode step is the difference between the times of a longer and a shorter
answer; where the halves of the rounds disagree on it by more than a factor of two, or would have it at zero or
below, more are asked, and if that does not help none is told.

--requests takes prompt and answer lengths as JSON lines with ContextTokens and GeneratedTokens (the Azure LLM
inference traces), and prints what they would take at least, one after another, on the accelerators of the table
with a model of 7 billion parameters.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx2
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import stratagem as sg
from goals import Goals, parser
from stratagem.backends.embedded.backend import MINI
from stratagem.backends.embedded.engine import Engine, blas_threads
from stratagem.backends.embedded.sampling import Sampling
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.server import VLLMServer
from stratagem.bench.cost import DEVICES, Device, Precision, Roofline, Shape
from stratagem.bench.cost_runtime import Runtime, Timing, idealized
from stratagem.bench.gym import skill
from stratagem.core.backend import Backend

FLOAT32 = Precision(weights=4, activations=4, kv=4)
LLAMA7 = Shape(hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, ffn=11008, vocabulary=32000)
BATCHES = (1, 8, 32)  # of decode steps
LENGTHS = (32, 128, 512, 900)  # of prefills, in tokens
CONTEXT = 32  # tokens of the prompts before decode steps
SHORT, LONG = (
    17,
    81,
)  # answers that differ by decode steps alone: by the 17th token every prompt has been computed
GRID = ((32, 256, 900), (1, 4, 16, 64))  # prompts and answers that T(p, o) is fitted to
OTHERS = ((64, 100), (150, 24), (400, 8), (500, 80), (700, 40))  # that it has not seen
Case = tuple[int, int, int]  # so many prompts at once, tokens of each, tokens of each answer
STEPS: list[Case] = [(batch, CONTEXT, output) for batch in BATCHES for output in (SHORT, LONG)]
ALONE: set[Case] = {(1, p, o) for p, o in (*itertools.product(*GRID), *OTHERS, *((n, 1) for n in LENGTHS))}
CASES = sorted({*STEPS, *ALONE})
ROUNDS = 10  # at least: in fewer, the longest answer has never had a busy machine to itself
HALVES = slice(0, None, 2), slice(1, None, 2)  # of rounds: what changes in the meantime is in both
ERROR = 0.15
KV = str(2**28)
COLOURS = {"embedded": "#0072b2", "vllm": "#d55e00"}
MARKERS = {"prefill": "^", "decode": "o", "request": "s"}
INK, FAINT = "#1a1c20", "#8a8f98"


class Measured(Protocol):
    """An engine to measure."""

    name: str
    threads: int  # that it computes with
    backend: Backend

    async def seconds(self, batch: int, prompt: int, output: int) -> float:
        """Of so many new prompts at once, and an answer of exactly that many tokens to each."""
        ...


class Prompts:
    """Token ids that have not been asked before, so that no prefix cache knows them."""

    def __init__(self) -> None:
        self._draw = random.Random(0)

    def __call__(self, batch: int, length: int) -> list[list[int]]:
        return [[self._draw.randrange(8, 2000) for _ in range(length)] for _ in range(batch)]


class Embedded:
    """The engine in this process."""

    name = "embedded"

    def __init__(self) -> None:
        self.threads = blas_threads()
        self.backend = sg.connect()
        self.engine = Engine(MINI)
        self._prompts = Prompts()

    async def seconds(self, batch: int, prompt: int, output: int) -> float:
        prompts = self._prompts(batch, prompt)
        start = time.perf_counter()
        sampling = Sampling(max_tokens=output, temperature=0.0, ignore_end=True)
        handles = [self.engine.submit(each, sampling) for each in prompts]
        for handle in handles:
            await handle.result()
        return time.perf_counter() - start


class Served:
    """A vLLM server, by its completions endpoint, which takes token ids."""

    name = "vllm"

    def __init__(self, server: VLLMServer, client: httpx2.AsyncClient) -> None:
        cores = re.search(r"core ids=\[([\d, ]+)\]", "\n".join(server.lines))
        if cores is None:
            raise RuntimeError("vLLM has not logged which cores it computes on")
        self.threads = len(cores[1].split(","))
        self.backend = sg.connect(server.url, model=server.name)
        self._url, self._name, self._client = server.url, server.name, client
        self._prompts = Prompts()

    async def seconds(self, batch: int, prompt: int, output: int) -> float:
        body = {
            "model": self._name,
            "prompt": self._prompts(batch, prompt),
            "max_tokens": output,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        start = time.perf_counter()
        answer = await self._client.post(f"{self._url}/completions", json=body)
        taken = time.perf_counter() - start
        decoded = answer.raise_for_status().json()["usage"]["completion_tokens"]
        if decoded != batch * output:
            raise RuntimeError(f"vLLM decoded {decoded} tokens; {batch * output} were asked for")
        return taken


@dataclass(frozen=True, slots=True)
class Point:
    """A predicted and a measured time, in seconds."""

    engine: str
    kind: str  # decode, prefill or request
    what: str
    predicted: float
    measured: float
    apart: float  # two halves of the rounds, as a share


@dataclass(frozen=True, slots=True)
class RunPoint:
    """One run of a strategy, in seconds."""

    engine: str
    span: float
    work: float
    wall: float


def apart(figure: Callable[[slice], float]) -> float:
    """How much larger a figure is by one half of the rounds than by the other."""
    low, high = sorted(map(figure, HALVES))
    return high / low - 1


class Measurement:
    """One engine, round by round."""

    def __init__(self, engine: Measured, working_set: int) -> None:
        self.engine = engine
        self.devices: list[Device] = []
        self._working_set = working_set
        self._draw = random.Random(0)
        self._times: defaultdict[Case, list[float]] = defaultdict(list)
        self._runs: list[tuple[sg.Trace, float]] = []

    @property
    def rounds(self) -> int:
        return len(self.devices)

    async def go(self, seconds: float) -> None:
        await self.engine.seconds(max(BATCHES), CONTEXT, SHORT)
        await self._run()  # which loads what is loaded once
        self._runs.clear()
        end = time.perf_counter() + seconds
        while self.rounds < ROUNDS or time.perf_counter() < end:
            todo: list[Callable[[], Awaitable[None]]] = [partial(self._ask, case) for case in CASES]
            todo += [self._run, self._numpy]
            self._draw.shuffle(todo)
            for each in todo:
                await each()
        for _ in range(self.rounds):
            for case in STEPS:
                if not self._clear(case[0]):
                    await self._ask(case)

    async def _ask(self, case: Case) -> None:
        self._times[case].append(await self.engine.seconds(*case))

    async def _numpy(self) -> None:
        with threadpool_limits(self.engine.threads, user_api="blas"):
            self.devices.append(Device.here(self._working_set, seconds=0.5))

    async def _run(self) -> None:
        """Self-consistency of 8 on a problem of the gym."""
        trace = sg.Trace()
        question = skill("words").problem("test", len(self._runs)).question
        start = time.perf_counter()
        await sg.solve(question, sg.SelfConsistency(n=8), llm=self.engine.backend, trace=trace)
        self._runs.append((trace, time.perf_counter() - start))

    def _fastest(self, case: Case, part: slice = slice(None)) -> float:
        return min(self._times[case][part])

    def _step(self, batch: int, part: slice = slice(None)) -> float:
        """Seconds of a decode step."""
        short, long = ((batch, CONTEXT, output) for output in (SHORT, LONG))
        return (self._fastest(long, part) - self._fastest(short, part)) / (LONG - SHORT)

    def _clear(self, batch: int) -> bool:
        """Whether the halves of the rounds agree on a decode step, to a factor of two."""
        low, high = sorted(self._step(batch, half) for half in HALVES)
        return 0 < high <= 2 * low

    def floors(self, roofline: Roofline) -> Iterator[Point]:
        name = self.engine.name
        for batch in filter(self._clear, BATCHES):
            step = partial(self._step, batch)
            least = statistics.mean(roofline.decode(batch, CONTEXT + i).seconds for i in range(SHORT, LONG))
            yield Point(name, "decode", f"x{batch}", least, step(), apart(step))
        for length in LENGTHS:
            taken = partial(self._fastest, (1, length, 1))
            least = roofline.prefill(1, length).seconds
            yield Point(name, "prefill", f"{length} tokens", least, taken(), apart(taken))

    def runtime(self) -> Runtime:
        """T(p, o)."""
        grid = itertools.product(*GRID)
        return Runtime.fit(Timing(p, o, taken) for p, o in grid for taken in self._times[1, p, o])

    def requests(self, runtime: Runtime, lengths: Iterable[tuple[int, int]]) -> Iterator[Point]:
        """T(p, o) against what was measured."""
        for p, o in lengths:
            taken = partial(self._fastest, (1, p, o))
            predicted = runtime.seconds(p, o)
            yield Point(self.engine.name, "request", f"{p}+{o}", predicted, taken(), apart(taken))

    def runs(self, runtime: Runtime) -> Iterator[RunPoint]:
        for trace, wall in self._runs:
            [ideal] = idealized(trace.records, runtime).values()
            yield RunPoint(self.engine.name, ideal.span, ideal.work, wall)


@asynccontextmanager
async def served(python: str | None) -> AsyncIterator[Served]:
    flags = ["--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", KV]
    planned = await asyncio.to_thread(plan, "agent", flags, python=python)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(VLLMServer(MINI, planned.arguments, python=python))
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=600))
        made = Served(server, client)
        stack.push_async_callback(made.backend.aclose)
        yield made


def show_floors(points: Sequence[Point], goals: Goals) -> None:
    for engine, group in by_engine(points):
        for point in group:
            print(
                f"  {engine:<9} {point.kind:<8} {point.what:<10} {1e3 * point.measured:8.3f} ms, at least "
                f"{1e3 * point.predicted:7.3f} ms: {point.predicted / point.measured:4.0%} of the roof; "
                f"halves {point.apart:.0%} apart"
            )
        missing = len(BATCHES) + len(LENGTHS) - len(group)
        if missing:
            print(
                f"  {engine:<9} {missing} decode steps lost in noise ({goals.check(False, 'all measured')})"
            )
    most = max(point.predicted / point.measured for point in points)
    print(f"  the nearest to its floor: {most:.2f} of the roof ({goals.at_most(most, 1)})")


def show_requests(asked: Sequence[Point], fitted: Sequence[Point], goals: Goals) -> None:
    for engine, group in by_engine(asked):
        for point in group:
            print(
                f"  {engine:<9} {point.what:<10} {1e3 * point.measured:8.1f} ms, T(p, o) "
                f"{1e3 * point.predicted:8.1f} ms: {point.predicted / point.measured - 1:+6.1%}; "
                f"halves {point.apart:.1%} apart"
            )
        median, most = errors(group)
        own, _ = errors([point for point in fitted if point.engine == engine])
        noise = [point.apart for point in group]
        print(
            f"  {engine:<9} median error of T(p, o) {median:.1%} ({goals.at_most(median, ERROR)}), "
            f"most {most:.1%}; on what it was fitted to {own:.1%}; halves {statistics.median(noise):.1%} apart, "
            f"most {max(noise):.1%}"
        )


def errors(points: Iterable[Point]) -> tuple[float, float]:
    """The median and the largest, as shares of what was measured."""
    found = [abs(point.predicted / point.measured - 1) for point in points]
    return statistics.median(found), max(found)


def show_runs(points: Sequence[RunPoint]) -> None:
    for engine in dict.fromkeys(point.engine for point in points):
        group = [point for point in points if point.engine == engine]
        one_by_one = statistics.median(point.wall / point.work for point in group)
        at_once = statistics.median(point.wall / point.span for point in group)
        print(
            f"  {engine:<9} wall time of a run, median: {one_by_one:.2f} of its completions one after another, "
            f"{at_once:.2f} of the longest chain"
        )


def by_engine(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    for engine in dict.fromkeys(point.engine for point in points):
        yield engine, [point for point in points if point.engine == engine]


def show_azure(path: Path) -> None:
    """What recorded requests would take at least."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print(f"{len(rows)} requests of {path.name}, one after another, 7 billion parameters, 16 bits, at least:")
    for name in DEVICES:
        roofline = Roofline(LLAMA7, Device.named(name))
        runtime = Runtime.of_roofline(roofline, (1, 256, 1024, 4096, 16384))
        seconds = sum(runtime.seconds(row["ContextTokens"], row["GeneratedTokens"]) for row in rows)
        first = statistics.median(runtime.first(row["ContextTokens"]) for row in rows)
        print(f"  {name:<9} {seconds / 60:6.1f} min, median prompt {1e3 * first:6.1f} ms")


def draw(path: Path, floors: Sequence[Point], asked: Sequence[Point], ran: Sequence[RunPoint]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(15, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for axes, points, title in (
        (left, floors, "Steps: at least, by the roofline"),
        (middle, asked, "Requests: T(p, o) fitted to others"),
    ):
        for engine, group in by_engine(points):
            for kind, marker in MARKERS.items():
                chosen = sorted((p for p in group if p.kind == kind), key=lambda point: point.predicted)
                x, y = [1e3 * p.predicted for p in chosen], [1e3 * p.measured for p in chosen]
                if chosen:
                    label = engine if kind == "request" else f"{engine}, {kind}"
                    axes.plot(x, y, marker, color=COLOURS[engine], markersize=7, label=label)
                for place, (point, px, py) in enumerate(zip(chosen, x, y, strict=True)):
                    # Steps of the engines stand above each other: one label for both, outside.
                    both = [p.measured for p in points if (p.kind, p.what) == (kind, point.what)]
                    if kind != "request" and point.measured != (max if kind == "decode" else min)(both):
                        continue
                    # Requests lie close together: to the right of the one and to the left of the next.
                    after = place % 2 == 0 if kind == "request" else kind == "prefill"
                    axes.annotate(
                        point.what,
                        (px, py),
                        xytext=(7, -8) if after else (-7, 3),
                        textcoords="offset points",
                        ha="left" if after else "right",
                        fontsize=8,
                        color=INK,
                    )
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("predicted, ms")
    for engine in COLOURS:
        for place, run in enumerate(each for each in ran if each.engine == engine):
            right.plot([run.span, run.work], [run.wall] * 2, color=COLOURS[engine], alpha=0.5)
            first = engine if place == 0 else None
            right.plot(run.span, run.wall, "o", color=COLOURS[engine], label=first)
            right.plot(run.work, run.wall, "|", color=COLOURS[engine], markersize=10)
    right.set_title("Runs: longest chain (dot) to one by one (bar)", loc="left", fontsize=11)
    right.set_xlabel("idealized, s")
    right.set_ylabel("wall time, s")
    left.set_ylabel("measured, ms")
    middle.set_ylabel("measured, ms")
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        low = 0.7 * min(axes.get_xlim()[0], axes.get_ylim()[0])  # room for labels
        high = 1.4 * max(axes.get_xlim()[1], axes.get_ylim()[1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--", zorder=0)
        if axes is middle:
            bounds = [low / (1 - ERROR), high / (1 - ERROR)], [low / (1 + ERROR), high / (1 + ERROR)]
            axes.fill_between([low, high], *bounds, color=FAINT, alpha=0.15, linewidth=0, zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.legend(fontsize=8.5, frameon=False, loc="lower right" if axes is right else "upper left")
        axes.grid(which="major", color=FAINT, alpha=0.25, linewidth=0.7)
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
    figure.savefig(path, dpi=150)


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--seconds", type=float, default=90.0, help="of rounds on each engine")
    takes.add_argument("--plot", type=Path, help="file to draw predicted against measured into")
    takes.add_argument("--python", help="interpreter of an environment that has vLLM")
    takes.add_argument("--requests", type=Path, help="recorded lengths, as JSON lines")
    args = takes.parse_args()
    goals = Goals(informative=args.informative)
    if args.requests is not None:
        show_azure(args.requests)

    os.environ.setdefault("STRATAGEM_THREADS", "1")
    shape = Shape.read(MINI)
    done: list[Measurement] = []
    async with AsyncExitStack() as stack:
        # One after the other: an idle vLLM would still be another process with a core of its own.
        embedded = Embedded()
        stack.push_async_callback(embedded.backend.aclose)
        done.append(Measurement(embedded, 4 * shape.parameters))
        await done[-1].go(args.seconds)
        if args.python is not None or importlib.util.find_spec("vllm") is not None:
            vllm = await stack.enter_async_context(served(args.python))
            done.append(Measurement(vllm, 4 * shape.parameters))
            await done[-1].go(args.seconds)

    print(f"{shape.parameters:,} weights in float32")
    floors: list[Point] = []
    asked: list[Point] = []
    fitted: list[Point] = []
    ran: list[RunPoint] = []
    for each in done:
        # Engines that compute with as many threads have the same roof.
        alike = [d for other in done if other.engine.threads == each.engine.threads for d in other.devices]
        device = Device("here", max(d.bandwidth for d in alike), max(d.peak for d in alike))
        print(
            f"  {each.engine.name:<9} {each.rounds} rounds; threads: {each.engine.threads}, "
            f"{device.bandwidth / 1e9:.1f} GB/s, {device.peak / 1e9:.0f} giga-operations/s"
        )
        floors += each.floors(Roofline(shape, device, FLOAT32))
        runtime = each.runtime()
        asked += each.requests(runtime, OTHERS)
        fitted += each.requests(runtime, itertools.product(*GRID))
        ran += each.runs(runtime)
    show_floors(floors, goals)
    show_requests(asked, fitted, goals)
    show_runs(ran)
    if args.plot is not None:
        draw(args.plot, floors, asked, ran)
        print(f"plot: {args.plot}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
