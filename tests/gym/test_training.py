"""The training code on a tiny model: resume, probes as branches, sampling with a cache, on-policy labels."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stratagem.bench.gym import Document, Mark, Message, Probe, skill
from stratagem.core.prompts import RESTART_QUESTION, STEP_QUESTION

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "backends/embedded/mini/tokenizer.json"
TINY = '{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 64}'


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of training/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def load(name: str) -> ModuleType:
        return import_module(name)

    yield load
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(module: Any) -> Any:
    torch.manual_seed(0)
    return (
        module("model")
        .Decoder(module("model").Config(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64))
        .eval()
    )


def arguments(module: Any, out: Path, *more: str) -> Any:
    fixed = [
        "--config",
        TINY,
        "--tokens",
        "512",
        "--steps",
        "6",
        "--every",
        "0",
        "--tokenizer",
        str(TOKENIZER),
    ]
    return module("train").parser().parse_args(["--out", str(out), *fixed, *more])


def weights(trainer: Any) -> Any:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.filterwarnings("default")
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = module("train")
    whole = train.run(arguments(module, tmp_path / "whole"))
    update = train.Trainer.update

    def dies(self: Any, *rest: Any, **more: Any) -> Any:
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, *rest, **more)

    monkeypatch.setattr(train.Trainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train.run(arguments(module, tmp_path / "broken"))
    monkeypatch.setattr(train.Trainer, "update", update)
    resumed = train.run(arguments(module, tmp_path / "broken"))
    assert (whole.step, resumed.step) == (6, 6)
    assert torch.equal(weights(whole), weights(resumed))
    other = train.run(arguments(module, tmp_path / "other", "--seed", "2"))
    assert not torch.equal(weights(whole), weights(other))


def test_probes_on_branches_equal_documents_of_their_own(module: Any, tiny: Any) -> None:
    data, sampler = module("data"), module("sampler")
    encoder = data.Encoder(TOKENIZER)
    problem = skill("words").problem("test", 3)
    text = problem.solution
    cuts = [text.index("\n"), text.index("\n") + 1, len(text)]
    questions = [STEP_QUESTION, RESTART_QUESTION, RESTART_QUESTION]
    chat = (Message("user", problem.question), Message("assistant", text))
    instead = ["", "The answer is 7.", ""]
    probes = tuple(Probe(cut, q, 1.0, new) for cut, q, new in zip(cuts, questions, instead, strict=True))
    branched = Document(chat, probes)
    short = Document((Message("user", "Hi"), Message("assistant", "a\nb")), (Probe(1, STEP_QUESTION, 0.0),))
    together = sampler.yes_probabilities(tiny, encoder, [branched, short])
    assert [len(values) for values in together] == [3, 1]
    for cut, question, new, value in zip(cuts, questions, instead, together[0], strict=True):
        ids = [
            *sampler.prompt_ids(encoder, problem.question),
            *encoder.tokenizer.encode(text[:cut] + new).ids,
        ]
        ids += [data.END, data.USER, *encoder.tokenizer.encode(question).ids, data.END, data.ASSISTANT]
        length = len(ids)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        with torch.inference_mode():
            hidden, *_ = tiny(torch.tensor([ids]), torch.arange(length)[None], mask)
            alone = tiny.logits(hidden)[0, -1, [encoder.yes, encoder.no]].softmax(0)[0]
        assert value == pytest.approx(float(alone), abs=1e-6)


def test_marks_tell_where_a_line_goes_wrong(module: Any) -> None:
    """From the token that no true line has, and as many tokens of the true line in its place."""
    data = module("data")
    encoder = data.Encoder(TOKENIZER)
    text = "Ann has 3 + 4 = 7 pens.\nBen has 9 - 7 = 2 pens.\nThe answer is 2."
    wrong = "Ann has 3 + 4 = 8 pens."
    chat = (Message("user", "How many?"), Message("assistant", text, loss=True))
    row = encoder.row(Document(chat, (Probe(0, STEP_QUESTION, 0.0, wrong),)))
    said: dict[float, str] = {}
    for right in (0.0, 1.0):
        said[right] = encoder.tokenizer.decode(
            [row.ids[index] for index, label in row.marks if label == right]
        )
    assert said == {0.0: "8 pens.", 1.0: "7 pens."}
    step = encoder.row(Document(chat, (Probe(text.index("\n"), STEP_QUESTION, 1.0),)))
    assert not step.marks, "a right step alone has nothing to be compared with"


def test_a_question_about_a_restart_is_told_whether_a_wrong_line_stands_before_it(module: Any) -> None:
    data = module("data")
    text = "Ann has 3 + 4 = 7 pens.\nBen has 9 - 7 = 3 pens.\nThe answer is 3."
    first, second = text.index("\n"), text.rindex("\n")
    chat = (Message("user", "How many?"), Message("assistant", text))
    marks = (Mark(0, first, True), Mark(first, second - 7, True), Mark(second - 7, second, False))
    probes = tuple(Probe(at, RESTART_QUESTION, 0.5) for at in (first, second - 3, second, len(text)))
    row = data.Encoder(TOKENIZER).row(Document(chat, (Probe(first, STEP_QUESTION, 1.0), *probes), marks))
    assert [right for _, right in row.verdicts] == [1.0, 1.0, 0.0, 0.0]
    answers = [index for index, _, _, share, _ in row.learn if share == 0.5]
    assert [index for index, _ in row.verdicts] == answers


def test_a_deeper_model_starts_as_the_one_it_comes_from(module: Any, tiny: Any) -> None:
    model = module("model")
    deeper = model.Decoder(model.Config(hidden=32, layers=4, heads=2, kv_heads=1, head_dim=16, ffn=64)).eval()
    deeper.start_from(tiny)
    ids = torch.tensor([[1, 5, 9, 2, 7]])
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    with torch.inference_mode():
        assert torch.equal(
            deeper(ids, torch.arange(5)[None], mask)[0], tiny(ids, torch.arange(5)[None], mask)[0]
        )
    with pytest.raises(RuntimeError, match="layers"):
        tiny.start_from(deeper)


def test_training_goes_on_from_an_exported_folder(module: Any, tmp_path: Path) -> None:
    trainer = module("train").run(arguments(module, tmp_path / "run"))
    folder = tmp_path / "exported"
    folder.mkdir()
    module("export").export(tmp_path / "run" / "last.pt", folder, 1.0)
    loaded = module("train").load_model(folder)
    assert loaded.config == trainer.model.config
    for name, weight in trainer.model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], weight, atol=1e-3), "but for float16"


@pytest.mark.filterwarnings("default")
def test_lower_layers_can_stay_as_they_are(module: Any, tmp_path: Path) -> None:
    train = module("train")
    solver = train.run(arguments(module, tmp_path / "solver"))
    deeper = TINY.replace('"layers": 2', '"layers": 3')
    more = ("--config", deeper, "--init", str(tmp_path / "solver" / "last.pt"), "--frozen", "2")
    judge = train.run(arguments(module, tmp_path / "judge", *more))
    before, after = solver.model.state_dict(), judge.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert before.keys() - same == {"norm.weight"}
    assert after["layers.2.mlp.down_proj.weight"].abs().sum() > 0, "the new one starts as the identity"


def test_what_is_said_is_what_stands_in_solutions(module: Any) -> None:
    """Right and wrong ones; but the first token of a wrong line follows no token beside it."""
    data = module("data")
    encoder = data.Encoder(TOKENIZER)
    text = "Ann has 3 + 4 = 7 pens.\nThe answer is 7."
    wrong = "Ann has 3 + 4 = 8 pens."
    chat = (Message("user", "How many?"), Message("assistant", text, loss=True))
    row = encoder.row(Document(chat, (Probe(0, STEP_QUESTION, 0.0, wrong),)))
    assert encoder.tokenizer.decode([row.ids[i] for i in row.said]) == text + wrong.removeprefix("Ann")
    assert row.ids[row.said[0] - 1] == data.ASSISTANT


def test_contrasts_put_an_own_mistake_beside_the_true_step(module: Any) -> None:
    rounds = module("rounds")
    task = skill("words")
    problem = task.problem("train", 5)
    truth = problem.solution.split("\n")
    early = f"{truth[0]}\nThe answer is 999."
    grades = [task.grade(problem, text) for text in (problem.solution, early, "Nothing.\nThe answer is 1.")]
    found = rounds.contrast(problem, problem.question, grades, random.Random(0))
    assert found is not None
    assert found.messages[-1] == Message("assistant", problem.solution, loss=True)
    assert [(probe.at, probe.yes, probe.instead) for probe in found.probes] == [
        (len(truth[0]), 1.0, ""),
        (0, 0.0, "Nothing."),
        (len(truth[0]) + 1 + len(truth[1]), 1.0, ""),
        (len(truth[0]) + 1, 0.0, "The answer is 999."),
    ]
    assert rounds.contrast(problem, problem.question, grades[:1], random.Random(0)) is None


def test_loss_is_on_the_assistant_alone(module: Any) -> None:
    data = module("data")
    encoder = data.Encoder(TOKENIZER)
    row = encoder.row(
        Document((Message("user", "How many?"), Message("assistant", "The answer is 5.", loss=True)))
    )
    start = row.ids.index(data.ASSISTANT)
    assert [index for index, *_ in row.learn] == list(range(start, len(row.ids) - 1))
    assert [target for _, target, *_ in row.learn] == row.ids[start + 1 :]
    assert row.ids[-1] == data.END


def test_sampling_with_a_cache_equals_without(module: Any, tiny: Any) -> None:
    data, sampler = module("data"), module("sampler")
    encoder = data.Encoder(TOKENIZER)
    questions = [skill("words").problem("test", index).question for index in range(3)]
    texts = sampler.sample(tiny, encoder, questions, 2, 1e-4, seed=0, rows=6, most=12)
    for question, group in zip(questions, texts, strict=True):
        ids = sampler.prompt_ids(encoder, question)
        start = len(ids)
        while len(ids) < start + 12 and ids[-1] != data.END:
            mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
            with torch.inference_mode():
                hidden, *_ = tiny(torch.tensor([ids]), torch.arange(len(ids))[None], mask)
                ids.append(int(tiny.logits(hidden)[0, -1].argmax()))
        plain = [token for token in ids[start:] if token != data.END]
        assert group == [encoder.tokenizer.decode(plain, skip_special_tokens=False)] * 2


def test_labels_of_a_round(module: Any, tmp_path: Path) -> None:
    rounds = module("rounds")
    assert rounds.restart_targets([True, False, False, True, False]) == [0.0, 0.5, 0.5, 0.0, 0.5]
    assert rounds.restart_targets([False, False]) == [0.0, 0.0]
    task = skill("words")
    problem = task.problem("train", 0)
    lines = problem.solution.split("\n")
    text = "\n".join([*lines[:-1], "The answer is 0.", "Now Ann has 1 + 1 = 2 pens."])
    made = rounds.document(
        task, problem, problem.question, text, task.grade(problem, text), 0.25, random.Random(0)
    )
    steps = [probe for probe in made.probes if probe.question == STEP_QUESTION]
    restarts = [probe for probe in made.probes if probe.question == RESTART_QUESTION]
    assert [text[: probe.at].split("\n")[-1] for probe in steps] == text.split("\n")[:-1]
    assert [probe.yes for probe in steps] == [1.0] * (len(lines) - 1) + [0.0]
    assert restarts[-1].at == len(text)
    assert {probe.yes for probe in restarts} == {0.25}
    *right, begun, wrong = [(text[mark.start : mark.stop].strip(), mark.right) for mark in made.marks]
    assert right == [(line, True) for line in lines[:-1]]
    assert (begun, wrong) == (("The answer is", True), ("0.", False))
    path = tmp_path / "own.jsonl"
    rounds.write_documents(path, [made, made])
    assert rounds.read_documents([path]) == [made, made]


def test_batches_do_not_depend_on_where_a_run_starts(module: Any) -> None:
    data, train = module("data"), module("train")
    encoder = data.Encoder(TOKENIZER)

    source = data.Source(lambda rng: train.stream([], 0.0, rng), encoder, 1, 2048, documents=64)

    def some(skip: int, count: int) -> list[Any]:
        return [batch.ids for batch in itertools.islice(data.batches(source.pool, skip), count)]

    assert all(torch.equal(a, b) for a, b in zip(some(0, 12)[5:], some(5, 7), strict=True))


@pytest.mark.filterwarnings("default")
def test_batches_do_not_depend_on_who_makes_them(module: Any, tmp_path: Path) -> None:
    train = module("train")
    with train.pools(arguments(module, tmp_path), 1) as alone:
        made = [alone(number) for number in range(2)]
    with train.pools(arguments(module, tmp_path, "--workers", "2"), 1) as together:
        for number, batches in enumerate(made):
            for mine, theirs in zip(together(number), batches, strict=True):
                for name in theirs.__dataclass_fields__:
                    assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_steps_are_compared_after_the_same_lines(module: Any) -> None:

    evaluate = module("evaluate")
    grade = skill("words").grade
    problem = skill("words").problem("test", 3)
    first, second, *_ = problem.solution.split("\n")
    texts = [problem.solution, "Wrong.", f"{first}\nWrong too.\n{second}"]
    grades = [[grade(problem, text) for text in texts]]
    scores = [[0.9, 0.8] + [0.5] * 20, [0.3], [0.9, 0.8, 0.1]]
    # "Wrong." stands below the first line; "Wrong too." ties with the second; what follows it does not count.
    assert evaluate._same_prefix(grades, scores) == pytest.approx((1 + 0.5) / 2)


def test_an_anchor_holds_what_is_known(module: Any, tiny: Any) -> None:
    """Half of the loss of known rows is how far the model is from its old self; others learn as before."""
    data, model, train = module("data"), module("model"), module("train")
    encoder = data.Encoder(TOKENIZER)
    words = next(skill("words").documents(random.Random(1)))
    tools = next(skill("toolworld").documents(random.Random(2)))
    torch.manual_seed(5)
    old, mistakes = model.Decoder(tiny.config).eval(), model.Mistakes(tiny.config)

    def loss(known: tuple[bool, bool], anchor: Any) -> float:
        batch = data.collate([encoder.row(words, known[0]), encoder.row(tools, known[1])])
        with torch.inference_mode():
            return float(train.losses(tiny, mistakes, batch, True, anchor)[0])

    def share(document: Document) -> tuple[float, float]:
        """Of the loss and of the distance from `old`, weighted, of one document."""
        batch = data.collate([encoder.row(document)])
        with torch.inference_mode():
            mine, its = (
                m.logits(m(batch.ids, batch.positions, batch.mask)[0].flatten(0, 1)[batch.where]).log_softmax(
                    -1
                )
                for m in (tiny, old)
            )
        right = mine.gather(1, batch.target[:, None])[:, 0], mine.gather(1, batch.other[:, None])[:, 0]
        own = -(batch.share * right[0] + (1 - batch.share) * right[1])
        apart = (its.exp() * (its - mine)).sum(-1)
        return float((own * batch.weight).sum()), float((apart * batch.weight).sum())

    weight = float(data.collate([encoder.row(words), encoder.row(tools)]).weight.sum())
    (own, apart), (new, _) = share(words), share(tools)
    assert loss((False, False), old) == pytest.approx((own + new) / weight, rel=1e-5)
    assert loss((True, False), old) == pytest.approx(((own + apart) / 2 + new) / weight, rel=1e-5)
    assert loss((True, False), tiny) == pytest.approx((own / 2 + new) / weight, rel=1e-5)
    assert loss((True, False), None) == pytest.approx((own + new) / weight, rel=1e-5)


def test_a_step_without_finite_gradients_changes_nothing(module: Any, tiny: Any, tmp_path: Path) -> None:
    data, train = module("data"), module("train")
    trainer = train.Trainer(tiny.config, 1.0, 1)
    document = next(skill("toolworld").documents(random.Random(2)))
    sound = data.collate([data.Encoder(TOKENIZER).row(document)])
    broken = replace(sound, weight=sound.weight * float("inf"))
    before = weights(trainer)
    trainer.update(broken, 1.0, None, plain=True)
    assert (trainer.step, trainer.skipped) == (1, 1)
    assert torch.equal(weights(trainer), before)
    trainer.update(sound, 1.0, None, plain=True)
    assert (trainer.step, trainer.skipped) == (2, 1)
    assert not torch.equal(weights(trainer), before)

    checkpoint = tmp_path / "last.pt"
    trainer.save(checkpoint)
    resumed = train.Trainer(tiny.config, 1.0, 2)
    resumed.load(checkpoint)
    assert (resumed.step, resumed.skipped) == (2, 1)
    state = torch.load(checkpoint, weights_only=True)
    del state["skipped"]
    torch.save(state, checkpoint)
    resumed.load(checkpoint)
    assert (resumed.step, resumed.skipped) == (2, 0)
