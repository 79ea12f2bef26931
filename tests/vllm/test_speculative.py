"""Our own proposers in a real vLLM: what is decoded stays what it was."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

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
OPEN = "Tell me of two numbers."  # what the model was not trained on: it may go on in many ways


@pytest.fixture(scope="module")
def plain(server: VLLMServer) -> list[str]:
    """The greedy texts of a server that guesses nothing."""
    texts: list[str] = []

    async def main(backend: OpenAIBackend) -> None:
        texts.extend(await greedy(backend))

    run(main, server)
    return texts


@pytest.fixture(scope="module", params=OWN)
def guessing(
    request: pytest.FixtureRequest, plain: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMServer]:
    """A server with one of our proposers; the datastore has what half of the questions were answered."""
    store = tmp_path_factory.mktemp("store") / "runs.npz"
    encode = Tokenizer(MINI).encode
    Datastore.of(encode(text) for text in plain[::2]).save(store)
    how = {"method": request.param, "num_speculative_tokens": 4}
    flags = [*FLAGS, "--max-num-seqs", "64", "--speculative-config", json.dumps(how)]
    flags += ["--additional-config", json.dumps({DATASTORE: str(store)})]
    with serving("latency", flags) as started:
        yield started


async def greedy(backend: OpenAIBackend) -> list[str]:
    found = await asyncio.gather(*(backend.generate(asked(question)) for question in QUESTIONS))
    return [generation.completions[0].text for generation in found]


def test_greedy_text_is_that_of_plain_decoding(guessing: VLLMServer, plain: list[str]) -> None:
    async def main(backend: OpenAIBackend) -> None:
        assert await greedy(backend) == plain
        again = [(await backend.generate(asked(question))).completions[0].text for question in QUESTIONS[:4]]
        assert again == plain[:4], "one at a time, after all was seen"
        drafts = await counter(guessing, "spec_decode_num_drafts_total")
        accepted = await counter(guessing, "spec_decode_num_accepted_tokens_total")
        print(f"accepted per step with a draft: {accepted / drafts:.2f} of {drafts}")
        assert accepted > drafts / 4

    run(main, guessing)


def test_samples_keep_their_distribution(guessing: VLLMServer) -> None:
    """Pearson's chi-square of how often each beginning was drawn, against its exact probability."""

    async def main(backend: OpenAIBackend) -> None:
        drawn: Counter[tuple[str, ...]] = Counter()
        probability: dict[tuple[str, ...], float] = {}
        requests = [
            asked(OPEN, n=64, max_tokens=3, temperature=1.0, seed=None, logprobs=0) for _ in range(16)
        ]
        for generation in await asyncio.gather(*(backend.generate(request) for request in requests)):
            for completion in generation.completions:
                beginning = tuple(token.token for token in completion.tokens)
                drawn[beginning] += 1
                probability[beginning] = math.exp(sum(token.logprob for token in completion.tokens))
        total = drawn.total()
        cells = [(drawn[b], total * p) for b, p in probability.items() if total * p >= 5]
        cells.append((total - sum(o for o, _ in cells), total - sum(e for _, e in cells)))
        statistic = sum((observed - expected) ** 2 / expected for observed, expected in cells)
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
current_platform.import_kernels()
current_platform.register_triton_kernel_overrides()
import torch
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens as expand
from stratagem.backends.vllm.speculative.sampling import repair
ends = torch.tensor([1, 3, 3, 6], dtype=torch.int32)
repair()
assert not repair(), "it is right now"
told = expand(torch.tensor([0.5, 1.5, 9.0, 0.0]), ends, 6, replace_from=0, replace_to=1)
assert told.tolist() == [0.5, 1.5, 1.5, 1.0, 1.0, 1.0], told
told = expand(torch.tensor([3, 4, 5, 6], dtype=torch.int32), ends, 6)
assert told.tolist() == [3, 4, 4, 6, 6, 6] and told.dtype == torch.int32, told
"""
    if Hardware.detect().device == "gpu":
        pytest.skip("what is put right is the build for CPUs")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


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
