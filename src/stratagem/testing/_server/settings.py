"""How the simulated server behaves."""

from pydantic import BaseModel, ConfigDict, Field

from stratagem.testing._server.wire import Flavour


class SimSettings(BaseModel):
    """How the simulated server behaves. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535, description="0: a free one")
    model: str = "sim"
    adapters: tuple[str, ...] = Field(
        default=(), description="further models, listed as LoRA adapters of the first"
    )
    api_key: str | None = Field(default=None, description="refuse requests without this key")
    flavour: Flavour = Field(default="vllm", description="vllm, or openai: without vLLM's extensions")
    tokenize: bool = Field(default=True, description="offer vLLM's /tokenize")
    ignores_n: bool = Field(
        default=False, description="give one completion whatever n says, as some servers do"
    )
    priorities: bool = Field(
        default=True, description="take priorities; without, refuse any but 0, as vLLM may"
    )
    ignores_logprobs: bool = Field(default=False, description="give no log-probabilities, as some servers do")
    reward: bool = Field(default=False, description="serve a reward model: rewards, no completions")
    max_model_len: int = Field(default=8192, ge=1)
    mean_tokens: float = Field(default=40.0, gt=0, description="mean length of an answer")
    spread: float = Field(default=0.6, ge=0, description="log-scale deviation of the lengths; 0: all alike")
    first_token: float = Field(default=0.0, ge=0, description="latency to the first token")
    per_prompt_token: float = Field(default=0.0, ge=0, description="added for each prompt token not cached")
    per_token: float = Field(default=0.0, ge=0, description="time of a decoding step; 0: all at once")
    slowdown: float = Field(default=0.0, ge=0, description="relative growth of a step by each more sequence")
    max_sequences: int = Field(default=256, ge=1, description="sequences decoded together; others wait")
    fault_seed: int = 0
    faults: dict[str, float] = Field(default_factory=dict, description="rates of named faults")
