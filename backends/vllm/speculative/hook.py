"""Our proposers inside a vLLM server: the classes that its speculative method ``custom_class`` names.

vLLM (0.32, where the hook is experimental) makes one of them in each worker, shows it the model once, and after
each step asks for the next drafts. A draft may have any length up to ``num_speculative_tokens``, also none. vLLM
names no requests and moves them between the rows of its batch, so a request is known by its tokens: a row that
holds those of a context and then what was just sampled is that context. Requests whose tokens are the same are one
to a proposer as well. One that is preempted goes, and comes back as if what it has decoded stood in its prompt.

The target's likeliest next tokens, which Token Recycling lives from, are read off the model's own output layer by a
forward hook of torch's. Its rows in a step are, request by request, those after its last token and after each of
its draft. Where vLLM has cut drafts (to what a grammar allows, or to the room in a step) the number of rows tells,
and then only what was decoded teaches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratagem.backends.vllm.profiles import DATASTORE
from stratagem.backends.vllm.speculative.datastore import END, Datastore
from stratagem.backends.vllm.speculative.lookup import PromptLookup
from stratagem.backends.vllm.speculative.merged import Merged
from stratagem.backends.vllm.speculative.past import vocabulary_of
from stratagem.backends.vllm.speculative.proposer import Context, Ids, Proposer
from stratagem.backends.vllm.speculative.recycling import TokenRecycling
from stratagem.backends.vllm.speculative.retrieval import Retrieval
from stratagem.backends.vllm.speculative.sampling import ensure_right
from stratagem.backends.vllm.speculative.trie import TokenTrie
from stratagem.core.errors import ConfigurationError

FLOOR = 0.1  # drafts end where all up to there is right with a lower probability
_OUTPUTS = 4  # of the output layer that are kept: a step's, and those for log-probabilities of prompts


class Hook(ABC):
    """What vLLM sees; a class of one's own need only say its proposer.

    Args:
        vllm_config: vLLM's own; read are ``num_speculative_tokens``, the model's vocabulary, tokenizer and longest
            sequence, and ``additional_config``.
    """

    def __init__(self, vllm_config: Any) -> None:
        model = vllm_config.model_config
        self._depth: int = vllm_config.speculative_config.num_speculative_tokens
        self._longest: int = model.max_model_len
        self._model = model
        self._proposer = self.made(model.get_vocab_size(), vllm_config.additional_config)
        self._contexts: dict[int, Context] = {}  # by row of the last step
        self._drafts: dict[Context, list[int]] = {}
        self._outputs: deque[Any] = deque(maxlen=_OUTPUTS)

    @abstractmethod
    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        """The proposer, for so many token ids; ``options`` are those of `--additional-config`."""

    def past(self, options: Mapping[str, Any]) -> Retrieval:
        """The proposer from the file that the options name.

        Raises:
            ConfigurationError: it cannot be read, or holds tokens of another model, that this one may not have.
        """
        path = options[DATASTORE]
        store = Datastore.load(path)
        if not _fits(store, self._model):
            raise ConfigurationError(
                f"The datastore {path} was made for another model: its tokens are not those of this one.",
                remedy="Make one with: stratagem vllm datastore",
            )
        return Retrieval(store)

    def load_model(self, model: Any) -> None:
        """Called once with the target: watches its output layer for a proposer that learns from it.

        Raises:
            ConfigurationError: this vLLM would sample wrongly.
        """
        ensure_right()
        if not self._proposer.successors:
            return
        layers = import_module("vllm.model_executor.layers.logits_processor")
        for module in model.modules():
            if isinstance(module, layers.LogitsProcessor):
                module.register_forward_hook(self._output)

    def _output(self, module: object, inputs: object, logits: Any) -> None:
        if logits is not None:  # as in workers that hold a part of the vocabulary only
            self._outputs.append(logits.topk(self._proposer.successors, dim=-1).indices)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[Any],
        token_ids_cpu: Ids,
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """The next draft of each row; none for a row that has sampled nothing, which is still in its prompt."""
        rows = {
            row: token_ids_cpu[row, : int(num_tokens_no_spec[row])]
            for row, sampled in enumerate(sampled_token_ids)
            if sampled
        }
        before = {row: tokens[: len(tokens) - len(sampled_token_ids[row])] for row, tokens in rows.items()}
        known = self._known(before)
        likeliest = self._likeliest(len(sampled_token_ids), known)
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        for row, tokens in rows.items():
            context = known.get(row)
            if context is None:
                context = known[row] = Context(before[row])
                self._proposer.start(context)
            inputs = [*context.last(1), *self._drafts.pop(context, ())]
            context.extend(sampled_token_ids[row])
            tops = list(zip(inputs, likeliest.get(row, ()), strict=False))
            self._proposer.learn(context, sampled_token_ids[row], tops)
            # The last place belongs to the token that the target itself decodes after the draft.
            room = min(self._depth, self._longest - len(tokens) - 1)
            if room > 0:
                drafts[row] = self._proposer.propose(context, room).best(room, FLOOR)
                self._drafts[context] = drafts[row]
        self._contexts = known
        return drafts

    def _known(self, before: Mapping[int, Ids]) -> dict[int, Context]:
        """The contexts whose tokens these are, most of which stay in their row; all others have ended."""
        left, found = dict(self._contexts), dict[int, Context]()
        for row, tokens in before.items():
            if row in left and _same(left[row], tokens):
                found[row] = left.pop(row)
        for row, tokens in before.items():
            if row not in found:
                moved = next((old for old, context in left.items() if _same(context, tokens)), None)
                if moved is not None:
                    found[row] = left.pop(moved)
        for context in left.values():
            self._drafts.pop(context, None)
            self._proposer.stop(context)
        return found

    def _likeliest(self, rows: int, known: Mapping[int, Context]) -> dict[int, list[list[int]]]:
        """By row, the target's likeliest tokens after the row's last one and after each of its draft."""
        sizes = [1 + len(self._drafts.get(known[row], ())) if row in known else 1 for row in range(rows)]
        fitting = [output for output in self._outputs if len(output) == sum(sizes)]
        self._outputs.clear()
        if not fitting:
            return {}
        lines: Iterator[list[int]] = iter(fitting[0].tolist())
        return {row: [next(lines) for _ in range(size)] for row, size in enumerate(sizes)}


def _fits(store: Datastore, model: Any) -> bool:
    if store.tokens.max(initial=END) >= model.get_vocab_size():
        return False
    try:
        return store.vocabulary in ("", vocabulary_of(model.tokenizer))
    except (
        ConfigurationError
    ):  # vLLM reads other kinds of tokenizers as well, with which nothing can be compared
        return True


def _same(context: Context, tokens: Ids) -> bool:
    return context.length == len(tokens) and np.array_equal(context.tokens, tokens)


class RecyclingHook(Hook):
    """Token Recycling."""

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        return TokenRecycling(vocabulary)


class TrieHook(Hook):
    """The trie over prompts and outputs."""

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        return TokenTrie()


class RetrievalHook(Hook):
    """Retrieval from a file of past runs."""

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        return self.past(options)


class MergedHook(Hook):
    """All of them, and prompt lookup; retrieval where there is a file."""

    def made(self, vocabulary: int, options: Mapping[str, Any]) -> Proposer:
        past = [self.past(options)] if DATASTORE in options else []
        return Merged([TokenRecycling(vocabulary), TokenTrie(), PromptLookup(), *past])
