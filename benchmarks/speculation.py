"""How many draft tokens a step of decoding accepts, by proposer, on what strategies really send.

    python benchmarks/speculation.py [--problems 16] [--n 8] [--depths 4 16]
    python benchmarks/speculation.py --server [--python .venv-vllm/bin/python] [--problems 16] [--rounds 2]
                                     [--methods ngram merged]

Strategies run with the shipped model on the embedded engine, on as many problems each: samples (self-consistency of
n), grades (best of n by written grades), steps (beam search), rewrites (self-refine, and debate of 3), plans of
calls of tools (dta), and calls one by one (react). What was decoded there, stopped sequences included, is decoded
once more in a simulation, n sequences at a time, with the drafts of each proposer, which begins with nothing known
in each kind of traffic. A draft is accepted as far as it agrees, as in vLLM. Retrieval has a datastore of the same
strategies on as many other problems.

Goals, over all traffic together, for each length of drafts: Token Recycling and the trie accept at least as many
tokens per step as prompt lookup, which proposes what vLLM's `ngram` does; the best of ours at least as many as
vLLM's `suffix`, none of them with past runs, where arctic-inference is importable, as it is in the environment that
.ci/vllm makes.

--server measures wall time instead, on real vLLM servers, one after the other: greedy answers one at a time, each
method against plain decoding before and after it. It has no goal: how much a draft costs is the device's.

Exits with 1 if a goal is missed (--informative: with 0).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import stratagem as sg
from goals import Goals, parser
from stratagem.backends.embedded.backend import MINI, EmbeddedBackend
from stratagem.backends.embedded.requests import Handle, Want
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.hardware import Hardware
from stratagem.backends.vllm.metrics import Snapshot
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.profiles import DATASTORE, OWN, Profile, Speculative, profile
from stratagem.backends.vllm.server import VLLMServer
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.backends.vllm.speculative.hook import FLOOR
from stratagem.backends.vllm.speculative.lookup import PromptLookup
from stratagem.backends.vllm.speculative.merged import Merged
from stratagem.backends.vllm.speculative.proposer import Context, Proposer, Tops
from stratagem.backends.vllm.speculative.recycling import WIDTH, TokenRecycling
from stratagem.backends.vllm.speculative.retrieval import Retrieval
from stratagem.backends.vllm.speculative.simulate import Simulated, Spoken, simulate
from stratagem.backends.vllm.speculative.tree import Tree
from stratagem.backends.vllm.speculative.trie import TokenTrie
from stratagem.bench.gym import skill
from stratagem.core.backend import Message, Request
from vllm_prefix import problems_for, tools_for

ASK = "{}\nThink step by step."
PAST = 10_000  # problems from here on were asked in the past runs
VLLMS = ("ngram", "suffix") if find_spec("arctic_inference") else ("ngram",)
COLD = ("recycling", "trie", "merged")  # of ours those that need no past runs, as `suffix` needs none
LOOKUP = Speculative().config()  # vLLM's ngram as the profiles set it


class Suffix(Proposer):
    """What vLLM's method `suffix` does, with its defaults: the same calls of the same library."""

    depth, factor, least = 24, 1.0, 0.1

    def __init__(self) -> None:
        library = import_module("arctic_inference.suffix_decoding")
        self._cache: Any = library.SuffixDecodingCache(max_tree_depth=self.depth, max_cached_requests=10_000)

    def start(self, context: Context) -> None:
        self._cache.start_request(id(context), context.tokens.copy())

    def stop(self, context: Context) -> None:
        self._cache.stop_request(id(context))

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        self._cache.add_active_response(id(context), list(decoded))

    def propose(self, context: Context, limit: int) -> Tree:
        draft = self._cache.speculate(
            id(context),
            list(context.last(self.depth)),
            max_spec_tokens=limit,
            max_spec_factor=self.factor,
            min_token_prob=self.least,
        )
        return Tree([(draft.token_ids, [1.0] * len(draft.token_ids))])


class Heard(EmbeddedBackend):
    """Keeps what it was asked, with the tokens that were likeliest at each place."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[Handle] = []

    async def _submit(self, shared: Any, request: Request, want: Want) -> Handle:
        told = replace(request, logprobs=max(WIDTH, request.logprobs or 0))
        self._handles.append(await super()._submit(shared, told, want))
        return self._handles[-1]

    async def spoken(self) -> list[Spoken]:
        """In the order of asking."""
        return [
            Spoken(
                handle.job.prompt,
                sample.tokens,
                [[token for token, _ in place.top[:WIDTH]] for place in sample.logprobs],
            )
            for handle in self._handles
            for sample in (await handle.result()).samples
        ]


def strategies(n: int) -> dict[str, tuple[sg.Strategy, ...]]:
    """By the kind of traffic that they send."""
    graded = {"kind": "best_of_n", "n": n, "verifier": {"kind": "judge", "mode": "grade", "max_tokens": 160}}
    return {
        "samples": (sg.SelfConsistency(n=n),),
        "grades": (sg.Strategy.load(graded),),
        "steps": (sg.BeamSearch(),),
        "rewrites": (sg.SelfRefine(), sg.Debate()),
        "plans": (sg.DivideThenAggregate(),),
        "calls": (sg.ReAct(),),
    }


async def traffic(first: int, problems: int, n: int) -> dict[str, list[Spoken]]:
    """What the model says, by kind of traffic, problem by problem."""

    async def one(strategy: sg.Strategy, index: int) -> list[Spoken]:
        [problem] = problems_for(strategy, index, 1)
        llm = Heard()  # all share one engine
        try:
            tools = tools_for(strategy, problem)
            await sg.solve(problem.question, strategy, llm=llm, tools=tools, seed=index)
            return await llm.spoken()
        finally:
            await llm.aclose()

    found: dict[str, list[Spoken]] = {}
    for kind, sending in strategies(n).items():
        each = [one(strategy, first + index) for index in range(problems) for strategy in sending]
        found[kind] = [text for texts in await asyncio.gather(*each) for text in texts]
    return found


def proposers(vocabulary: int, past: Datastore) -> dict[str, Callable[[], Proposer]]:
    """By name; each call gives one that knows nothing yet."""

    def lookup() -> Proposer:
        return PromptLookup(LOOKUP["prompt_lookup_min"], LOOKUP["prompt_lookup_max"])

    made: dict[str, Callable[[], Proposer]] = {
        "ngram": lookup,
        "recycling": lambda: TokenRecycling(vocabulary),
        "trie": TokenTrie,
        "retrieval": lambda: Retrieval(past),
        "merged": lambda: Merged([TokenRecycling(vocabulary), TokenTrie(), PromptLookup()]),
        "merged+past": lambda: Merged(
            [TokenRecycling(vocabulary), TokenTrie(), PromptLookup(), Retrieval(past)]
        ),
    }
    if "suffix" in VLLMS:
        made["suffix"] = Suffix
    return made


async def simulated(problems: int, n: int, depths: Sequence[int], goals: Goals) -> None:
    """Print the accepted tokens per step."""
    llm = EmbeddedBackend()
    vocabulary = (await llm.capabilities()).logprobs  # and the engine stays
    past = await traffic(PAST, problems, n)
    now = await traffic(0, problems, n)
    await llm.aclose()
    makers = proposers(vocabulary, Datastore.of(text.output for texts in past.values() for text in texts))
    print(
        "tokens of the traffic: " + ", ".join(f"{k} {sum(len(t.output) for t in v)}" for k, v in now.items())
    )
    for depth in depths:
        print(f"\naccepted tokens per step, drafts of at most {depth}\n{'':<12}", end="")
        print(*(f"{kind:>11}" for kind in (*now, "all")), f"{'held':>8}{'ms/step':>9}")
        overall: dict[str, float] = {}
        for name, make in makers.items():
            parts: list[Simulated] = []
            start = time.process_time()
            for texts in now.values():
                floor = 0.0 if name in VLLMS else FLOOR
                parts.append(simulate(make(), texts, limit=depth, concurrency=n, floor=floor))
            took = time.process_time() - start
            steps = sum(part.steps for part in parts)
            drafted, accepted = (sum(getattr(p, key) for p in parts) for key in ("drafted", "accepted"))
            overall[name] = accepted / steps
            figures = [*(part.per_step for part in parts), overall[name]]
            print(f"{name:<12}", *(f"{figure:11.3f}" for figure in figures), end="")
            print(f"{accepted / max(drafted, 1):8.0%}{1000 * took / steps:9.2f}", flush=True)
        for name in ("recycling", "trie"):
            print(f"{name} against ngram: {goals.at_least(overall[name] / overall['ngram'], 1.0)}")
        best = max(COLD, key=overall.__getitem__)
        if "suffix" in overall:
            ratio = overall[best] / overall["suffix"]
            print(f"{best} against suffix, {ratio:.3f} times: {goals.at_least(ratio, 1.0)}")
        else:
            print(f"best of ours: {best}; arctic-inference is not installed, so not compared with suffix")


def profiles(store: Path, methods: Sequence[str]) -> Iterator[tuple[str, Profile]]:
    """The servers of --server, plain decoding before and after each."""
    hardware = Hardware.detect()
    keys = {DATASTORE: str(store)}
    plain = profile("latency", hardware, speculative=None)
    yield "plain", plain
    for method in methods:
        how = {"method": method}
        yield method, profile("latency", hardware, speculative=how, additional_config=keys)
        yield "plain", plain


async def answers(
    made: Profile, problems: int, rounds: int, python: str | None
) -> tuple[float, float, list[str]]:
    """Median tokens per second of greedy answers one at a time; accepted tokens per draft; the texts."""
    planned = plan(made, ["--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**29)], python=python)
    async with VLLMServer(MINI, planned.arguments, name="mini", python=python) as server:
        backend = OpenAIBackend(server.url, server.name)
        try:
            speeds: list[float] = []
            texts: list[str] = []
            for _ in range(rounds + 1):  # the first is for warming up
                start, tokens = time.perf_counter(), 0
                texts = []
                for index in range(problems):
                    question = ASK.format(skill("words").problem("test", index).question)
                    request = Request((Message("user", question),), max_tokens=160, temperature=0.0)
                    generation = await backend.generate(request)
                    tokens += generation.usage.completion_tokens
                    texts.append(generation.completions[0].text)
                speeds.append(tokens / (time.perf_counter() - start))
            told = await asyncio.to_thread(_read, server.url.removesuffix("/v1") + "/metrics")
        finally:
            await backend.aclose()
    return statistics.median(speeds[1:]), Snapshot.of(told).acceptance_length - 1, texts


def _read(url: str) -> str:
    with urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


async def served(problems: int, n: int, rounds: int, methods: Sequence[str], python: str | None) -> None:
    """Print the ratios of wall time."""
    past = await traffic(PAST, problems, n)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs.npz"
        Datastore.of(text.output for text in past["samples"]).save(store)
        found: list[tuple[str, float, float, list[str]]] = []
        for name, made in profiles(store, methods):
            found.append((name, *await answers(made, problems, rounds, python)))
            if name == "plain" and len(found) > 1:
                (_, before, _, texts), (method, speed, accepted, theirs), (_, after, _, _) = found[-3:]
                same = sum(a == b for a, b in zip(texts, theirs, strict=True))
                print(
                    f"{method:<10} {2 * speed / (before + after):.2f} times the speed of plain decoding "
                    f"(plain differs by {after / before:.2f} in itself); {accepted:.2f} accepted per draft; "
                    f"{same} of {problems} texts equal",
                    flush=True,
                )


async def main() -> int:
    takes = parser(__doc__)
    takes.add_argument("--problems", type=int, default=16)
    takes.add_argument("--n", type=int, default=8)
    takes.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    takes.add_argument("--server", action="store_true", help="measure wall time on real vLLM servers")
    takes.add_argument("--methods", nargs="+", default=[*VLLMS, *OWN], help="of the servers")
    takes.add_argument("--python", default=None, help="interpreter of an environment that has vLLM")
    takes.add_argument("--rounds", type=int, default=2)
    args = takes.parse_args()
    goals = Goals(informative=args.informative)
    if args.server:
        await served(args.problems, args.n, args.rounds, args.methods, args.python)
    else:
        await simulated(args.problems, args.n, args.depths, goals)
    return goals.code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
