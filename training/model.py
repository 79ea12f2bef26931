"""A Llama decoder in plain torch, with the parameter names and the arithmetic of `LlamaForCausalLM`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Config:
    """Shape of the decoder; the defaults are those of stratagem-mini."""

    vocabulary: int = 2048
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 512
    positions: int = 1024
    theta: float = 10000.0
    eps: float = 1e-5

    def llama(self) -> dict[str, Any]:
        """config.json of transformers and vLLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.positions,
            "rope_theta": self.theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 4,
            "torch_dtype": "float16",
            "dtype": "float16",
        }

    @classmethod
    def of_llama(cls, raw: dict[str, Any]) -> Config:
        """The inverse of `llama`."""
        return cls(
            vocabulary=raw["vocab_size"],
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            ffn=raw["intermediate_size"],
            positions=raw["max_position_embeddings"],
            theta=raw["rope_theta"],
            eps=raw["rms_norm_eps"],
        )

    def dump(self) -> dict[str, Any]:
        return asdict(self)


Cache = list[tuple[Tensor, Tensor]]
"""For each layer, keys and values of shape (batch, kv heads, capacity, head dim)."""


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, width, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c, group = self.config, self.config.heads // self.config.kv_heads
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, length, c.heads, c.head_dim).transpose(1, 2), rope)
        k = rotate(self.k_proj(x).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2), rope)
        v = self.v_proj(x).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        kept = (k, v)
        if past is not None:
            start, stop = mask.shape[-1] - length, mask.shape[-1]
            for whole, new in zip(past, kept, strict=True):
                whole[:, :, start:stop] = new
            kept = past
            k, v = past[0][:, :, :stop], past[1][:, :, :stop]
        if length == 1:
            # One token: the heads of a group are queries of their common key head, and nothing is copied.
            q = q.reshape(batch, c.kv_heads, group, c.head_dim)
        else:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Not under autocast: it takes the fused kernel in bfloat16 or the softmax in float32, both slow on CPU.
        with torch.autocast(x.device.type, enabled=False):
            if q.dtype == torch.bfloat16 and x.device.type == "cpu":
                # The fused kernel is half as fast, in any precision: it does not multiply in bfloat16.
                scores = (q * c.head_dim**-0.5) @ k.transpose(-1, -2)
                scores += torch.zeros((), dtype=q.dtype).where(mask, -torch.inf)
                y = torch.softmax(scores, -1) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.reshape(batch, c.heads, length, c.head_dim)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1)), kept


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, config.eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(config.hidden, config.ffn, bias=False),
                "up_proj": nn.Linear(config.hidden, config.ffn, bias=False),
                "down_proj": nn.Linear(config.ffn, config.hidden, bias=False),
            }
        )

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, cache = self.self_attn(self.input_layernorm(x), rope, mask, past)
        x = x + attended
        h = self.post_attention_layernorm(x)
        gated = F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h)
        return x + self.mlp["down_proj"](gated), cache


class Decoder(nn.Module):
    """`forward` gives the hidden states, `logits` the scores of the next token (tied embedding)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = (
                    (2 * config.layers) ** -0.5
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 1.0
                )
                nn.init.normal_(parameter, std=0.02 * scale)

    def start_from(self, other: Decoder) -> None:
        """Take the weights of a model with as many or fewer layers; further layers then start as the identity."""
        self.load_state_dict({**self.state_dict(), **other.state_dict()})
        for block in self.layers[len(other.layers) :]:
            for name, parameter in block.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    nn.init.zeros_(parameter)

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, past: Cache | None = None
    ) -> tuple[Tensor, Cache, list[Tensor]]:
        """Hidden states (batch, length, hidden), the cache, and the states below each layer.

        ids, positions: (batch, length). mask: (batch, 1, length, cached + length), true where a token may look.
        `past` has room for the new keys and values and takes them in.
        """
        c = self.config
        frequencies = c.theta ** (
            -torch.arange(0, c.head_dim, 2, device=ids.device, dtype=torch.float32) / c.head_dim
        )
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), -1)
        rope = (angles.cos(), angles.sin())
        x = self.embed_tokens(ids)
        cache: Cache = []
        below: list[Tensor] = []
        for index, block in enumerate(self.layers):
            below.append(x)
            x, kept = block(x, rope, mask, None if past is None else past[index])
            cache.append(kept)
        return self.norm(x), cache, below

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


class Mistakes(nn.Module):
    """For training only: what the states below the last layer must tell of the token that stands there.

    A judge's one label for each line is little to learn from. Whether the line is still right gives one for each
    token, and makes the lower layers mark a wrong token, so that the last layer needs only to look for marks. What
    the model expected in the token's place, and how much it expected the token itself, are things it knows one
    token earlier: having to say them makes it carry them over, which is what a mark is made of.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden, config.eps)
        self.right = nn.Linear(config.hidden, 1)
        self.likely = nn.Linear(config.hidden, 1)
        self.instead = nn.Linear(config.hidden, config.hidden, bias=False)
        self.flawless = nn.Linear(config.hidden, 1)

    def forward(self, below: Tensor) -> Tensor:
        """Logits of "still right", shape (...,), for states of shape (..., hidden)."""
        return self.right(self.norm(below))[..., 0]

    def expected(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the probability that this token had, shape (...,), and states whose logits over the
        vocabulary are those of what was expected here, shape (..., hidden)."""
        h = self.norm(below)
        return self.likely(h)[..., 0], self.instead(h)

    def verdict(self, hidden: Tensor) -> Tensor:
        """Logits of "all lines so far are right", shape (...,), for final states of shape (..., hidden) at the
        answer of a question about a restart. That answer depends on the problem at least as much as on the lines,
        and most problems tell nothing of them, since all samples fail or all succeed; this one tells every time."""
        return self.flawless(hidden)[..., 0]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding, halves convention of Llama."""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
