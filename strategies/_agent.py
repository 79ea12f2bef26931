"""What all agents share: turns of a talk in which a model writes calls of tools and reads what they gave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from stratagem.core.asking import Sampling
from stratagem.core.backend import Constraint, Message
from stratagem.core.budget import Amount
from stratagem.core.calling import Called, Toolbox, shortened
from stratagem.core.component import parameter
from stratagem.core.concurrency import task_group
from stratagem.core.errors import BudgetExhausted, ConfigurationError, ContextLengthError
from stratagem.core.native import CUT, as_call, read_call
from stratagem.core.prompts import NATIVE
from stratagem.core.protocols import Strategy
from stratagem.core.run import Run
from stratagem.core.task import Answer, Candidate, Task
from stratagem.core.usage import Usage

ANSWER: Final = r"The answer is [^\n]+"
ANSWER_NOW: Final = "Write the answer now."
_CALL: Final = re.compile(r"\s*[A-Za-z_]\w*\s*=\s*[A-Za-z_]\w*\s*\(?")
_LEAST: Final = 40  # characters of each result that are always shown


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the model and what became of its calls."""

    said: str
    calls: tuple[Called, ...] = ()


class Lines:
    """Lines of a text that grows, each as soon as it is whole."""

    def __init__(self) -> None:
        self._rest = ""
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.count = 0  # how many there were

    def add(self, text: str) -> list[str]:
        """Take in more of the text; gives the lines that it ended."""
        *whole, self._rest = (self._rest + text).split("\n")
        return whole

    def end(self) -> str:
        """The last line."""
        last, self._rest = self._rest, ""
        return last

    def put(self, line: str) -> None:
        """Hand a line on."""
        self.count += 1
        self._queue.put_nowait(line)

    def close(self) -> None:
        """No line will follow."""
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (line := await self._queue.get()) is not None:
            yield line


class Agent(Strategy):
    """A model that answers with tools: it writes calls, reads their results, and goes on until it answers."""

    turns: ClassVar[bool] = True  # it is made of turns that may be taken one by one, as in a graph
    names_calls: ClassVar[bool] = True  # a call has a name by which others take its result

    system: str = parameter("", "Stands before the list of tools.", min_length=1)
    rounds: int = parameter(
        8,
        "Most turns with calls; then it has to answer, as it has after a turn that told nothing new.",
        ge=1,
        search=(2, 12),
    )
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = parameter(
        0.0, "Sampling temperature; none: the model's own default.", search=(0.0, 1.0)
    )
    max_tokens: int = parameter(512, "Longest turn, in tokens.", ge=1)
    constrained: bool = parameter(
        True,
        "Decode well-formed calls only, by a regular expression made of the tools' schemas, where the backend can.",
    )
    format: Literal["lines", "native"] = parameter(
        "lines",
        "How a model writes calls: lines of the plan notation, or natively, by a server that has OpenAI's tools.",
    )
    result_limit: int = parameter(1024, "Most characters shown of one result.", ge=_LEAST)
    context_limit: int = parameter(
        12_000, "Most characters shown of all results together; older ones are shortened first.", ge=_LEAST
    )

    @abstractmethod
    def pattern(self, tools: Toolbox) -> str:
        """A regular expression for a turn with calls."""

    def called(self, line: str) -> str | None:
        """The call that a line of a turn writes, None for a line that writes none."""
        if self.format == "native":
            return as_call(line)
        return line if _CALL.match(line) else None

    @property
    def calls_at_once(self) -> int:
        """Most calls of a turn."""
        return 1

    @property
    def wording(self) -> str:
        """What stands before the list of tools."""
        return self.system

    def told(self, calls: Sequence[Called], limit: int) -> str:
        """What the model reads after a turn, at most ``limit`` characters of each result."""
        return "\n".join(
            f"{call.name or call.call}{' = ' if call.ok else ' '}{call.told(limit)}" for call in calls
        )

    # -- a turn ------------------------------------------------------------------------------------------

    def talk(
        self, task: Task, tools: Toolbox, rounds: Sequence[Round], note: str = ""
    ) -> tuple[Message, ...]:
        """The conversation after these rounds. What all turns share stands first, for the prefix cache."""
        limits: list[int] = []
        left = self.context_limit
        for each in reversed(rounds):
            limit = max(_LEAST, min(self.result_limit, left // max(1, len(each.calls))))
            left = max(0, left - sum(len(call.told(limit)) for call in each.calls))
            limits.append(limit)
        native = self.format == "native"
        messages = [*task.ask(system=NATIVE if native else f"{self.wording}\n{tools.describe()}")]
        for each, limit in zip(rounds, reversed(limits), strict=True):
            messages.append(Message("assistant", each.said))
            if native:
                messages += self._results(each, limit)
            else:
                messages.append(Message("user", self.told(each.calls, limit)))
        if note:
            messages[-1] = replace(messages[-1], content=f"{messages[-1].content}\n{note}")
        return tuple(messages)

    def _results(self, turn: Round, limit: int) -> list[Message]:
        """What native calls gave; of what is no such call, and so has no place for a result, the user tells."""
        lines = [line for line in turn.said.split("\n") if self.called(line) is not None]
        told = [
            (read_call(line) is not None, call.told(limit))
            for line, call in zip(lines, turn.calls, strict=False)
        ]
        results = [Message("tool", text) for native, text in told if native]
        return [*results, *(Message("user", text) for native, text in told if not native)]

    async def turn(self, task: Task, run: Run, rounds: Sequence[Round], note: str = "") -> Round:
        """One turn: calls start while the model still writes the rest."""
        lines = Lines()
        async with task_group() as group:
            calling = group.create_task(self._call(task, run, lines, rounds))
            said = await self.write(task, run, rounds, note, lines)
            lines.close()
            if run.best is None:
                # A plan is more than nothing, should the time run out.
                run.propose(Answer.of(Candidate(said)))
        return Round(said, tuple(calling.result()))

    async def _call(self, task: Task, run: Run, lines: Lines, rounds: Sequence[Round]) -> list[Called]:
        async def instead(name: str, call: str, error: str) -> str | None:
            return await self._instead(task, run, rounds, name, call, error)

        def stopped(calls: list[Called]) -> None:
            if calls:
                run.propose(so_far((*rounds, Round("", tuple(calls)))))

        ask = instead if self._named else None
        before = sum(len(each.calls) for each in rounds)
        return await run.call(
            lines, known=known(rounds), named=self._named, before=before, instead=ask, stopped=stopped
        )

    async def _instead(
        self, task: Task, run: Run, rounds: Sequence[Round], name: str, call: str, error: str
    ) -> str | None:
        """:meth:`instead`, kept with its cost: a graph's node that runs again does not pay for it again."""
        text = json.dumps([len(rounds), name, call])
        key = f"instead/{run.seed}/{hashlib.sha256(text.encode()).hexdigest()}"
        if run.kept is not None and (found := await run.kept.recall([key])):
            kept = json.loads(found[key])
            usage = Usage(**kept["usage"])
            try:
                (await run.ledger.reserve(Amount(usage.tokens, usage.calls, usage.money))).settle(usage)
            except BudgetExhausted:
                return None
            return kept["line"] if kept["line"] is None else str(kept["line"])
        own = Run(run.models, ledger=run.ledger.child(), seed=run.seed, trace=run.trace, tools=run.tools)
        line = await self.instead(task, own, rounds, f"{name} = {call}", f"{name} failed: {error}")
        if run.kept is not None:
            await run.kept.remember({key: json.dumps({"line": line, "usage": asdict(own.ledger.spent)})})
        return line

    async def instead(
        self, task: Task, run: Run, rounds: Sequence[Round], call: str, failure: str
    ) -> str | None:
        """Another call in place of one that failed, while the rest of the plan goes on; ``None``: the model writes
        none, or the budget does not hold the question."""
        talk = self.talk(task, run.toolbox(), rounds)
        sampling = await self._sampling(run, f"(?:{run.toolbox().pattern()}|{ANSWER})")
        try:
            [candidate] = await run.sample(
                (*talk, Message("assistant", call), Message("user", shortened(failure, self.result_limit))),
                sampling=replace(sampling, stop=("\n",)),
            )
        except (BudgetExhausted, ContextLengthError):
            return None
        line = candidate.text.strip()
        return line if self.called(line) is not None and line != call else None

    @property
    def _named(self) -> bool:
        return self.names_calls and self.format == "lines"

    async def write(
        self, task: Task, run: Run, rounds: Sequence[Round], note: str = "", lines: Lines | None = None
    ) -> str:
        """What the model writes in its next turn; calls go to ``lines`` as they are written. Where a turn has one
        call, the engine stops at its end. A talk that the model has no room for goes on without its older half."""
        lines = lines or Lines()
        try:
            return await self._write(task, run, rounds, note, lines)
        except ContextLengthError:
            if not rounds:
                raise
            return await self.write(task, run, _newer(rounds), note, lines)

    async def _write(self, task: Task, run: Run, rounds: Sequence[Round], note: str, lines: Lines) -> str:
        tools = run.toolbox()
        sampling = await self._sampling(run, f"(?:{self.pattern(tools)}|{ANSWER})")
        said = ""
        async with run.stream(self.talk(task, tools, rounds, note), sampling=sampling) as stream:
            async for chunk in stream:
                said += chunk.text
                whole = lines.add(chunk.text)
                if chunk.completion is not None:
                    last = lines.end()
                    if chunk.completion.finish == "length" and self.called(last) is not None:
                        said, last = said + CUT, last + CUT  # told as such, for half a call may look whole
                    whole.append(last)
                self._hand_on(whole, lines)
                if lines.count >= self.calls_at_once:
                    break
        return said.rstrip("\n") if lines.count < self.calls_at_once else self._up_to_last_call(said)

    def _hand_on(self, written: Iterable[str], lines: Lines) -> None:
        """The calls that these lines write, up to as many as a turn may have."""
        for line in written:
            if lines.count < self.calls_at_once and (call := self.called(line)) is not None:
                lines.put(call)

    def _up_to_last_call(self, said: str) -> str:
        """The text without what may have been written after the last call of a turn."""
        kept: list[str] = []
        count = 0
        for line in said.split("\n"):
            kept.append(line)
            count += self.called(line) is not None
            if count == self.calls_at_once:
                break
        return "\n".join(kept)

    async def act(self, task: Task, run: Run, said: str, rounds: Sequence[Round]) -> Round:
        """Make the calls of a turn that is already written (:meth:`turn` does both at once)."""
        lines = Lines()
        self._hand_on(said.split("\n"), lines)
        lines.close()
        return Round(said, tuple(await self._call(task, run, lines, rounds)))

    async def conclude(self, task: Task, run: Run, rounds: Sequence[Round]) -> Round:
        """The last turn: it has to answer."""
        sampling = replace(await self._sampling(run, ANSWER), calls=self.format != "native")
        messages = self.talk(task, run.toolbox(), rounds, ANSWER_NOW)
        try:
            [candidate] = await run.sample(messages, sampling=sampling)
        except ContextLengthError:
            if not rounds:
                raise
            return await self.conclude(task, run, _newer(rounds))
        return Round(candidate.text)

    async def _sampling(self, run: Run, pattern: str) -> Sampling:
        caps = await run.model().capabilities()
        if self.format == "native":
            if not caps.tools:
                raise ConfigurationError(
                    f"{caps.model} has no native calls of tools.", remedy="Use format='lines'."
                )
            tools = json.dumps(run.toolbox().schemas(), sort_keys=True)
            return Sampling(self.temperature, max_tokens=self.max_tokens, tools=tools)
        can = "regex" in caps.constraints
        constraint = Constraint("regex", pattern) if self.constrained and can else None
        return Sampling(self.temperature, max_tokens=self.max_tokens, constraint=constraint)

    def goes_on(self, rounds: Sequence[Round]) -> bool:
        """Whether another turn with calls may follow: not after the last, nor where all that a turn found out was
        known before, since a model that goes round in a circle goes on doing so."""
        if not rounds:
            return True
        seen = {(call.call, call.told()) for each in rounds[:-1] for call in each.calls}
        news = any((call.call, call.told()) not in seen for call in rounds[-1].calls)
        return len(rounds) < self.rounds and news

    # -- what comes of it ----------------------------------------------------------------------------------

    async def __call__(self, task: Task, run: Run) -> Answer:
        done: list[Round] = []
        while self.goes_on(done):
            turn = await self.turn(task, run, done)
            if not turn.calls:
                return run.propose(answer(task, done, turn.said))
            done.append(turn)
            run.propose(so_far(done))
        last = await self.conclude(task, run, done)
        return run.propose(answer(task, done, last.said))


def _newer(rounds: Sequence[Round]) -> Sequence[Round]:
    return rounds[(len(rounds) + 1) // 2 :]


def known(rounds: Iterable[Round]) -> dict[str, Any]:
    """Results by the names of their calls: of a name that was taken again the newest, and none if that failed."""
    newest = {call.name: call for each in rounds for call in each.calls}
    return {name: call.result for name, call in newest.items() if call.ok}


def answer(task: Task, rounds: Sequence[Round], said: str) -> Answer:
    """The answer that a model gave after these rounds, with the calls it rests on."""
    value = task.extract(said)
    calls = tuple(call for each in rounds for call in each.calls)
    candidate = Candidate(said, value)
    return Answer.of(candidate).model_copy(update={"calls": calls, "basis": basis(calls, value)})


def so_far(rounds: Sequence[Round]) -> Answer:
    """What is known before the model has answered: the last result, and all calls."""
    calls = tuple(call for each in rounds for call in each.calls)
    last = next((call for call in reversed(calls) if call.ok), None)
    text = "" if last is None else f"{last.call} = {last.told()}"
    value = None if last is None else _plain(last.result)
    found = Answer.of(Candidate(text, value))
    return found.model_copy(update={"calls": calls, "basis": basis(calls, value)})


def basis(calls: Sequence[Called], value: str | None) -> tuple[str, ...]:
    """The calls that an answer rests on: the last one that gave this value and all that it takes; where none gave
    it, all that gave a result."""
    good: Mapping[str, Called] = {call.name: call for call in calls if call.ok}
    found = [name for name, call in good.items() if value is not None and _plain(call.result) == value]
    if not found:
        return tuple(good)
    needed: set[str] = set()
    rest = [found[-1]]
    while rest:
        name = rest.pop()
        if name in good and name not in needed:
            needed.add(name)
            rest += good[name].takes
    return tuple(name for name in good if name in needed)


def _plain(result: Any) -> str | None:
    """A result as an answer would state it; None for what is no word or number."""
    if isinstance(result, bool) or not isinstance(result, str | int | float):
        return None
    return f"{result:g}" if isinstance(result, float) else str(result).strip()
