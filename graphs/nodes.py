"""Any strategy as one node of a LangGraph graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.runtime import Runtime
from pydantic import ValidationError

from stratagem.core.asking import POLICY
from stratagem.core.backend import Backend
from stratagem.core.budget import Budget, Ledger
from stratagem.core.calling import Toolbox
from stratagem.core.connect import checked_roles, shipped
from stratagem.core.errors import ConfigurationError
from stratagem.core.execute import execute
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Task
from stratagem.core.trace import Record, Trace


class StrategyNode:
    """An async function from state to update, named after its strategy (see :func:`node`)."""

    def __init__(
        self,
        strategy: Strategy,
        models: Mapping[str, Backend] | None,
        budget: Budget | None,
        seed: int,
        question_key: str,
        answer_key: str,
        tools: Toolbox | None,
    ) -> None:
        self.strategy = strategy
        self._tools = tools
        self.__name__ = strategy.kind
        self._models = models
        self._budget = budget
        self._seed = seed
        self._question_key = question_key
        self._answer_key = answer_key

    async def __call__(self, state: Any, runtime: Runtime[Any]) -> dict[str, Any]:
        task, from_messages = self._task(state)
        info = runtime.execution_info
        run_id = (info.thread_id if info is not None else None) or ""

        def stream(record: Record) -> None:
            runtime.stream_writer(json.loads(record.json()))

        run = Run(
            self._models or _given(runtime.context) or {POLICY: shipped()},
            ledger=Ledger(self._budget),
            seed=self._seed,
            trace=Trace(run_id, listeners=[stream]),
            run_id=run_id,
            tools=self._tools,
        )
        answer = await execute(self.strategy, task, run)
        update: dict[str, Any] = {self._answer_key: answer.model_dump(mode="json")}
        if from_messages:
            update["messages"] = [{"role": "assistant", "content": answer.text}]
        return update

    def _task(self, state: Any) -> tuple[Task, bool]:
        """The question, and whether it came from a conversation."""
        question = _look(state, self._question_key)
        from_messages = question is None
        if from_messages:
            question = _last_said(_look(state, "messages") or ())
        try:
            if isinstance(question, Mapping):
                return Task.model_validate(question), False
            if isinstance(question, str | Task):
                return Task.of(question), from_messages
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"])) or "task"
            raise ConfigurationError(
                f"Node {self.__name__!r}: state[{self._question_key!r}] is no task: {where}: {wrong['msg']}."
            ) from None
        raise ConfigurationError(
            f"Node {self.__name__!r} finds no question in the state under {self._question_key!r}, nor a human "
            "message under 'messages'.",
            remedy="Name the key: node(strategy, question_key=...).",
        )


def node(
    strategy: Strategy,
    *,
    llm: Backend | None = None,
    models: Mapping[str, Backend] | None = None,
    tools: Toolbox | None = None,
    budget: Budget | str | Mapping[str, Any] | None = None,
    seed: int = 0,
    question_key: str = "question",
    answer_key: str = "answer",
) -> StrategyNode:
    """A node for your own ``StateGraph``: ``builder.add_node(node(BestOfN(n=8)))``.

    It reads the question (a text, a task or a task's plain data) from ``state[question_key]``, or where there
    is none from the last human message of ``state["messages"]``, to which it then adds the reply. It writes
    the answer as plain data to ``state[answer_key]``, which the state's schema must have
    (``Answer.model_validate`` reads it back), and sends each trace record to the graph's custom stream. It is
    asynchronous: run the graph with ``ainvoke`` or ``astream``, as LangGraph's ``invoke`` raises a TypeError.

    Args:
        llm: the model that answers; short for ``models={"policy": llm}``.
        models: backends by role. Without both, ``models`` or ``llm`` of the graph's runtime context; without
            those, the shipped model.
        tools: what a strategy that calls tools may call.
        budget: limits of each execution of the node, as an object or as ``"tokens=20000"``.
        seed: the same seed gives the same answer to the same question.

    Raises (when it runs):
        ConfigurationError: the state has no question.
        StratagemError: what the strategy or its models raise.
    """
    return StrategyNode(
        strategy, roles(llm, models), Budget.of(budget), seed, question_key, answer_key, tools
    )


def roles(llm: Backend | None, models: Mapping[str, Backend] | None) -> Mapping[str, Backend] | None:
    """Backends by role; None where none is given."""
    roles = {**(models or {}), **({POLICY: llm} if llm is not None else {})}
    if roles and POLICY not in roles:
        raise ConfigurationError(
            f"models has no {POLICY!r}, only {', '.join(map(repr, roles))}.", remedy="Give llm=... as well."
        )
    return checked_roles(roles) or None


def _given(context: Any) -> Mapping[str, Backend] | None:
    return roles(_look(context, "llm"), _look(context, "models"))


def _look(state: Any, key: str) -> Any:
    """A key of a mapping or an attribute of an object (LangGraph has both as state and as context)."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _last_said(messages: Sequence[Any]) -> str | None:
    """The text of the last human message: LangChain's, or a mapping with role and content."""
    for message in reversed(messages):
        if (_look(message, "type") or _look(message, "role")) in ("human", "user"):
            text = _look(message, "text")
            content = text if isinstance(text, str) else _look(message, "content")
            return str(content) if isinstance(content, str) else None
    return None
