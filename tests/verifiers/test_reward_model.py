"""Reward models over real HTTP: rewards by the simulated server's own numbers, costs by its own books."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

import stratagem as sg
from openai_kit import assert_covers, quick, run, settled
from stratagem.backends.journaled import Journal, Journaled
from stratagem.backends.openai import OpenAIBackend, forget
from stratagem.backends.pooled import Pooled
from stratagem.backends.vllm.pooling import PoolingBackend
from stratagem.core.errors import BackendTimeoutError, ProtocolError, UnavailableError, UnsupportedError
from stratagem.core.usage import Prices
from stratagem.testing.server import (
    NAMED_FAULTS,
    Fault,
    SimCompletion,
    SimRequest,
    SimSettings,
    SimulatedServer,
)
from stratagem.testing.toy import ToyModel

TASK = sg.Task.of("Which?")
STEPS = "One\n\nTwo \nThree"
TEMPLATE = "Q: {question}\nA: {answer}"


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """A later server may get the port of an earlier one."""
    forget()


def chat(answer: str) -> str:
    return f"<|user|>Which?<|end|><|assistant|>{answer}<|end|>"


def by(head: Callable[[str], Sequence[float]]) -> Callable[[SimRequest], list[SimCompletion]]:
    """A responder whose head is a function of the whole prompt."""
    return lambda request: [SimCompletion("", head=head(request.prompt))]


def length(prompt: str) -> list[float]:
    return [len(prompt) / 10 - 5]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def rewarded(text: str) -> float:
    return sigmoid(length(text)[0])


@asynccontextmanager
async def rewarding(
    responder: Callable[[SimRequest], list[SimCompletion]] | None = None,
    *,
    settings: dict[str, Any] | None = None,
    faults: Callable[[SimRequest], Fault | None] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[SimulatedServer, PoolingBackend]]:
    made = SimSettings(**{"model": "rm", "reward": True, **(settings or {})})
    async with SimulatedServer(made, responder=responder or by(length), faults=faults) as server:
        backend = PoolingBackend(server.url, jitter_seed=0, **options)
        try:
            yield server, backend
        finally:
            await backend.aclose()


def run_with(backend: sg.Backend, budget: sg.Budget | None = None, **roles: sg.Backend) -> sg.Run:
    return sg.Run({"policy": ToyModel(), "reward": backend, **roles}, ledger=sg.Ledger(budget))


def candidates(*texts: str) -> list[sg.Candidate]:
    return [sg.Candidate(text) for text in texts]


async def scores(verifier: sg.Verifier, run: sg.Run, *texts: str) -> list[float | None]:
    return [verdict.score for verdict in await run.verify(verifier, TASK, candidates(*texts))]


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_an_answer_gets_the_sigmoid_of_its_logit_in_the_models_chat_template(endpoint: str) -> None:
    async def main() -> None:
        async with rewarding(endpoint=endpoint) as (server, backend):
            run = run_with(backend)
            found = await scores(sg.RewardModel(), run, "One\nTwo\n", "Three", " \n")
            assert found == [pytest.approx(rewarded(chat(t))) for t in ("One\nTwo", "Three")] + [None]
            spent, totals = run.ledger.spent, server.totals()
            assert (spent.prompt_tokens, spent.completion_tokens) == (totals.prompt_tokens, 0)
            assert spent.calls == totals.billed == totals.requests == 2
            assert {record.endpoint for record in server.records} == {endpoint}

    run(main)


def test_with_a_template_all_answers_are_one_request_and_each_text_is_in_it_once() -> None:
    async def main() -> None:
        async with rewarding(template=TEMPLATE, prices=Prices(prompt=2.0)) as (server, backend):
            run = run_with(backend)
            texts = ["One\nTwo", "Three", "One\nTwo", "{question}"]
            found = await scores(sg.RewardModel(), run, *texts)
            assert found == [pytest.approx(rewarded(f"Q: Which?\nA: {text}")) for text in texts]
            assert server.totals().requests == run.ledger.spent.calls == 1
            assert run.ledger.spent.prompt_tokens == server.totals().prompt_tokens
            assert run.ledger.spent.money == pytest.approx(2e-6 * server.totals().prompt_tokens)

    run(main)


@pytest.mark.parametrize("aggregate", ["min", "product", "mean", "last"])
def test_steps_are_rewarded_as_partial_answers(aggregate: str) -> None:
    async def main() -> None:
        async with rewarding(template=TEMPLATE) as (server, backend):
            verifier = sg.Verifier.load({"kind": "reward_model", "aggregate": aggregate})
            run = run_with(backend)
            ends = ["One", "One\n\nTwo", STEPS]
            each = [rewarded(f"Q: Which?\nA: {text}") for text in ends]
            whole = {"min": min(each), "product": math.prod(each), "mean": sum(each) / 3, "last": each[-1]}
            assert await scores(verifier, run, STEPS) == [pytest.approx(whole[aggregate])]
            assert await scores(verifier.newest(), run, STEPS) == [pytest.approx(each[-1])]
            assert server.totals().requests == 2

    run(main)


def test_of_several_classes_the_named_one_counts() -> None:
    async def main() -> None:
        head = by(lambda _: [1.0, 2.0, -1.0])
        weights = [math.exp(z) for z in (1.0, 2.0, -1.0)]
        ways: list[tuple[dict[str, Any], float]] = [
            ({"label": 1}, sigmoid(2.0)),
            ({"label": 1, "activation": "server"}, weights[1] / sum(weights)),
            ({"label": 2, "activation": "server", "endpoint": "pooling"}, weights[2] / sum(weights)),
        ]
        for options, reward in ways:
            async with rewarding(head, **options) as (_, backend):
                assert await scores(sg.RewardModel(), run_with(backend), "x") == [pytest.approx(reward)]
        async with rewarding(head) as (_, backend):
            with pytest.raises(sg.ConfigurationError, match=r"rm gives 3 numbers.* label= .* from 0 to 2"):
                await scores(sg.RewardModel(), run_with(backend), "x")
        async with rewarding(head, label=3) as (_, backend):
            with pytest.raises(sg.ConfigurationError, match=r"rm has no class 3.* from 0 to 2"):
                await scores(sg.RewardModel(), run_with(backend), "x")

    run(main)


def test_a_reward_is_a_number_in_range_or_an_error_and_what_it_cost_is_billed() -> None:
    async def main() -> None:
        for number, score in ((800.0, 1.0), (-800.0, 0.0), (0.0, 0.5)):
            async with rewarding(by(lambda _, z=number: [z])) as (_, backend):  # type: ignore[misc]
                assert await scores(sg.RewardModel(), run_with(backend), "x") == [pytest.approx(score)]
        for number in (math.nan, math.inf):
            async with rewarding(by(lambda _, z=number: [z])) as (server, backend):  # type: ignore[misc]
                run = run_with(backend)
                with pytest.raises(ProtocolError, match="rm gave the reward"):
                    await scores(sg.RewardModel(), run, "x")
                assert run.ledger.spent.prompt_tokens == server.totals().prompt_tokens > 0
                assert server.totals().requests == 1

    run(main)


def test_an_answer_without_numbers_is_not_the_protocol() -> None:
    async def main() -> None:
        async with rewarding(by(lambda _: []), retries=0) as (server, backend):
            run = run_with(backend)
            with pytest.raises(ProtocolError, match=r"not the protocol: .*no numbers"):
                await scores(sg.RewardModel(), run, "x")
            assert_covers(run.ledger.spent, server)

    run(main)


def test_of_a_model_that_rewards_every_token_the_last_counts() -> None:
    async def main() -> None:
        rows: Any = [[-1.0, 3.0], [2.0, 0.5]]
        async with rewarding(by(lambda _: rows), endpoint="pooling", label=0) as (_, backend):
            assert await scores(sg.RewardModel(), run_with(backend), "x") == [pytest.approx(sigmoid(2.0))]

    run(main)


def test_rewards_compose_with_each_other_and_with_other_verifiers() -> None:
    async def main() -> None:
        async with rewarding() as (_, one), rewarding(by(lambda _: [1.0])) as (_, other):
            run = run_with(one, kindness=other)
            first, second = sg.RewardModel(), sg.RewardModel(role="kindness")
            texts = ["x", "The answer is 3, as far as I can see after a long look at it."]
            a = [rewarded(chat(text)) for text in texts]
            b = sigmoid(1.0)
            assert await scores(first & second, run, *texts) == [pytest.approx(min(r, b)) for r in a]
            assert await scores(first | second, run, *texts) == [pytest.approx(max(r, b)) for r in a]
            mean = 0.25 * first + 0.75 * sg.RewardModel(role="kindness")
            assert await scores(mean, run, *texts) == [pytest.approx(0.25 * r + 0.75 * b) for r in a]
            assert sg.Verifier.load(mean.dump()) == mean
            assert a[0] < b < a[1]

    run(main)


STRATEGIES: list[dict[str, Any]] = [
    {"kind": "best_of_n", "n": 12},
    {"kind": "weighted_vote", "n": 12, "by": "verifier"},
    {"kind": "step_best_of_n", "n": 6},
    {"kind": "beam_search", "beams": 4, "width": 4},
    {"kind": "dvts", "trees": 3, "width": 4},
    {"kind": "mcts", "simulations": 12, "width": 4},
    {"kind": "best_first", "width": 4, "expansions": 8},
    {"kind": "particle_filtering", "n": 12},
    {"kind": "beam_search", "beams": 4, "width": 4, "verifier": {"aggregate": "product"}},
]


@pytest.mark.parametrize("data", STRATEGIES, ids=lambda data: data["kind"])
def test_a_strategy_finds_what_the_reward_model_prefers(data: dict[str, Any]) -> None:
    """The answer 9 is what the toy model gives less often; and every token is on the bill."""

    def head(prompt: str) -> list[float]:
        return [4.0 if "is 9" in prompt else -4.0 if "is " in prompt else 0.0]

    written = {
        "": {"I count.\n": 0.5, "I guess.\n": 0.5},
        "I count.\n": {"The answer is 9.": 0.3, "The answer is 1.": 0.7},
        "I guess.\n": {"The answer is 9.": 0.3, "The answer is 1.": 0.7},
    }

    async def main() -> None:
        async with rewarding(by(head), template=TEMPLATE) as (server, backend):
            verifier = {"kind": "reward_model", **data.get("verifier", {})}
            toy = ToyModel(written)
            answer = await sg.solve(TASK, {**data, "verifier": verifier}, llm=toy, models={"reward": backend})
            assert answer.value == "9"
            rewards = server.totals().prompt_tokens
            assert answer.usage.tokens == toy.books.usage.tokens + rewards
            assert rewards > 0
            assert server.totals().in_flight == 0

    run(main)


def test_what_does_not_fit_the_budget_is_not_sent() -> None:
    async def main() -> None:
        async with rewarding() as (server, backend):
            for budget in (sg.Budget(tokens=10), sg.Budget(calls=1)):
                run = run_with(backend, budget)
                with pytest.raises(sg.BudgetExhausted):
                    await scores(sg.RewardModel(), run, "One", "Two")
                assert run.ledger.idle
            assert server.totals().requests == 0
            budget = sg.Budget(tokens=200)
            run = run_with(backend, budget)
            texts = ["One more try", "and another one"] * 20
            done = await asyncio.gather(
                *(scores(sg.RewardModel(), run, text) for text in texts), return_exceptions=True
            )
            assert any(isinstance(each, list) for each in done)
            assert any(isinstance(each, sg.BudgetExhausted) for each in done)
            assert run.ledger.spent.tokens == server.totals().prompt_tokens <= 200
            assert run.ledger.idle

    run(main)


def test_the_reserved_bound_holds_for_short_answers() -> None:
    async def main() -> None:
        for template in (None, "{question}{answer}"):
            async with rewarding(template=template) as (server, backend):
                bound = await backend.count_tokens(TASK.messages) + 1 + 1
                await scores(sg.RewardModel(), run_with(backend), "3")
                assert server.totals().prompt_tokens <= bound

    run(main)


@pytest.mark.parametrize("name", ["429", "503", "500", "500-late", "drop", "drop-late", "malformed"])
def test_a_fault_is_sent_again_and_paid_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)

    async def main() -> None:
        def first(request: SimRequest) -> Fault | None:
            return NAMED_FAULTS[name] if request.number == 0 else None

        async with rewarding(faults=first, template=TEMPLATE) as (server, backend):
            run = run_with(backend)
            assert await scores(sg.RewardModel(), run, "x") == [pytest.approx(rewarded("Q: Which?\nA: x"))]
            assert server.totals().requests == 2
            assert_covers(run.ledger.spent, server)

    run(main)


def test_a_cancelled_call_leaves_nothing_and_is_on_the_bill() -> None:
    async def main() -> None:
        async with rewarding(settings={"first_token": 60.0}, permits=1) as (server, backend):
            run = run_with(backend)
            task = asyncio.create_task(scores(sg.RewardModel(), run, "One", "Two"))
            await server.until(lambda totals: totals.in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled(server)
            assert server.totals().requests == 1
            assert run.ledger.idle
            assert_covers(run.ledger.spent, server)

    run(main)


def test_a_journaled_reward_is_not_paid_for_twice(tmp_path: Any) -> None:
    async def main() -> None:
        async with rewarding(template=TEMPLATE) as (server, backend):
            journal = Journal(tmp_path / "calls.sqlite")
            strategy = sg.BestOfN(n=4, verifier=sg.RewardModel(aggregate="min"))
            answers = [
                await sg.solve(
                    TASK,
                    strategy,
                    llm=Journaled(ToyModel(), journal, "run"),
                    models={"reward": Journaled(backend, journal, "run")},
                )
                for _ in range(2)
            ]
            paid = server.totals().requests
            assert 1 <= paid <= 4
            assert answers[0].text == answers[1].text
            assert answers[0].usage == answers[1].usage
            # Read in another way it is another reward.
            again = PoolingBackend(server.url, template=TEMPLATE + "!")
            await sg.solve(
                TASK, strategy, llm=ToyModel(), models={"reward": Journaled(again, journal, "run")}
            )
            assert server.totals().requests > paid
            await again.aclose()
            await journal.aclose()

    run(main)


def test_several_servers_of_one_reward_model_stand_in_for_each_other() -> None:
    async def main() -> None:
        async with rewarding(retries=0) as (_, one), rewarding(retries=0) as (other, two):
            pool = Pooled([one, two], name="pool#rm")
            expected = [pytest.approx(rewarded(chat("x")))]
            assert await scores(sg.RewardModel(), run_with(pool), "x") == expected
            before = other.totals().requests
            async with rewarding(retries=0, faults=lambda _: NAMED_FAULTS["500"]) as (_, broken):
                pool = Pooled([broken, two], name="pool#rm")
                texts = [f"{i}" for i in range(4)]
                for text in texts:
                    await scores(sg.RewardModel(), run_with(pool), text)
            assert other.totals().requests == before + len(texts)

    run(main)


def test_the_key_comes_from_the_environment_and_is_told_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    async def main() -> None:
        async with rewarding(settings={"api_key": "sk-secret"}) as (_, backend):
            trace = sg.Trace()
            run = sg.Run({"policy": ToyModel(), "reward": backend}, trace=trace)
            assert await scores(sg.RewardModel(), run, "x") == [pytest.approx(rewarded(chat("x")))]
            told = f"{backend.name} {sg.RewardModel().dump()} {trace.records}"
            assert "secret" not in told
        async with rewarding(settings={"api_key": "sk-other"}) as (_, backend):
            with pytest.raises(sg.ConfigurationError, match="API key") as caught:
                await scores(sg.RewardModel(), run_with(backend), "x")
            assert "secret" not in str(caught.value)

    run(main)


def test_a_server_that_generates_is_told_apart() -> None:
    async def main() -> None:
        async with rewarding(settings={"reward": False}) as (server, backend):
            run = run_with(backend)
            with pytest.raises(UnsupportedError, match=r"no /classify.*vllm serve MODEL --runner pooling"):
                await scores(sg.RewardModel(), run, "x")
            assert run.ledger.spent.calls == server.totals().billed == 0

    run(main)


def test_a_wrong_address_or_model_is_one_clear_error() -> None:
    async def main() -> None:
        async with rewarding(model="other") as (_, backend):
            with pytest.raises(sg.ConfigurationError, match=r"no model 'other'.*There are: rm"):
                await scores(sg.RewardModel(), run_with(backend), "x")
        async with rewarding() as (server, _):
            url = server.url
            backend = PoolingBackend(url.removesuffix("/v1") + "/v2")
            with pytest.raises(ProtocolError, match="is no OpenAI-compatible server"):
                await scores(sg.RewardModel(), run_with(backend), "x")
            await backend.aclose()
        backend = PoolingBackend(url)
        with pytest.raises((UnavailableError, BackendTimeoutError), match="No server answers"):
            await scores(sg.RewardModel(), run_with(backend), "x")
        await backend.aclose()

    run(main)


def test_a_run_without_a_reward_model_says_so_before_it_asks_anybody() -> None:
    async def main() -> None:
        toy = ToyModel()
        with pytest.raises(sg.ConfigurationError, match=r"No reward model plays the role 'reward'"):
            await scores(sg.RewardModel(), sg.Run({"policy": toy}), "x")
        assert toy.books.usage.calls == 0

    run(main)


def test_a_reward_model_writes_and_judges_nothing() -> None:
    async def main() -> None:
        async with rewarding() as (server, backend):
            for strategy in (sg.Direct(), sg.BestOfN(n=2)):
                with pytest.raises(UnsupportedError, match=r"reward model, which writes nothing.*models="):
                    await sg.solve(TASK, strategy, llm=backend)
            with pytest.raises(UnsupportedError, match="gives no log-probabilities"):
                await sg.solve(TASK, sg.BestOfN(n=2, verifier=sg.Judge()), llm=ToyModel(), judge=backend)
            assert server.totals().requests == 0

    run(main)


def test_a_prompt_that_does_not_fit_is_told() -> None:
    async def main() -> None:
        async with rewarding(settings={"max_model_len": 8}) as (_, backend):
            with pytest.raises(sg.BackendError, match="maximum context length is 8 tokens"):
                await scores(sg.RewardModel(), run_with(backend), "one two three four five six seven")

    run(main)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": -1}, "label=-1 makes no sense"),
        ({"template": "{question}"}, "no {answer}"),
        ({"endpoint": "rerank"}, "endpoint='rerank' is unknown"),
        ({"endpoint": "score", "label": 1}, "endpoint='score' takes pairs"),
        ({"endpoint": "score", "template": TEMPLATE}, "Leave them out, or take endpoint='classify'"),
        ({"activation": "tanh"}, "activation='tanh' is unknown"),
        ({"permits": 0}, "permits=0 makes no sense"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(sg.ConfigurationError, match=said):
        PoolingBackend("http://localhost:1/v1", **options)


def test_it_is_a_backend() -> None:
    backend: sg.Backend = PoolingBackend("http://localhost:1/v1")
    assert isinstance(backend, OpenAIBackend)
