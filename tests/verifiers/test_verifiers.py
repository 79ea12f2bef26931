"""Verifiers by exact numbers: judges on a model whose probabilities are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

import stratagem as sg
from stratagem.testing.toy import ToyModel


def verdicts(
    verifier: sg.Verifier, texts: Sequence[str], model: ToyModel | None = None, task: sg.Task | None = None
) -> list[sg.Verdict]:
    async def main() -> list[sg.Verdict]:
        asked = task or sg.Task.of("Which?")
        run = sg.Run({"policy": model or ToyModel()})
        return await run.verify(verifier, asked, [sg.Candidate(t, asked.extract(t)) for t in texts])

    return asyncio.run(main())


def scores(*args: object, **kwargs: object) -> list[float | None]:
    return [v.score for v in verdicts(*args, **kwargs)]  # type: ignore[arg-type]


def judging(messages: Sequence[sg.Message], tokens: Sequence[str]) -> dict[str, float]:
    """Says yes with a probability that the last line of the response under judgement names."""
    line = messages[-2].content.splitlines()[-1]
    yes = float(line.split()[-1])
    return {"": 1.0} if tokens else {"yes": yes, "no": 1 - yes}


STEPS = "First 0.9\nThen 0.5\n\nSo 0.8"


@pytest.mark.parametrize(
    ("aggregate", "score"), [("min", 0.5), ("product", 0.36), ("last", 0.8), ("mean", 2.2 / 3)]
)
def test_step_judge_aggregates_what_each_step_got(aggregate: str, score: float) -> None:
    verifier = sg.Verifier.load({"kind": "step_judge", "aggregate": aggregate})
    assert scores(verifier, [STEPS], ToyModel(judging)) == [pytest.approx(score)]


def test_step_judge_abstains_where_there_is_no_step() -> None:
    [verdict] = verdicts(sg.StepJudge(), ["  \n "], ToyModel(judging))
    assert verdict.score is None


def test_restart_is_the_softmax_of_no_against_yes() -> None:
    no, yes = math.exp(2.0), math.exp(0.0)  # adaptive_bon, test 1: logits 2 and 0
    total = no + yes + 1.0
    model = ToyModel({"": {"no": no / total, "yes": yes / total, "perhaps": 1.0 / total}})
    assert scores(sg.Restart(), ["The answer is 1."], model) == [pytest.approx(0.8808, abs=1e-4)]
    swapped = ToyModel({"": {"yes": no / total, "no": yes / total, "perhaps": 1.0 / total}})
    assert scores(sg.Restart(), ["The answer is 1."], swapped) == [pytest.approx(0.1192, abs=1e-4)]


def test_judge_reads_one_token_or_a_grade() -> None:
    assert scores(sg.Judge(), ["x 0.7"], ToyModel(judging)) == [pytest.approx(0.7)]
    graded = ToyModel({"": {"It is fine: 8": 1.0}})
    assert scores(sg.Judge(mode="grade"), ["x"], graded) == [0.8]
    for reply in ("I would not say.", "11", "A million: 99999999"):
        [verdict] = verdicts(sg.Judge(mode="grade"), ["x"], ToyModel({"": {reply: 1.0}}))
        assert verdict.score is None
        assert reply[:20] in verdict.reason


def test_exact_and_choice() -> None:
    assert scores(sg.Exact(reference="Forty Two"), ["The answer is forty  two.", "43", "?"]) == [1, 0, 0]
    assert scores(sg.Exact(), ["1"]) == [None]
    task = sg.Task(messages=(sg.Message("user", "Which?"),), choices=("red", "green"))
    texts = ["The answer is green.", "The answer is red.", "blue"]
    assert scores(sg.Choice(reference="B"), texts, None, task) == [1, 0, 0]
    assert scores(sg.Choice(reference="green"), texts, None, task) == [1, 0, 0]
    assert scores(sg.Choice(), texts, None, task) == [1, 1, 0]
    assert sg.Choice().equivalent("(B)", "b.")


def test_schema_accepts_and_says_why_not() -> None:
    accepts = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    task = sg.Task(messages=(sg.Message("user", "Which?"),), answer_schema=accepts)
    found = verdicts(sg.Schema(), ['{"n": 3}', '{"n": "3"}', "{}", "{"], None, task)
    assert [v.score for v in found] == [1, 0, 0, 0]
    assert "$.n" in found[1].reason
    assert "not JSON" in found[3].reason
    assert scores(sg.Schema(), ["{}"]) == [None]
    assert sg.Schema().equivalent('{"a": 1, "b": 2}', '{"b": 2, "a": 1}')
    assert scores(sg.Schema(accepts=accepts), ["[" * 100_000]) == [0]
    with pytest.raises(sg.ConfigurationError, match="accepts"):
        sg.Verifier.load({"kind": "schema", "accepts": {"type": "nothing"}})


def test_a_remote_reference_in_a_schema_is_not_fetched() -> None:
    with pytest.raises(sg.VerifierError, match="Unresolvable"):
        verdicts(sg.Schema(accepts={"$ref": "http://127.0.0.1:1/schema"}), ["1"])


def half(reference: str) -> sg.Verifier:
    return sg.Exact(reference=reference)


def test_algebra_of_verifiers() -> None:
    judge = sg.Judge()
    texts = ["x 0.7", "x 0.2"]
    model = ToyModel(judging)
    assert scores(judge & sg.StepJudge(), texts, model) == [pytest.approx(0.7), pytest.approx(0.2)]
    assert scores(sg.Exact(reference="0.2") & judge, texts, model) == [0.0, pytest.approx(0.2)]
    assert scores(sg.Exact(reference="0.2") | judge, texts, model) == [pytest.approx(0.7), 1.0]
    mean = 0.25 * sg.Exact(reference="0.2") + 0.75 * judge
    assert scores(mean, texts, model) == [pytest.approx(0.525), pytest.approx(0.4)]
    assert scores(sg.Exact() & judge, texts, model) == scores(judge, texts, model)  # abstentions are left out
    assert scores(sg.Exact() | sg.Schema(), texts, model) == [None, None]
    assert sg.Verifier.load(mean.dump()) == mean
    with pytest.raises(sg.ConfigurationError, match="as many weights"):
        sg.Verifier.load({"kind": "weighted", "parts": ["judge"], "weights": [1, 2]})


def test_a_score_out_of_range_or_missing_is_an_error() -> None:
    class Wild(sg.Verifier):
        kind = "wild_in_tests"
        value: float = float("nan")
        short: bool = False

        async def __call__(
            self, task: sg.Task, candidates: Sequence[sg.Candidate], run: sg.Run
        ) -> list[sg.Verdict]:
            return [] if self.short else [sg.Verdict(self.value) for _ in candidates]

    for wild, message in ((Wild(), "nan"), (Wild(value=1.5), "1.5"), (Wild(short=True), "0 verdicts on 1")):
        with pytest.raises(sg.VerifierError, match=message):
            verdicts(wild, ["x"])


def test_a_model_without_logprobs_cannot_judge() -> None:
    from dataclasses import replace

    from stratagem.core.errors import UnsupportedError
    from stratagem.testing.toy import CAPABLE

    model = ToyModel(judging, capabilities=replace(CAPABLE, logprobs=-1, prompt_logprobs=False))
    with pytest.raises(UnsupportedError, match="log-probabilities"):
        verdicts(sg.Judge(), ["x 0.7"], model)


def test_math_with_a_reference_compares_by_value() -> None:
    texts = [r"So it is \boxed{\frac{1}{2}}.", "The answer is 50%.", "The answer is 0.51.", "I do not know."]
    assert scores(sg.Math(reference="0.5"), texts) == [1, 1, 0, 0]
    assert scores(sg.Math(reference="0.5", tolerance=0.05), texts) == [1, 1, 1, 0]
    assert scores(sg.Math(reference="9**9**9"), ["The answer is 9**9**9**9."]) == [0]


def test_math_without_a_reference_checks_the_written_arithmetic() -> None:
    good = "Ben has 12 + 7 = 19 apples.\nCal has 2 * 19 = 38 apples.\nThe answer is 38."
    slip = good.replace("= 38", "= 39")
    texts = [good, slip, "The answer is 38.", "It costs $1,200 x 2 = $2,400, or 10% * 50 = 5.", "n = 3"]
    assert scores(sg.Math(), texts) == [1.0, 0.5, None, 1.0, None]
    [verdict] = verdicts(sg.Math(), [slip])
    assert verdict.reason == "wrong: 2 * 19 = 39"
    money = [
        "5 x $2 = $10",
        "12 x $15 = $180",
        "(2 + 3) x \u20ac4 = \u20ac20.00",
        "$5 + $6 = 11",
        "He has 5. 3 * 4 = 12.",
    ]
    assert scores(sg.Math(), [*money, "5 x $2 = $11", "$9 - $3 = -$6"]) == [1, 1, 1, 1, 1, 0, 0]
    rounded = ["100 / 3 = 33.33", "1 / 8 = 0.13", "$100 / 3 = $33.3", "2 / 3 = 0.6667"]
    assert scores(sg.Math(), [*rounded, "100 / 3 = 33.34", "7 / 2 = 4", "2 / 3 = 0.66"]) == [
        1,
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    assert scores(sg.Math(), ["9**9**9 = 1 " * 1000]) == [0.0]


@pytest.mark.parametrize("reply", ["-3", "1e1", "11", "3,000", "x2", "no"])
def test_what_is_no_grade_is_none(reply: str) -> None:
    [verdict] = verdicts(sg.Judge(mode="grade"), ["x"], ToyModel({"": {reply: 1.0}}))
    assert verdict.score is None


def test_a_grade_out_of_the_scale_is_read_as_the_grade() -> None:
    for reply in (
        "Grade: 2/10",
        "I give it 2 out of 10.",
        "2 / 10",
        "2 of 10",
        "2 on a scale of 10",
        "From 0 to 10: 2",
        "Grade: 2. (10 is best)",
        "(2)",
    ):
        assert scores(sg.Judge(mode="grade"), ["x"], ToyModel({"": {reply: 1.0}})) == [0.2]


def test_equality_of_composites() -> None:
    assert not (sg.Exact() & sg.Math()).equivalent("0.5", "1/2")
    assert (sg.Exact() | sg.Math()).equivalent("0.5", "1/2")
