"""What the cost model predicts against what is measured on this machine's processor, with the shipped model.

    python benchmarks/cost_model.py [--rounds 5] [--runs 8] [--plot cost_model.png] [--python .venv-vllm/bin/python]
                                    [--requests FILE]

On the embedded engine, and on a vLLM server where an interpreter with vLLM is named by --python or runs this:

- floors: each prefill and decode step takes at least what the roofline says, by numpy's own speed here (goal: none
  is faster); printed is also how much of the roof each engine reaches;
- requests: T(p, o), fitted to one grid of prompts and answers, against requests of other lengths (goal: the median
  error is at most 15 %);
- runs: wall time of self-consistency, one run at a time, against its trace's idealized runtime: its completions one
  after another, and all at once (no goal: batches beat the first, and are slower than the second).

Every time is the fastest of the rounds: noise only adds. --requests takes prompt and answer lengths as JSON lines
with ContextTokens and GeneratedTokens (the Azure LLM inference traces), and prints what they would take at least,
one after another, on the accelerators of the table with a model of 7 billion parameters.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
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
CONTEXT, STEPS = 32, 32  # prompt before the decode steps, and how many of them
GRID = ((32, 256, 900), (1, 4, 16, 64))  # prompts and answers that T(p, o) is fitted to
OTHERS = ((64, 100), (150, 24), (400, 8), (500, 80), (700, 40))  # that it has not seen
ERROR = 0.15
KV = str(2**28)
COLOURS = {"embedded": "#0072b2", "vllm": "#d55e00"}
MARKERS = {"prefill": "^", "decode": "o", "request": "s"}
INK, FAINT = "#1a1c20", "#8a8f98"


class Measured(Protocol):
    """An engine to measure."""

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

    def __init__(self) -> None:
        self.engine = Engine(MINI)
        self.backend = sg.connect()
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

    def __init__(self, server: VLLMServer, client: httpx2.AsyncClient) -> None:
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


@dataclass(frozen=True, slots=True)
class RunPoint:
    """One run of a strategy, in seconds."""

    engine: str
    span: float
    work: float
    wall: float


async def fastest(measured: Measured, batch: int, prompt: int, output: int, rounds: int) -> float:
    return min([await measured.seconds(batch, prompt, output) for _ in range(rounds)])


async def steps(name: str, measured: Measured, rounds: int) -> list[tuple[str, str, int, int, float]]:
    """Engine, kind, batch, tokens, and the seconds of a prefill or of a decode step."""
    await measured.seconds(max(BATCHES), CONTEXT, 4)  # warms up
    found = []
    for batch in BATCHES:
        first = await fastest(measured, batch, CONTEXT, 1, rounds)
        whole = await fastest(measured, batch, CONTEXT, 1 + STEPS, rounds)
        found.append((name, "decode", batch, CONTEXT, (whole - first) / STEPS))
    prefills = [(name, "prefill", 1, n, await fastest(measured, 1, n, 1, rounds)) for n in LENGTHS]
    return found + prefills


def floor(roofline: Roofline, kind: str, batch: int, tokens: int) -> float:
    if kind == "prefill":
        return roofline.prefill(batch, tokens).seconds
    return statistics.mean(roofline.decode(batch, tokens + i).seconds for i in range(1, STEPS + 1))


async def requests(name: str, measured: Measured, rounds: int) -> tuple[Runtime, list[Point]]:
    """T(p, o), and what it says of requests that it was not fitted to."""
    timings = [
        Timing(p, o, await measured.seconds(1, p, o))
        for _ in range(rounds)
        for p, o in itertools.product(*GRID)
    ]
    runtime = Runtime.fit(timings)
    return runtime, [
        Point(name, "request", f"{p}+{o}", runtime.seconds(p, o), await fastest(measured, 1, p, o, rounds))
        for p, o in OTHERS
    ]


async def runs(name: str, measured: Measured, runtime: Runtime, count: int) -> list[RunPoint]:
    """Self-consistency of 8 on problems of the gym."""
    found = []
    for index in range(count):
        trace = sg.Trace()
        question = skill("words").problem("test", index).question
        start = time.perf_counter()
        await sg.solve(question, sg.SelfConsistency(n=8), llm=measured.backend, trace=trace)
        wall = time.perf_counter() - start
        [ideal] = idealized(trace.records, runtime).values()
        found.append(RunPoint(name, ideal.span, ideal.work, wall))
    return found


@asynccontextmanager
async def served(python: str | None) -> AsyncIterator[Served]:
    planned = await asyncio.to_thread(
        plan, "agent", ["--max-model-len", "1024", "--kv-cache-memory-bytes", KV], python=python
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(VLLMServer(MINI, planned.arguments, python=python))
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=600))
        made = Served(server, client)
        stack.push_async_callback(made.backend.aclose)
        yield made


def here(working_set: int) -> Device:
    """This machine by as many threads as the embedded engine has."""
    with threadpool_limits(blas_threads(), user_api="blas"):
        return Device.here(working_set, seconds=2)


def show_floors(points: Sequence[Point], goals: Goals) -> None:
    for point in points:
        print(
            f"  {point.engine:<9} {point.kind:<8} {point.what:<10} {1e3 * point.measured:8.3f} ms, at least "
            f"{1e3 * point.predicted:7.3f} ms: {point.predicted / point.measured:4.0%} of the roof"
        )
    most = max(point.predicted / point.measured for point in points)
    print(f"  the nearest to its floor: {most:.2f} of the roof ({goals.at_most(most, 1)})")


def show_requests(points: Sequence[Point], goals: Goals) -> None:
    for engine, group in by_engine(points):
        errors = [abs(point.predicted / point.measured - 1) for point in group]
        print(
            f"  {engine:<9} median error of T(p, o) {statistics.median(errors):.1%} "
            f"({goals.at_most(statistics.median(errors), ERROR)}), most {max(errors):.1%}"
        )


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

    figure = Figure(figsize=(14, 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for axes, points, title in (
        (left, floors, "Steps: at least, by the roofline"),
        (middle, asked, "Requests: T(p, o) fitted to others"),
    ):
        for engine, group in by_engine(points):
            for kind, marker in MARKERS.items():
                chosen = [point for point in group if point.kind == kind]
                x, y = [1e3 * p.predicted for p in chosen], [1e3 * p.measured for p in chosen]
                if chosen:
                    axes.plot(x, y, marker, color=COLOURS[engine], markersize=7, label=f"{engine}, {kind}")
                for point, px, py in zip(chosen, x, y, strict=True):
                    side = -1 if kind == "decode" else 1
                    axes.annotate(
                        point.what,
                        (px, py),
                        xytext=(7 * side, 4),
                        textcoords="offset points",
                        ha="right" if side < 0 else "left",
                        fontsize=7.5,
                        color=INK,
                    )
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlabel("predicted, ms")
    for engine in COLOURS:
        for place, run in enumerate(run for run in ran if run.engine == engine):
            right.plot([run.span, run.work], [run.wall] * 2, color=COLOURS[engine], alpha=0.5)
            label = engine if place == 0 else None
            right.plot(run.span, run.wall, "o", color=COLOURS[engine], label=label)
            right.plot(run.work, run.wall, "|", color=COLOURS[engine], markersize=10)
    right.set_title("Runs: longest chain (dot) to one by one (bar)", loc="left", fontsize=10.5)
    right.set_xlabel("idealized, s")
    right.set_ylabel("wall time, s")
    left.set_ylabel("measured, ms")
    for axes in (left, middle, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(NullFormatter())
        low = 0.6 * min(axes.get_xlim()[0], axes.get_ylim()[0])  # room for labels
        high = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--", zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.legend(fontsize=8, frameon=False, loc="upper left" if axes is not right else "lower right")
        axes.grid(which="major", color=FAINT, alpha=0.25, linewidth=0.7)
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
    figure.savefig(path, dpi=150)


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--rounds", type=int, default=5)
    takes.add_argument("--runs", type=int, default=8, help="of a strategy, on each engine")
    takes.add_argument("--plot", type=Path, help="file to draw predicted against measured into")
    takes.add_argument("--python", help="interpreter of an environment that has vLLM")
    takes.add_argument("--requests", type=Path, help="recorded lengths, as JSON lines")
    args = takes.parse_args()
    goals = Goals(informative=args.informative)
    if args.requests is not None:
        show_azure(args.requests)

    shape = Shape.read(MINI)
    working_set = 4 * shape.parameters
    devices = [here(working_set)]
    taken, asked, ran = [], [], []
    async with AsyncExitStack() as stack:
        engines: list[tuple[str, Measured]] = [("embedded", Embedded())]
        if args.python is not None or importlib.util.find_spec("vllm") is not None:
            engines.append(("vllm", await stack.enter_async_context(served(args.python))))
        for name, measured in engines:
            taken += await steps(name, measured, args.rounds)
            runtime, points = await requests(name, measured, args.rounds)
            asked += points
            ran += await runs(name, measured, runtime, args.runs)
            devices.append(here(working_set))  # again: what else runs here comes and goes
        await engines[0][1].backend.aclose()
    device = Device("here", max(d.bandwidth for d in devices), max(d.peak for d in devices))
    roofline = Roofline(shape, device, FLOAT32)
    floors = [
        Point(
            engine,
            kind,
            f"x{batch}" if kind == "decode" else f"{tokens} tokens",
            floor(roofline, kind, batch, tokens),
            seconds,
        )
        for engine, kind, batch, tokens, seconds in taken
    ]
    print(
        f"{shape.parameters:,} weights in float32; {device.bandwidth / 1e9:.1f} GB/s, "
        f"{device.peak / 1e9:.0f} giga-operations/s, ridge {device.ridge:.1f}; fastest of {args.rounds}"
    )
    show_floors(floors, goals)
    show_requests(asked, goals)
    show_runs(ran)
    if args.plot is not None:
        draw(args.plot, floors, asked, ran)
        print(f"plot: {args.plot}")
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
