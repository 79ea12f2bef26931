"""A reward model on a real vLLM server gives what transformers computes from the same weights."""

from __future__ import annotations

import ast
import asyncio
import math
import re
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import stratagem as sg
from stratagem.backends.vllm.plan import plan
from stratagem.backends.vllm.pooling import PoolingBackend
from stratagem.backends.vllm.server import VLLMServer
from stratagem.core.errors import ContextLengthError, UnsupportedError
from stratagem.core.trace import CallFinished, CallStarted
from stratagem.testing.toy import ToyModel
from vllm_kit import MINI, counter, in_thread

pytestmark = pytest.mark.vllm

QUESTION = "Tina has 35 beads. Tina loses 27 beads. How many has Tina?"
ANSWERS = ["8", "35 - 27 = 8\nThe answer is 8.", "35 + 27 = 62\nThe answer is 62.", "I cannot say."]
FLAGS = ["--runner", "pooling", "--dtype", "float32", "--max-model-len", "512"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of one class, a Llama of random weights with the shipped model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    made: Path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=0.2)  # rewards that differ
    model.save_pretrained(made)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINI / name, made)
    return made


@pytest.fixture(scope="module")
def rewarding(folder: Path) -> Iterator[VLLMServer]:
    arguments = plan("agent", [*FLAGS, "--kv-cache-memory-bytes", str(2**28)]).arguments
    with in_thread(VLLMServer(folder, arguments, name="rm", startup_timeout=1800)) as server:
        yield server


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[[str], float]:
    """The reward of a whole prompt by transformers."""
    import torch
    from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()

    def reward(prompt: str) -> float:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids).logits[0, 0].sigmoid())

    return reward


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder: a BERT of random weights that reads two texts side by side, letter by letter."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    made: Path = tmp_path_factory.mktemp("pairs")
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(made)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,  # scores that differ
    )
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def scoring(pairs: Path) -> Iterator[VLLMServer]:
    arguments = plan("agent", [*FLAGS, "--no-enable-prefix-caching"]).arguments
    with in_thread(VLLMServer(pairs, arguments, name="pairs", startup_timeout=1800)) as server:
        yield server


def chat(answer: str) -> str:
    return f"<|user|>{QUESTION}<|end|><|assistant|>{answer}<|end|>"


@asynccontextmanager
async def joined(server: VLLMServer, **options: Any) -> AsyncIterator[PoolingBackend]:
    backend = PoolingBackend(server.url, **options)
    try:
        yield backend
    finally:
        await backend.aclose()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(300):
            await main()

    asyncio.run(limited())


async def verdicts(verifier: sg.Verifier, backend: sg.Backend) -> tuple[list[float | None], sg.Usage]:
    run = sg.Run({"policy": ToyModel(), "reward": backend})
    found = await run.verify(verifier, sg.Task.of(QUESTION), [sg.Candidate(text) for text in ANSWERS])
    return [verdict.score for verdict in found], run.ledger.spent


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
@pytest.mark.parametrize("activation", ["sigmoid", "server"])
def test_rewards_are_those_of_transformers(
    rewarding: VLLMServer, reference: Callable[[str], float], endpoint: str, activation: str
) -> None:
    async def main() -> None:
        async with joined(rewarding, endpoint=endpoint, activation=activation) as backend:
            await backend.capabilities()
            before = await counter(rewarding, "prompt_tokens_total")
            scores, usage = await verdicts(sg.RewardModel(), backend)
            expected = [reference(chat(text)) for text in ANSWERS]
            assert scores == [pytest.approx(reward, abs=1e-3) for reward in expected]
            assert max(expected) - min(expected) > 0.02  # far more than what is tolerated
            assert usage.prompt_tokens == await counter(rewarding, "prompt_tokens_total") - before
            assert (usage.completion_tokens, usage.uncertain_tokens, usage.calls) == (0, 0, len(ANSWERS))

    run(main)


def test_texts_of_a_template_go_as_one_request(
    rewarding: VLLMServer, reference: Callable[[str], float]
) -> None:
    async def main() -> None:
        async with joined(rewarding, template="{question} = {answer}") as backend:
            scores, usage = await verdicts(sg.RewardModel(aggregate="product"), backend)
            for text, score in zip(ANSWERS, scores, strict=True):
                first, _, rest = text.partition("\n")
                partials = [first, text] if rest else [first]
                each = [reference(f"{QUESTION} = {partial}") for partial in partials]
                assert score == pytest.approx(math.prod(each), abs=1e-3)
            assert usage.calls == 1

    run(main)


@pytest.mark.parametrize("activation", ["sigmoid", "server"])
def test_a_cross_encoder_scores_pairs_in_one_request(
    scoring: VLLMServer, pairs: Path, activation: str
) -> None:
    import torch
    from transformers import BertForSequenceClassification, BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(pairs)
    model = BertForSequenceClassification.from_pretrained(pairs).eval()
    read = [tokenizer(QUESTION, text, return_tensors="pt") for text in ANSWERS]
    with torch.no_grad():
        expected = [float(model(**each).logits[0, 0].sigmoid()) for each in read]

    async def main() -> None:
        async with joined(scoring, endpoint="score", activation=activation) as backend:
            scores, usage = await verdicts(sg.RewardModel(), backend)
            assert scores == [pytest.approx(score, abs=1e-3) for score in expected]
            assert max(expected) - min(expected) > 0.02
            assert (usage.calls, usage.completion_tokens, usage.uncertain_tokens) == (1, 0, 0)
            assert usage.prompt_tokens == sum(each["input_ids"].shape[1] for each in read)
            best = await sg.solve(
                QUESTION, sg.BestOfN(n=4, verifier=sg.RewardModel()), models={"reward": backend}
            )
            assert best.confidence == max(each.scores["reward_model"] for each in best.candidates)

    run(main)


@pytest.mark.parametrize("kind", ["best_of_n", "step_best_of_n", "beam_search", "dvts", "particle_filtering"])
def test_strategies_take_it_and_pay_for_what_the_server_has_read(rewarding: VLLMServer, kind: str) -> None:
    async def main() -> None:
        async with joined(rewarding) as backend:
            await backend.capabilities()
            before = await counter(rewarding, "prompt_tokens_total")
            trace = sg.Trace()
            strategy = sg.Strategy.load({"kind": kind, "verifier": "reward_model"})
            answer = await sg.solve(QUESTION, strategy, models={"reward": backend}, trace=trace)
            assert answer.candidates
            assert all("reward_model" in candidate.scores for candidate in answer.candidates)
            calls = {event.call: event.operation for event in trace.of(CallStarted)}
            rewards = [event.usage for event in trace.of(CallFinished) if calls[event.call] == "score"]
            read = sum(usage.prompt_tokens for usage in rewards)
            assert read == await counter(rewarding, "prompt_tokens_total") - before
            assert 0 < read < answer.usage.prompt_tokens

    run(main)


def test_a_wrong_model_and_a_long_answer_are_clear_errors(rewarding: VLLMServer) -> None:
    async def main() -> None:
        async with joined(rewarding, model="other") as backend:
            with pytest.raises(sg.ConfigurationError, match=r"no model 'other'.*There are: rm"):
                await verdicts(sg.RewardModel(), backend)
        async with joined(rewarding) as backend:
            run = sg.Run({"policy": ToyModel(), "reward": backend})
            with pytest.raises(ContextLengthError, match="512"):
                await run.verify(sg.RewardModel(), sg.Task.of(QUESTION), [sg.Candidate("a b " * 600)])
        llm = sg.connect(rewarding.url)
        with pytest.raises(sg.BackendError):
            await sg.solve(QUESTION, sg.Direct(), llm=llm)  # it generates nothing
        await llm.aclose()

    run(main)


def test_the_page_says_what_happens(rewarding: VLLMServer) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/vllm.md"
    [source] = re.findall(
        r"^```python vllm reward\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )

    async def main() -> None:
        names: dict[str, Any] = {"sg": sg, "reward_url": rewarding.url}
        await eval(compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307
        assert names["answer"].value

    run(main)


def test_a_server_that_generates_is_no_reward_model(server: VLLMServer) -> None:
    async def main() -> None:
        for endpoint in ("classify", "pooling", "score"):
            async with joined(server, endpoint=endpoint) as backend:
                with pytest.raises(UnsupportedError, match=f"no /{endpoint}.*vllm serve MODEL --runner"):
                    await verdicts(sg.RewardModel(), backend)

    run(main)
