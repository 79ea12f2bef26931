"""Whoever names no model shares one engine, on any loop and thread, and after a fork; and the loop stays free."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stratagem.backends.embedded.backend import EmbeddedBackend
from stratagem.core.backend import Message, Request, ScoreRequest
from stratagem.core.errors import ContextLengthError

SCRIPT = """
    import asyncio, os, threading, warnings
    import stratagem as sg
    from stratagem.backends.embedded.engine import Engine

    loaded = []
    build = Engine.__init__
    Engine.__init__ = lambda *a, **k: (loaded.append(1), build(*a, **k))[1]

    QUESTION = "Ben has 12 apples and buys 7 more. How many apples does Ben have now?"

    def ask():
        return sg.solve_sync(QUESTION, sg.ChainOfThought(), seed=1).text

    async def several():
        answers = await asyncio.gather(*(sg.solve(QUESTION, sg.ChainOfThought(), seed=1) for _ in range(3)))
        return [answer.text for answer in answers]

    texts = [ask(), *asyncio.run(several())]
    threads = [threading.Thread(target=lambda: texts.append(ask())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, since Python 3.12
        child = os.fork()
    if child == 0:
        os._exit(0 if ask() == texts[0] else 1)
    assert os.waitpid(child, 0)[1] == 0
    texts.append(ask())
    assert len(set(texts)) == 1 and len(texts) == 7
    print(len(loaded))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_solve_without_a_model_reads_one_and_leaves_nothing_open() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_the_event_loop_goes_on_while_a_long_prompt_is_encoded(folder: Path) -> None:
    long = "Ben has 12 apples and buys 7 more. " * 10_000
    messages = (Message("user", long),)

    async def main() -> None:
        backend = EmbeddedBackend(folder)
        await backend.capabilities()
        turns = 0

        async def turning() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        other = asyncio.create_task(turning())
        count = await backend.count_tokens(messages)
        assert turns > 100
        plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert count == len(plain.encode(long).ids) + 3  # two roles and an end
        for call in (
            lambda: backend.generate(Request((Message("user", long + "?"),))),
            lambda: backend.score(ScoreRequest((Message("user", "?"),), (long,))),
        ):
            turns = 0
            with pytest.raises(ContextLengthError):
                await call()
            assert turns > 100
        other.cancel()
        await backend.aclose()

    asyncio.run(main())
