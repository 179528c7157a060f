"""A mixture of experts with 10,000 keys, as it was released and as it is today."""

from torch import Tensor, nn


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, width: int, hidden: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(count))


class Attention(nn.Module):
    def __init__(self, width: int, kv_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)


class Layer(nn.Module):
    def __init__(self, width: int, hidden: int, count: int, kv_width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, kv_width)
        self.block_sparse_moe = Experts(width, hidden, count)
        self.input_layernorm = nn.RMSNorm(width)
        self.post_attention_layernorm = nn.RMSNorm(width)


class Released(nn.Module):
    """Experts in every layer; the vocabulary and the keys' and values' width are what it was trained with."""

    vocabulary, kv_width, layers = 32000, 1024, 51

    def __init__(self, width: int = 4096, hidden: int = 14336, count: int = 64) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(self.vocabulary, width)
        self.model.layers = nn.ModuleList(
            Layer(width, hidden, count, self.kv_width) for _ in range(self.layers)
        )
        self.model.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, self.vocabulary, bias=False)


class Today(Released):
    """A few words more, and half as many heads of keys and values."""

    vocabulary, kv_width = 32064, 512
