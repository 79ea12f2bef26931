"""What proposers guess, by known answers; nothing here needs vLLM. tests/vllm runs them in it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratagem.backends.embedded.backend import MINI
from stratagem.backends.embedded.tokenizer import Tokenizer
from stratagem.backends.journaled import Journaled
from stratagem.backends.vllm.speculative.datastore import DEPTH, END, Datastore
from stratagem.backends.vllm.speculative.lookup import PromptLookup
from stratagem.backends.vllm.speculative.merged import Merged
from stratagem.backends.vllm.speculative.past import collected, texts
from stratagem.backends.vllm.speculative.proposer import Context, Proposer
from stratagem.backends.vllm.speculative.recycling import (
    BUDGET,
    LEVELS,
    SUBTREES,
    TokenRecycling,
    template,
)
from stratagem.backends.vllm.speculative.retrieval import Retrieval
from stratagem.backends.vllm.speculative.simulate import Spoken, simulate
from stratagem.backends.vllm.speculative.tree import Tree
from stratagem.backends.vllm.speculative.trie import TokenTrie
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.errors import ConfigurationError, StoreError
from stratagem.core.trace import CompletionArrived, JsonLines, Proposed, Trace
from stratagem.testing.toy import ToyModel

ABC = [1, 2, 3] * 20


def paths(tree: Tree) -> dict[tuple[int, ...], float]:
    return {path: reach for reach, path, _ in tree.paths()}


def spoken(proposer: Proposer, prompt: Sequence[int], output: Sequence[int]) -> None:
    """A request from its start to its end, a token at a time, with nothing guessed."""
    simulate(proposer, [Spoken(prompt, output)], limit=0)


def guess(proposer: Proposer, prompt: Sequence[int], limit: int = 8) -> Tree:
    context = Context(prompt)
    proposer.start(context)
    tree = proposer.propose(context, limit)
    proposer.stop(context)
    return tree


# Trees


def test_branches_share_their_prefixes() -> None:
    tree = Tree([([1, 2, 3], [0.5, 0.5, 0.5]), ([1, 2, 4], [0.4, 0.6, 0.5])])
    assert paths(tree) == {(1,): 0.5, (1, 2): 0.3, (1, 2, 3): 0.15, (1, 2, 4): 0.15}
    assert len(tree) == 4


def test_a_tree_fused_with_itself_is_the_same_and_with_an_empty_one_too() -> None:
    def made() -> Tree:
        return Tree([([1, 2], [0.5, 0.5]), ([3], [0.9])])

    for other in (made(), Tree()):
        tree = made()
        tree.fuse(other)
        assert paths(tree) == paths(made())


branches = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 0.99)), min_size=1, max_size=5), max_size=6
)


@settings(deadline=None)
@given(branches, st.integers(0, 8), st.integers(0, 6))
def test_pruning_keeps_the_likeliest_and_best_is_the_most_expected(
    drawn: list[list[tuple[int, float]]], size: int, limit: int
) -> None:
    tree = Tree([([t for t, _ in branch], [p for _, p in branch]) for branch in drawn])
    all_paths = paths(tree)
    kept = paths(tree.pruned(size))
    assert len(kept) == min(size, len(all_paths))
    assert all(path[:-1] in kept for path in kept if len(path) > 1)
    left = [reach for path, reach in all_paths.items() if path not in kept]
    assert max(left, default=0.0) <= min(kept.values(), default=1.0)

    def expected(path: Sequence[int]) -> float:
        return sum(all_paths[tuple(path[: i + 1])] for i in range(len(path)))

    best = tree.best(limit)
    assert len(best) <= limit
    assert expected(best) == pytest.approx(
        max((expected(path) for path in all_paths if len(path) <= limit), default=0.0)
    )
    floored = tree.best(limit, 0.3)
    assert all(all_paths[tuple(floored[: i + 1])] >= 0.3 for i in range(len(floored)))


def test_a_draft_ends_where_it_is_not_likely_any_more() -> None:
    tree = Tree([([1, 2, 3], [0.8, 0.8, 0.2])])
    assert tree.best(8) == [1, 2, 3]
    assert tree.best(8, floor=0.5) == [1, 2]
    assert tree.best(1) == [1]
    assert tree.best(0) == []


# Prompt lookup


def test_lookup_copies_what_followed_the_earliest_longest_match() -> None:
    tokens = [1, 2, 7, 8, 1, 2, 9, 5, 1, 2]
    assert guess(PromptLookup(1, 5), tokens, 3).best(3) == [7, 8, 1]
    assert guess(PromptLookup(3, 5), tokens).best(8) == []
    assert guess(PromptLookup(1, 2), [5]).best(8) == []
    with pytest.raises(ValueError, match="shortest"):
        PromptLookup(3, 2)


# Token Recycling


def test_the_template_is_the_papers() -> None:
    nodes = template()
    depths, branch = list[int](), list[int]()
    for parent, rank in nodes:
        depths.append(0 if parent < 0 else depths[parent] + 1)
        branch.append(rank if parent < 0 else branch[parent])
    assert len(nodes) == len(set(nodes)) == 80
    assert [Counter(depths)[depth] for depth in range(6)] == list(LEVELS)
    assert [Counter(branch)[rank] for rank in range(8)] == list(SUBTREES)


@pytest.mark.parametrize("vocabulary", [1, 4096, 32_000, 65_536, 152_064, 262_144])
def test_the_matrix_fits_into_2_mb(vocabulary: int) -> None:
    made = TokenRecycling(vocabulary)
    assert made.matrix.nbytes <= BUDGET == 2_000_000
    assert made.successors == made.matrix.shape[1] <= 8
    if vocabulary <= 32_000:
        assert made.successors == 8


def test_no_matrix_is_made_for_a_vocabulary_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        TokenRecycling(10**6)


def test_the_matrix_is_the_targets_likeliest() -> None:
    made = TokenRecycling(100)
    context = Context([5, 6, 7])
    made.start(context)
    context.extend([8, 9])
    likeliest = [(7, [8, 30, 31, 32, 33, 34, 35, 36]), (8, [10, 9]), (40, [41])]
    made.learn(context, [8, 9], likeliest)
    assert {token: made.known(token) for token in (7, 8, 40, 9)} == dict(likeliest) | {9: []}
    assert guess(made, [1, 40]).best(4) == [41], "a draft token that was not accepted has taught too"


def test_without_the_targets_view_the_latest_goes_first() -> None:
    made = TokenRecycling(100)
    spoken(made, [0], [1, 2, 1, 3, 1, 2, 1, 4])
    assert made.known(1) == [4, 2, 3]
    assert made.known(0) == [1]
    assert made.known(4) == []


def test_periodic_text_is_accepted_to_the_full_depth() -> None:
    made = TokenRecycling(100)
    spoken(made, [], [1, 2, 3, 1])
    found = simulate(made, [Spoken([3], ABC)], limit=len(LEVELS))
    assert found.accepted > found.drafted - len(LEVELS), "but for the last, which the text's end cuts"
    assert found.per_step == pytest.approx(len(LEVELS), abs=0.5)


def test_nothing_known_is_nothing_guessed() -> None:
    assert len(guess(TokenRecycling(10), [1, 2])) == 0
    assert len(guess(TokenTrie(), [1, 2])) == 0
    assert len(guess(Retrieval(Datastore.of([])), [1, 2])) == 0
    assert len(guess(Merged([]), [1, 2])) == 0


# The trie


def test_what_followed_more_often_goes_first() -> None:
    trie = TokenTrie()
    for output in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 5]):
        spoken(trie, [9], output)
    tree = guess(trie, [1])
    reach = paths(tree)
    assert list(tree.roots) == [2]
    assert reach[2, 3] > reach[2, 5] > 0
    assert tree.best(8) == [2, 3, 4]


def test_the_prompt_goes_before_outputs_and_is_not_kept() -> None:
    trie = TokenTrie()
    spoken(trie, [9], [1, 2, 3])
    prompt = [1, 2, 7, 1, 2]
    tree = guess(trie, prompt)
    assert set(tree.roots) == {3, 7}
    assert tree.best(1) == [7]
    assert set(guess(trie, [1, 2]).roots) == {3}


def test_a_longer_match_decides() -> None:
    trie = TokenTrie()
    for output in ([1, 5, 2, 6], [1, 3, 2, 7], [1, 3, 2, 7]):
        spoken(trie, [9], output)
    assert guess(trie, [2]).best(1) == [7]
    assert guess(trie, [5, 2]).best(1) == [6]


def test_a_draft_goes_on_where_a_stored_branch_ends() -> None:
    trie = TokenTrie(length=3)
    spoken(trie, [0], list(range(1, 12)))
    assert guess(trie, [1, 2], limit=8).best(8) == list(range(3, 11))


def test_squeezing_halves_and_forgets() -> None:
    trie = TokenTrie()
    for output in ([1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 4]):
        spoken(trie, [0], output)
    assert (trie.counts([1, 2]), trie.counts([1, 2, 3]), trie.counts([1, 2, 4])) == (5, 4, 1)
    trie.squeeze([1])
    assert (trie.counts([1, 2]), trie.counts([1, 2, 3]), trie.counts([1, 2, 4])) == (2, 2, 0)
    assert trie.counts([2, 4]) == 1, "another first token"


def test_the_trie_stays_small_and_goes_on_knowing() -> None:
    rng = random.Random(1)
    trie = TokenTrie(capacity=2000, per_first=500)
    for _ in range(40):
        spoken(trie, [0], [*rng.choices(range(1, 50), k=40), 77, 78, 79])
    stored = sum(trie.counts([first, second]) > 0 for first in range(80) for second in range(80))
    assert stored < 2000
    assert guess(trie, [77]).best(2) == [78, 79]


@pytest.mark.parametrize("bad", [{"length": 1}, {"weight": 0.0}, {"size": 0}, {"capacity": 0}])
def test_no_trie_is_made_of_nonsense(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no trie has"):
        TokenTrie(**bad)


# Retrieval

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), max_size=5)


@settings(deadline=None)
@given(sequences, st.lists(st.integers(0, 2), max_size=6))
def test_the_longest_end_that_is_followed_by_something_is_found(
    kept: list[list[int]], context: list[int]
) -> None:
    store = Datastore.of(kept)
    for length in range(len(context), 0, -1):
        end = context[len(context) - length :]
        following = [
            row[at + length :]
            for row in kept
            for at in range(len(row) - length)
            if row[at : at + length] == end
        ]
        if following:
            break
    else:
        length, following = 0, []
    places, match = store.find(context)
    assert match == length
    assert sorted(store.following(places, 100)) == sorted(following)
    assert [row[:DEPTH] for row in store.following(places, 100)] == sorted(row[:DEPTH] for row in following)


def test_past_runs_are_copied_and_survive_a_file(tmp_path: Path) -> None:
    store = Datastore.of([[1, 2, 3, 4], [1, 2, 3, 4], [], [1, 2, 5], [8, 3, 6]], "a digest")
    assert store.sequences == 4
    store.save(tmp_path / "runs.npz")
    again = Datastore.load(tmp_path / "runs.npz")
    assert np.array_equal(again.tokens, store.tokens)
    assert again.vocabulary == "a digest"
    np.savez(tmp_path / "old.npz", tokens=store.tokens)
    assert Datastore.load(tmp_path / "old.npz").vocabulary == ""
    tree = guess(Retrieval(again), [7, 1, 2])
    assert tree.match == 2
    assert paths(tree) == {(3,): 2 / 4, (5,): 1 / 4, (3, 4): 2 / 4 * 2 / 3}
    assert guess(Retrieval(again), [8, 3]).best(4) == [6]
    assert guess(Retrieval(again), [6]).best(4) == [], "nothing follows the end of a sequence"


def test_a_file_that_is_no_datastore_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.npz cannot be read: No such file.*vllm datastore"):
        Datastore.load(tmp_path / "none.npz")
    (tmp_path / "text").write_text("[1, 2]")
    np.save(tmp_path / "pickled.npy", np.array([{}], object))
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    np.savez(tmp_path / "open.npz", tokens=np.array([1, 2], np.int32))
    np.savez(tmp_path / "float.npz", tokens=np.array([1.0, END]))
    (tmp_path / "empty").write_text("")
    for name in ("text", "pickled.npy", "other.npz", "open.npz", "float.npz", "empty"):
        with pytest.raises(ConfigurationError, match=f"{name} is no datastore"):
            Datastore.load(tmp_path / name)
    with pytest.raises(StoreError, match="cannot be written"):
        Datastore.of([[1]]).save(tmp_path / "no" / "folder.npz")


ASKED = Request((Message("user", "How are you?"),), n=2, seed=1)


def kept(folder: Path) -> None:
    """A journal, a trace and a text of past runs."""

    words = {"": {"a": 0.5, "b": 0.5}, "a": {"b": 0.9, "": 0.1}, "b": {"": 1.0}, "ab": {"": 1.0}}

    async def main() -> None:
        backend = Journaled(ToyModel(words), folder / "journal", "a run")
        found = await backend.generate(ASKED)
        await backend.score(ScoreRequest(ASKED.messages, ("a", "b", "a", "b")))
        await backend.aclose()
        lines = JsonLines(folder / "trace.jsonl")
        trace = Trace("a run", listeners=[lines])
        for completion in found.completions:
            trace.append(CompletionArrived(1, completion.index, completion.text, "stop", 3))
        trace.append(Proposed("a", None))
        lines.close()

    asyncio.run(main())
    (folder / "notes.txt").write_text("One, two.\nThree, four.")


def test_past_runs_are_read_from_journals_traces_and_texts(tmp_path: Path) -> None:
    kept(tmp_path)
    found = {path.name: list(texts(path)) for path in tmp_path.iterdir()}
    assert sorted(found["journal"]) == sorted(found["trace.jsonl"])
    assert len(found["journal"]) == 2
    assert found["notes.txt"] == ["One, two.\nThree, four."]
    store = collected(MINI, [tmp_path / "notes.txt", tmp_path / "journal"])
    assert store.sequences == 1 + sum(bool(text) for text in found["journal"])
    encode = Tokenizer(MINI).encode
    context = encode("One, two.\n")
    places, match = store.find(context)
    assert match == len(context)
    assert store.following(places, 100) == [encode("One, two.\nThree, four.")[match:]]


SAID = ("One\u2028two\u0085three, né\n", "{}", "Four.")


def traced(path: Path) -> None:
    """A run that was told these."""
    lines = JsonLines(path)
    trace = Trace("a run", listeners=[lines])
    for index, text in enumerate(SAID):
        trace.append(CompletionArrived(1, index, text, "stop", 3))
    lines.close()


def test_a_trace_that_was_cut_off_anywhere_gives_what_stands_in_it(tmp_path: Path) -> None:
    traced(tmp_path / "whole.jsonl")
    assert tuple(texts(tmp_path / "whole.jsonl")) == SAID
    written = (tmp_path / "whole.jsonl").read_bytes()
    for end in range(30, len(written)):
        (tmp_path / "torn.jsonl").write_bytes(written[:end])
        found = tuple(texts(tmp_path / "torn.jsonl"))
        whole = written.count(b"\n", 0, end)
        # A line that lacks only its end is there.
        assert found in (SAID[:whole], SAID[: whole + 1]), written[:end]


def test_a_line_that_is_no_event_within_a_trace_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    traced(path)
    first, second, *_ = path.read_text(encoding="utf-8").split("\n")
    for bad in (second[:40] + first, "[1]", '{"type": "completion"}', '{"type": "completion", "text": 1}'):
        path.write_text("\n".join((first, bad, second, "")), encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"runs.jsonl:2 is no event of a trace.*that line"):
            list(texts(path))


def test_files_of_which_nothing_can_be_made_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "damaged").write_bytes(b"SQLite format 3\0 and no more")
    trace = JsonLines(tmp_path / "none.jsonl")
    Trace("a run", listeners=[trace]).append(Proposed("a", None))
    trace.close()
    for name in ("no-such-file", "bytes", "damaged"):
        with pytest.raises(ConfigurationError, match=f"{name} cannot be read"):
            list(texts(tmp_path / name))
    (tmp_path / "half.jsonl").write_text('{"type": "completion", "run_id": "", "text": "a\\ud83d"}\n')
    assert collected(MINI, [tmp_path / "half.jsonl"]).sequences == 1, "half a surrogate pair is no character"
    with pytest.raises(ConfigurationError, match=r"no completion in these files.*traces"):
        collected(MINI, [tmp_path / "none.jsonl"])
    with pytest.raises(ConfigurationError, match=r"no tokenizer of .*tokenizer.json"):
        collected(tmp_path, [])


# Merged


class Says(Proposer):
    """Always the same branch."""

    def __init__(self, branch: Sequence[int], estimate: float) -> None:
        self.branch, self.estimate = branch, estimate

    def propose(self, context: Context, limit: int) -> Tree:
        branch = self.branch[:limit]
        return Tree([(branch, [self.estimate] * len(branch))], match=1)


def test_the_longest_trusted_prefix_wins() -> None:
    both = Merged([Says([1, 2], 0.9), Says([1, 2, 3, 4], 0.6)])
    assert guess(both, [0]).best(8) == [1, 2, 3, 4], "fused: the common prefix has the higher estimate"
    either = Merged([Says([1, 2], 0.9), Says([5, 6, 7, 8], 0.3)])
    assert guess(either, [0]).best(8) == [1, 2]


def test_trust_is_earned() -> None:
    """One promises much and is wrong, the other little and is right."""
    merged = Merged([Says([7, 7, 7, 7], 0.9), Says([1, 1, 1, 1], 0.3)])
    assert guess(merged, [0]).best(4) == [7, 7, 7, 7]
    found = simulate(merged, [Spoken([0], [1] * 200)])
    assert guess(merged, [0]).best(4) == [1, 1, 1, 1]
    assert found.per_step > 3


def test_merged_is_plain_drafting_beside_one_that_knows_nothing() -> None:
    def alone() -> Proposer:
        return TokenTrie()

    text = [Spoken([9], random.Random(3).choices([1, 2, 3], [8, 1, 1], k=300))]
    merged = simulate(Merged([alone(), Retrieval(Datastore.of([]))]), text)
    assert merged.per_step >= 0.95 * simulate(alone(), text).per_step


# All of them

MAKERS: dict[str, Callable[[], Proposer]] = {
    "lookup": lambda: PromptLookup(1, 4),
    "recycling": lambda: TokenRecycling(64),
    "trie": lambda: TokenTrie(capacity=300, per_first=60),
    "retrieval": lambda: Retrieval(Datastore.of([[1, 2, 3, 4, 5]])),
    "merged": lambda: Merged([TokenTrie(), TokenRecycling(64), PromptLookup(1, 3)]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_guesses_stay_within_their_limit_and_all_is_decoded(name: str) -> None:
    rng = random.Random(5)
    texts = [
        Spoken(rng.choices(range(64), k=rng.randint(0, 9)), rng.choices(range(6), k=rng.randint(0, 60)))
        for _ in range(12)
    ]
    for limit in (1, 4):
        proposer = MAKERS[name]()
        found = simulate(proposer, texts, limit=limit, concurrency=4)
        assert found.tokens == sum(max(0, len(text.output) - 1) for text in texts)
        assert found.accepted <= found.drafted <= limit * found.steps
        context = Context([1, 2, 3])
        proposer.start(context)
        assert all(len(path) <= limit for path in paths(proposer.propose(context, limit)))


@pytest.mark.parametrize("name", ["lookup", "recycling", "trie", "merged"])
def test_repeated_text_is_decoded_many_tokens_at_a_time(name: str) -> None:
    found = simulate(MAKERS[name](), [Spoken([1, 2, 3], ABC)] * 3)
    assert found.per_step > 3


def test_what_is_preempted_and_comes_back_is_learnt_once() -> None:
    trie = TokenTrie()
    context = Context([9])
    trie.start(context)
    context.extend([1, 2])
    trie.learn(context, [1, 2], ())
    trie.stop(context)
    again = Context([9, 1, 2])
    trie.start(again)
    again.extend([3])
    trie.learn(again, [3], ())
    assert trie.counts([1, 2, 3]) == 1
    assert trie.counts([1, 2]) == 1
