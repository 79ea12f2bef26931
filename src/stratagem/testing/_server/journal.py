"""Faults to provoke and the books that the server keeps."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal

from stratagem.testing._server.text import SimRequest

FaultKind = Literal["status", "drop", "slow", "malformed", "content_type", "hang"]
Outcome = Literal["running", "finished", "aborted", "failed", "refused"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with one request.

    `status`: answers with that status (429 and 503 with `retry_after`, in seconds or as a date).
    `drop`: resets the connection. `slow`: `delay` more seconds to the first token. `malformed`: broken JSON,
    or a broken line in a stream. `content_type`: an HTML page with status 200. `hang`: silence until the
    client goes away. `after` is the number of tokens that each sequence decodes before the fault strikes (0:
    none, and nothing is billed; None: all of them, so that the work is done and the answer is lost).
    """

    kind: FaultKind
    after: int | None = 0
    status: int = 500
    retry_after: float | None = None
    retry_after_date: bool = False
    delay: float = 0.0


FaultHook = Callable[[SimRequest], Fault | None]


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """Draws a fault for each request by its number: the same requests in the same order meet the same faults.

    `rates` maps a name of `NAMED_FAULTS` to its probability.
    """

    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = self.rates.keys() - NAMED_FAULTS.keys()
        if unknown or sum(self.rates.values()) > 1 or any(rate < 0 for rate in self.rates.values()):
            raise ValueError(
                f"fault rates must be probabilities of {', '.join(NAMED_FAULTS)} that sum to at most 1, "
                f"not {dict(self.rates)}"
            )

    def __call__(self, request: SimRequest) -> Fault | None:
        draw = Random(f"{self.seed}\x00{request.number}").random()
        for name, rate in self.rates.items():
            draw -= rate
            if draw < 0:
                return NAMED_FAULTS[name]
        return None


NAMED_FAULTS: Mapping[str, Fault] = {
    "429": Fault("status", status=429, retry_after=0.0),
    "500": Fault("status", status=500),
    "500-late": Fault("status", status=500, after=3),
    "503": Fault("status", status=503),
    "drop": Fault("drop"),
    "drop-mid": Fault("drop", after=3),
    "drop-late": Fault("drop", after=None),
    "slow": Fault("slow", delay=0.5),
    "malformed": Fault("malformed", after=None),
    "malformed-mid": Fault("malformed", after=3),
    "content-type": Fault("content_type"),
    "hang": Fault("hang"),
    "hang-mid": Fault("hang", after=3),
}


@dataclass(slots=True)
class Record:
    """What one completion request did. Times are of the event loop's clock, in seconds."""

    number: int
    id: str
    endpoint: str
    stream: bool
    n: int
    received_at: float
    priority: int = 0
    fault: Fault | None = None
    outcome: Outcome = "running"
    status: int = 0  # 0: nothing was sent
    billed: bool = False  # a sequence of it was admitted, so the prompt was read
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded: int = 0  # tokens, over all sequences
    delivered: int = 0  # tokens of those written to the socket
    ended_at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Totals:
    """Exact counts since the start. Token counts are of billed requests; a request's sequences are its `n`
    times its prompts."""

    requests: int = 0
    billed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded: int = 0
    delivered: int = 0
    finished: int = 0
    aborted: int = 0  # the client went away first
    failed: int = 0  # a fault struck
    refused: int = 0  # 4xx by the protocol: validation, key, model
    in_flight: int = 0
    peak_requests: int = 0
    running_sequences: int = 0
    waiting_sequences: int = 0
    peak_sequences: int = 0
    peak_waiting: int = 0
    connections_opened: int = 0
    connections_open: int = 0
    peak_connections: int = 0
    other_requests: int = 0  # /v1/models, /version, /tokenize, /health
