"""Speculation in a real vLLM, by our own proposers and by its own: what is decoded stays what it was."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from drafts_kit import DEPTH, draft
from stratagem.backends.embedded.tokenizer import Tokenizer
from stratagem.backends.openai import OpenAIBackend
from stratagem.backends.vllm.hardware import Hardware
from stratagem.backends.vllm.profiles import DATASTORE, OWN
from stratagem.backends.vllm.server import VLLMServer
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.backends.vllm.speculative.lookup import PromptLookup
from stratagem.backends.vllm.speculative.proposer import Context
from stratagem.bench.gym import skill
from stratagem.core.backend import Constraint
from vllm_kit import FLAGS, MINI, asked, counter, run, serving

pytestmark = pytest.mark.vllm
QUESTIONS = [skill("words").problem("test", index).question for index in range(16)]
# What the model was not trained on: it may go on in many ways, some of them as the prompt did.
OPEN = "Tell me of two numbers. The picked"
DRAWN = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)]  # temperature and top-p
THEIRS: dict[str, dict[str, int]] = {"ngram": {"prompt_lookup_min": 1, "prompt_lookup_max": 4}}
if find_spec("arctic_inference"):
    THEIRS["suffix"] = {}
WITH_WEIGHTS = ("draft_model", "medusa", "eagle3")
# Least tokens accepted per draft: heads that were solved for hold now and then, a model's own tokens always.
LEAST = {"draft_model": 0.9 * DEPTH}


@pytest.fixture(scope="module")
def plain(server: VLLMServer) -> list[str]:
    """The greedy texts of a server that guesses nothing."""
    texts: list[str] = []

    async def main(backend: OpenAIBackend) -> None:
        texts.extend(await greedy(backend))

    run(main, server)
    return texts


@pytest.fixture(scope="module")
def spread(server: VLLMServer) -> dict[tuple[float, float], Counter[str]]:
    """How often a server that guesses nothing draws each beginning, by temperature and top-p."""
    found: dict[tuple[float, float], Counter[str]] = {}

    async def main(backend: OpenAIBackend) -> None:
        for how in DRAWN:
            found[how] = await beginnings(backend, 32, *how)

    run(main, server)
    return found


@pytest.fixture(scope="module", params=[*OWN, *THEIRS, *WITH_WEIGHTS])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def guessing(method: str, plain: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A server with one of the methods; the datastore has what half of the questions were answered."""
    store = tmp_path_factory.mktemp("store") / "runs.npz"
    encode = Tokenizer(MINI).encode
    Datastore.of(encode(text) for text in plain[::2]).save(store)
    how = {"method": method, "num_speculative_tokens": DEPTH, **THEIRS.get(method, {})}
    if method in WITH_WEIGHTS:
        heads = tmp_path_factory.mktemp("heads") / method
        how["model"] = str(draft(method, heads, list(zip(QUESTIONS, plain, strict=True))))
    flags = [*FLAGS, "--max-num-seqs", "64", "--speculative-config", json.dumps(how)]
    flags += ["--additional-config", json.dumps({DATASTORE: str(store)})]
    with serving("latency", flags) as started:
        yield started


async def greedy(backend: OpenAIBackend) -> list[str]:
    found = await asyncio.gather(*(backend.generate(asked(question)) for question in QUESTIONS))
    return [generation.completions[0].text for generation in found]


async def beginnings(backend: OpenAIBackend, requests: int, temperature: float, top_p: float) -> Counter[str]:
    """Of so many requests for 64 samples each."""
    one = asked(OPEN, n=64, max_tokens=3, temperature=temperature, top_p=top_p, seed=None)
    found = await asyncio.gather(*(backend.generate(one) for _ in range(requests)))
    return Counter(completion.text for generation in found for completion in generation.completions)


def test_greedy_text_is_that_of_plain_decoding(guessing: VLLMServer, method: str, plain: list[str]) -> None:
    async def main(backend: OpenAIBackend) -> None:
        assert await greedy(backend) == plain
        again = [(await backend.generate(asked(question))).completions[0].text for question in QUESTIONS[:4]]
        assert again == plain[:4], "one at a time, after all was seen"
        drafts = await counter(guessing, "spec_decode_num_drafts_total")
        accepted = await counter(guessing, "spec_decode_num_accepted_tokens_total")
        print(f"accepted per step with a draft: {accepted / drafts:.2f} of {drafts}")
        assert accepted > drafts * LEAST.get(method, 0.25)

    run(main, guessing)


@pytest.mark.parametrize("how", DRAWN, ids=str)
def test_samples_keep_their_distribution(
    guessing: VLLMServer, spread: dict[tuple[float, float], Counter[str]], how: tuple[float, float]
) -> None:
    """Pearson's chi-square of how often each beginning was drawn, here and by plain decoding."""

    async def main(backend: OpenAIBackend) -> None:
        before = await counter(guessing, "spec_decode_num_draft_tokens_total")
        drawn, plainly = await beginnings(backend, 16, *how), spread[how]
        assert await counter(guessing, "spec_decode_num_draft_tokens_total") > before
        ratio = math.sqrt(plainly.total() / drawn.total())
        pairs = [(drawn[text], plainly[text]) for text in drawn | plainly]
        often = [pair for pair in pairs if sum(pair) >= 15]
        seldom = [pair for pair in pairs if sum(pair) < 15]
        cells = [*often, (sum(a for a, _ in seldom), sum(b for _, b in seldom))]
        statistic = sum((ratio * a - b / ratio) ** 2 / (a + b) for a, b in cells if a + b)
        freedom = len(cells) - 1
        # Wilson and Hilferty: the cube root of a chi-square over its degrees of freedom is nearly normal.
        z = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
        print(f"chi-square {statistic:.1f} of {freedom} degrees of freedom, z = {z:.2f}")
        assert freedom >= 5
        assert z < 4

    run(main, guessing)


def test_constraints_hold(guessing: VLLMServer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    async def main(backend: OpenAIBackend) -> None:
        async def texts(constraint: Constraint) -> list[str]:
            request = asked(constraint=constraint, temperature=1.0, max_tokens=60, n=16)
            return [completion.text for completion in (await backend.generate(request)).completions]

        assert set(await texts(Constraint.choice(["red", "blue"]))) <= {"red", "blue"}
        regex = await texts(Constraint("regex", "([a-c]{3}-[0-9]{2} ){6}"))
        assert all(len(text) == 42 and text[3::7] == "-" * 6 for text in regex)
        for text in await texts(Constraint.json_schema(schema)):
            if text.endswith("}"):
                assert isinstance(json.loads(text)["n"], int)
            else:
                assert text.lstrip().startswith("{"), "cut by max_tokens"

    run(main, guessing)


def test_the_target_is_read_off_its_own_output_layer() -> None:
    """What Token Recycling learns from is, at each place, headed by what greedy decoding then gives."""

    async def main(backend: OpenAIBackend) -> None:
        alone = [(await backend.generate(asked(question))).completions[0].text for question in QUESTIONS[:4]]
        assert (await greedy(backend))[:4] == alone

    how = {"method": "custom_class", "model": "speculative_kit.WatchingHook", "num_speculative_tokens": 4}
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "kit")}
    with serving(
        "latency", [*FLAGS, "--speculative-config", json.dumps(how)], environment=environment
    ) as started:
        run(main, started)


def test_sampling_under_speculation_is_put_right() -> None:
    """In a process of its own, as it is a worker's: a temperature, a top-k and the mark of greedy requests."""
    program = """
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
load_general_plugins()
current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()
import torch
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens as expand
from stratagem.backends.vllm.speculative.sampling import ensure_right
ensure_right()
ends = torch.tensor([1, 3, 3, 6], dtype=torch.int32)
told = expand(torch.tensor([0.5, 1.5, 9.0, 0.0]), ends, 6, replace_from=0, replace_to=1)
assert told.tolist() == [0.5, 1.5, 1.5, 1.0, 1.0, 1.0], told
told = expand(torch.tensor([3, 4, 5, 6], dtype=torch.int32), ends, 6)
assert told.tolist() == [3, 4, 4, 6, 6, 6] and told.dtype == torch.int32, told
"""
    if Hardware.detect().device == "gpu":
        pytest.skip("what is put right is the build for CPUs")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    without = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"VLLM_PLUGINS": "other"}
    )
    assert "ConfigurationError: This vLLM samples wrongly" in without.stderr, "and is told where it is not"
    assert "VLLM_PLUGINS" in without.stderr.splitlines()[-1]


def test_lookup_proposes_what_vllms_ngram_does() -> None:
    ngram = import_module("vllm.v1.spec_decode.ngram_proposer")
    rng = random.Random(7)
    longest, depth = 64, 5
    for low, high in ((1, 3), (2, 4), (5, 5)):
        config = SimpleNamespace(
            speculative_config=SimpleNamespace(
                prompt_lookup_min=low, prompt_lookup_max=high, num_speculative_tokens=depth
            ),
            model_config=SimpleNamespace(max_model_len=longest),
            scheduler_config=SimpleNamespace(max_num_seqs=1024),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
        with warnings.catch_warnings(action="ignore"):  # of numba's, of what it will do in a later version
            theirs = ngram.NgramProposer(config)
        for kinds in (2, 3, 10):
            texts = [rng.choices(range(kinds), k=rng.randint(2, 50)) for _ in range(60)]
            counts = np.array([len(text) for text in texts])
            tokens = np.zeros((len(texts), longest), np.int32)
            for row, text in enumerate(texts):
                tokens[row, : len(text)] = text
            with warnings.catch_warnings(action="ignore"):
                drafts = theirs.propose(depth, [text[-1:] for text in texts], counts, tokens)
            ours = PromptLookup(low, high)
            assert drafts == [ours.propose(Context(text), depth).best(depth) for text in texts]
