"""The forward pass of a model of Llama-70B's shape, rehearsed without a GPU and without weights.

    python benchmarks/rehearsal.py [--layers 80] [--tokens 2048]

Prints wall and CPU time of each step, and the memory above what the imports take; the first rehearsal
includes the import of torch's compiler, which fake tensors need. To reach: 0.5 s for building on meta and
comparing; 5 s and 1 GB for the rehearsal.
"""

from __future__ import annotations

import resource
import time
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from measure import options
from torch import nn

from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.rehearsal import rehearse
from pytest_ckptcompat.models.blueprint import blueprint
from pytest_ckptcompat.verification.comparison import compare


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return (x.float() * scale).to(x.dtype) * self.weight


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head = width // heads
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads, kv_heads), Mlp(width, hidden)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The sizes of Llama 2 70B unless told otherwise."""

    def __init__(
        self,
        layers: int = 80,
        width: int = 8192,
        hidden: int = 28672,
        heads: int = 64,
        kv_heads: int = 8,
        vocabulary: int = 32000,
        planted: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width, hidden, heads, kv_heads) for _ in range(layers))
        self.norm, self.lm_head = RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head, self.planted = width // heads, planted

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        device = "cpu" if self.planted else tokens.device
        inverse = 1 / 1e4 ** (torch.arange(0, self.head, 2, device=device) / self.head)
        angles = torch.arange(tokens.shape[1], device=device)[:, None] * inverse
        angles = torch.cat([angles, angles], dim=-1)
        x = self.embed_tokens(tokens)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


class Timed:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *raised: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]

    def __str__(self) -> str:
        return f"{self.name:<16}{self.wall:6.2f} s, {self.cpu:.2f} s of CPU"


def peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    given = options(__doc__, layers=80, tokens=2048)
    inputs = Inputs.parse(f"1x{given.tokens}:int64<32000")

    imported = peak()
    with Timed("build on meta") as built:
        model = blueprint(lambda: Llama(given.layers).to(torch.bfloat16)).schema()
    state_dict = model.state_dict()
    with Timed("compare") as compared:
        assert compare(model, state_dict).fits
    with Timed("rehearse") as first:
        outcome = rehearse(model, inputs)
    with Timed("rehearse again") as second:
        rehearse(model, inputs)
    forgetful = blueprint(lambda: Llama(given.layers, planted=True).to(torch.bfloat16)).schema()
    with Timed("rehearse a bug") as third:
        found = rehearse(forgetful, inputs)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    keys = len(model.state_dict())
    print(f"torch {torch.__version__}: {parameters / 1e9:.1f} billion parameters, {keys} keys")
    print(built, compared, first, second, third, sep="\n")
    print(f"{'memory':<16}{peak() - imported:6.2f} GB above the imports' {imported:.2f} GB")
    print(outcome.status, outcome.detail)
    print(found.status, found.detail)


if __name__ == "__main__":
    main()
