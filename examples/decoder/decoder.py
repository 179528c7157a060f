"""A small decoder in the shape of today's language models. It sorts: after ``52914>`` it writes ``12459``."""

import torch
from torch import Tensor, nn
from torch.nn import functional

DIGITS = "0123456789"
SYMBOLS = DIGITS + ">"
LETTERS = "abcde"
LENGTH = 5  # how many symbols are sorted


class Decoder(nn.Module):
    """Token ids (n, t) -> logits (n, t, vocabulary), t at most 2 * LENGTH; embedding and head are tied.

    Args:
        vocabulary: how many symbols it knows.
        layers: how many blocks.
        heads: attention heads in each.
        kv_heads: heads of keys and values, each serving ``heads / kv_heads`` heads of queries.
    """

    width = 32

    def __init__(
        self, vocabulary: int = len(SYMBOLS), layers: int = 3, heads: int = 4, kv_heads: int = 4
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, self.width)
        self.positions = nn.Embedding(2 * LENGTH, self.width)
        self.layers = nn.ModuleList(Block(self.width, heads, kv_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(self.width)
        self.lm_head = nn.Linear(self.width, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed_tokens(tokens) + self.positions(places)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width)
        self.self_attn = Attention(width, heads, kv_heads)
        self.post_attention_layernorm = nn.RMSNorm(width)
        self.mlp = FeedForward(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a head of keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        shared = q.shape[1] // k.shape[1]
        k, v = (each.repeat_interleave(shared, dim=1) for each in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
