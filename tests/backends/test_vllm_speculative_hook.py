"""The hook for vLLM, driven row by row as vLLM's runner does it; tests/vllm drives it in a server."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from stratagem.backends.embedded.backend import MINI
from stratagem.backends.vllm.profiles import DATASTORE, OWN
from stratagem.backends.vllm.speculative import hook
from stratagem.backends.vllm.speculative.datastore import Datastore
from stratagem.backends.vllm.speculative.hook import Hook, MergedHook, RetrievalHook
from stratagem.backends.vllm.speculative.past import collected
from stratagem.backends.vllm.speculative.proposer import Context, Proposer, Tops
from stratagem.backends.vllm.speculative.tree import Tree
from stratagem.core.errors import ConfigurationError

LONGEST = 64
VOCABULARY = 16


def config(
    options: Mapping[str, str] | None = None, tokenizer: Path = MINI, vocabulary: int = VOCABULARY
) -> Any:
    """What the hook reads of vLLM's configuration."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=LONGEST, get_vocab_size=lambda: vocabulary, tokenizer=str(tokenizer)
        ),
        speculative_config=SimpleNamespace(num_speculative_tokens=4),
        additional_config=options or {},
    )


def following(tokens: Sequence[int]) -> int:
    """The target: greedy, and periodic enough for guesses to hold now and then."""
    return (3 * tokens[-1] + tokens[len(tokens) // 2] + 1) % VOCABULARY


class Batch:
    """vLLM's side of the hook: rows of tokens, and the check of drafts against the target."""

    def __init__(self, proposer: Hook, rows: int = 8) -> None:
        self.hook = proposer
        self.tokens = np.zeros((rows, LONGEST), np.int32)
        self.counts = np.zeros(rows, np.int64)
        self.drafts: dict[int, list[int]] = {}
        self.texts: list[list[int]] = []  # by row

    def step(self, prefilling: Sequence[int] = ()) -> None:
        """Every row checks its draft and decodes a token more; but those that are still in their prompt."""
        sampled: list[list[int]] = []
        for row, text in enumerate(self.texts):
            found = list[int]()
            if row not in prefilling:
                for guess in [*self.drafts.get(id(text), ()), None]:
                    found.append(following(text + found))
                    if guess != found[-1]:
                        break
            sampled.append(found)
            text += found
            self.tokens[row, : len(text)] = text
            self.counts[row] = len(text)
        drafts = self.hook.propose(sampled, self.counts, self.tokens, slot_mappings=None)
        assert [len(draft) for draft, found in zip(drafts, sampled, strict=True) if not found] == [0] * len(
            prefilling
        )
        ends = [len(text) + len(draft) for text, draft in zip(self.texts, drafts, strict=True) if draft]
        assert all(end < LONGEST for end in ends)
        self.drafts = {id(text): draft for text, draft in zip(self.texts, drafts, strict=True)}


class Watching(Proposer):
    """Sees to it that every context is a request's, and guesses right by halves."""

    def __init__(self) -> None:
        self.running: list[Context] = []
        self.learnt: list[tuple[list[int], Tops]] = []
        self.ended = 0

    def start(self, context: Context) -> None:
        self.running.append(context)

    def stop(self, context: Context) -> None:
        self.running.remove(context)
        self.ended += 1

    def learn(self, context: Context, decoded: Sequence[int], tops: Tops) -> None:
        text = context.tokens.tolist()
        assert text[len(text) - len(decoded) :] == list(decoded)
        assert all(text[at] == following(text[:at]) for at in range(context.prompt, len(text)))
        self.learnt.append((list(decoded), tops))

    def propose(self, context: Context, limit: int) -> Tree:
        text = context.tokens.tolist()
        for right in (True, True, False, True)[:limit]:
            text.append(following(text) if right else (following(text) + 1) % VOCABULARY)
        branch = text[context.length :]
        return Tree([(branch, [0.9] * len(branch))])


class WatchingHook(Hook):
    proposer: Watching

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        self.proposer = Watching()
        return self.proposer


def test_requests_are_followed_through_moves_preemptions_and_siblings() -> None:
    rng = random.Random(2)
    made = WatchingHook(config())
    batch = Batch(made)
    waiting = [rng.choices(range(VOCABULARY), k=rng.randint(1, 12)) for _ in range(25)]
    waiting += [list(waiting[0]) for _ in range(6)]  # siblings
    total, restarts = len(waiting), 0
    while waiting or batch.texts:
        while waiting and len(batch.texts) < 8:
            batch.texts.append(waiting.pop())
        if rng.random() < 0.3:
            rng.shuffle(batch.texts)
        if rng.random() < 0.1:  # preempted: it goes, and comes back later
            gone = batch.texts.pop(rng.randrange(len(batch.texts)))
            waiting.insert(0, gone)
            restarts += 1
        batch.step(prefilling=[])
        batch.texts = [text for text in batch.texts if len(text) < 40]
    assert made.proposer.ended + len(made.proposer.running) <= total + restarts
    decoded = [len(tokens) for tokens, _ in made.proposer.learnt]
    assert max(decoded) == 3, "two right guesses and the target's own token"
    assert sum(decoded) / len(decoded) > 2, "drafts were told apart and accepted"
    made.propose([], batch.counts, batch.tokens)
    assert made.proposer.running == []


def test_a_row_in_its_prompt_gets_no_draft_and_a_full_one_neither() -> None:
    made = WatchingHook(config())
    batch = Batch(made)
    batch.texts = [[1, 2], [3] * (LONGEST - 4)]
    batch.step(prefilling=[0])
    assert len(made.proposer.running) == 1
    while len(batch.texts[1]) < LONGEST - 1:
        batch.step(prefilling=[0])
    assert batch.drafts[id(batch.texts[1])] == []


def test_a_prompt_that_extends_a_finished_text_is_a_request_of_its_own() -> None:
    made = WatchingHook(config())
    batch = Batch(made)
    batch.texts = [[1, 2]]
    batch.step()
    batch.texts = [[*batch.texts[0], 5, 6]]
    batch.drafts = {}
    batch.step()
    [context] = made.proposer.running
    assert context.prompt == len(batch.texts[0]) - 1
    assert made.proposer.ended == 1


@pytest.mark.parametrize("name", [path.rpartition(".")[2] for path in OWN.values()])
def test_every_hook_drafts(name: str, tmp_path: Path) -> None:
    """Text that was decoded before, or stands in the store, is guessed; nothing else changes."""
    plain = [1, 2, 3]
    while len(plain) < 40:
        plain.append(following(plain))
    Datastore.of([plain]).save(tmp_path / "runs.npz")
    made = getattr(hook, name)(config({DATASTORE: str(tmp_path / "runs.npz")}))
    batch = Batch(made)
    steps = 0
    for _ in range(3):
        batch.texts = [[1, 2, 3]]
        batch.drafts = {}
        steps = 0
        while len(batch.texts[0]) < 40:
            batch.step()
            steps += 1
        assert batch.texts[0][:40] == plain
    # The matrix has one list for a token, whatever stands before it: it cannot follow this target exactly.
    assert steps < (37 if name == "RecyclingHook" else 15)


def test_a_datastore_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    for kind in (RetrievalHook, MergedHook):
        with pytest.raises(Exception, match=r"runs.npz cannot be read"):
            kind(config({DATASTORE: str(tmp_path / "runs.npz")}))
    MergedHook(config())


@pytest.mark.parametrize("kind", [RetrievalHook, MergedHook])
def test_a_datastore_of_another_model_is_told_at_the_start(kind: type[Hook], tmp_path: Path) -> None:
    options = {DATASTORE: str(tmp_path / "runs.npz")}
    Datastore.of([[5, VOCABULARY - 1]]).save(options[DATASTORE])
    kind(config(options))
    Datastore.of([[5, 6], [VOCABULARY, 7]]).save(options[DATASTORE])
    with pytest.raises(ConfigurationError, match=r"runs.npz was made for another model.*vllm datastore"):
        kind(config(options))

    other = tmp_path / "other"
    other.mkdir()
    Tokenizer(WordLevel({"Ana": 0, "?": 1}, unk_token="?")).save(str(other / "tokenizer.json"))
    (tmp_path / "notes.txt").write_text("Ana")
    collected(other, [tmp_path / "notes.txt"]).save(options[DATASTORE])
    kind(config(options, tokenizer=other))
    kind(config(options, tokenizer=tmp_path))  # which has none that could be compared
    with pytest.raises(ConfigurationError, match=r"runs.npz was made for another model"):
        kind(config(options))
