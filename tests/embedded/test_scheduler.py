"""Who is let in: the scheduler by itself, a step at a time."""

from pathlib import Path

from stratagem.backends.embedded.engine import Engine
from stratagem.backends.embedded.requests import Job, Result
from stratagem.backends.embedded.sampling import Sampling
from stratagem.backends.embedded.scheduler import Scheduler


def test_the_urgent_does_not_wait_for_room(folder: Path) -> None:
    """All places are taken by samples: a judge has one beside, and what is not urgent waits."""
    engine = Engine(folder, threads=1)
    prompt = engine.tokenizer.render([("user", "Ben has 12 + 7 apples. How many? ")])
    cache = engine.model.new_cache(6 * engine.context)
    scheduler = Scheduler(engine.model, engine.tokenizer, cache, max_running=4, max_batch=1000, urgent=1)
    samples = [Job(prompt, Sampling(max_tokens=9, ignore_end=True)) for _ in range(4)]
    another, judge, second = (Job(prompt, Sampling(max_tokens=1), priority=p) for p in (0, -1, -1))
    for job in samples:
        scheduler.enter(job)
    scheduler.step()
    for job in (another, judge, second):
        scheduler.enter(job)
    scheduler.step()
    ended = [job for job, event in scheduler.outbox if isinstance(event, Result)]
    assert ended == [judge]  # the second did not fit beside it
    scheduler.step()
    assert [job for job, event in scheduler.outbox if isinstance(event, Result)] == [judge, second]
    assert list(scheduler.waiting) == [another]
    while not scheduler.idle:
        scheduler.step()
    ended = [job for job, event in scheduler.outbox if isinstance(event, Result)]
    assert ended == [judge, second, *samples, another]
