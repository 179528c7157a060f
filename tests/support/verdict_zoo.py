"""Architectures that need torch alone, each with a way of its own to be loaded, and pairs of their variants."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

if TYPE_CHECKING:
    from collections.abc import Callable


class Exhibit(NamedTuple):
    """An architecture, and a variant of it whose checkpoint it is given as well."""

    build: Callable[[], nn.Module]
    variant: Callable[[], nn.Module]


class Versioned(nn.Module):
    """Took its weights in under other names in version 1, and says so in `_load_from_state_dict`."""

    _version = 2

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            for leaf in ("weight", "bias"):
                if f"{prefix}out.{leaf}" in state:
                    state[f"{prefix}proj.{leaf}"] = state.pop(f"{prefix}out.{leaf}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Version1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 2)


class FusesOnLoad(nn.Module):
    """A hook makes one projection of three, as several released attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.register_load_state_dict_pre_hook(self._fuse)

    @staticmethod
    def _fuse(module: nn.Module, state: Any, prefix: str, *rest: Any) -> None:
        for leaf in ("weight", "bias"):
            parts = [f"{prefix}{name}.{leaf}" for name in "qkv"]
            if all(part in state for part in parts):
                state[f"{prefix}qkv.{leaf}"] = torch.cat([state.pop(part) for part in parts])


class Separate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))


class Forgiving(nn.Module):
    """Does not mind what is there of an old head, nor what is missing of an optional one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.optional = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_load_state_dict_post_hook(self._forgive)

    @staticmethod
    def _forgive(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if "optional" not in k]
        incompatible.unexpected_keys[:] = [k for k in incompatible.unexpected_keys if "head" not in k]


class Quantised(nn.Module):
    """Packed weights and their scale in the extra state, as quantised layers keep them."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.register_buffer("packed", torch.zeros(6, bits, dtype=torch.uint8))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bits = bits

    def get_extra_state(self) -> Any:
        return {"bits": self.bits}

    def set_extra_state(self, state: Any) -> None:
        self.bits = state["bits"]


class Tied(nn.Module):
    def __init__(self, words: int = 9) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(words, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, words)
        self.head.weight = self.embed.weight


class SharedBlock(nn.Module):
    """One block under two names, and a list that shares its items with attributes."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList([self.first, *(nn.Linear(4, 4) for _ in range(depth))])
        self.last = self.layers[-1]


class Buffers(nn.Module):
    """Buffers that are saved, that are not, that are None, and children that are None."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(size, 2)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.ones(size, dtype=torch.bool), persistent=False)
        self.register_buffer("cache", None)
        self.register_parameter("gate", None)
        self.register_module("aux", None)
        self.head = None


class Uncopyable(nn.Module):
    """Holds what `copy.deepcopy` refuses: a lock, a random generator, a tensor that was computed."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 4), nn.BatchNorm1d(4))
        self.lock = threading.Lock()
        self.generators = {"noise": torch.Generator()}
        self.body[0].doubled = self.body[0].weight * 2


class Tables(nn.Module):
    """Parameters and modules in lists and dictionaries, some of odd dtypes."""

    def __init__(self, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(n + 1) for n in range(scales)])
        self.named = nn.ParameterDict({"a": torch.zeros(2), "b-c": torch.zeros(())})
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        self.coarse = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.heads = nn.ModuleDict({"x": nn.Linear(2, 2), "y": nn.Bilinear(2, 3, 2)})


class Wrapped(nn.Module):
    """Saves and loads what it wraps, as if it were not there."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.inner.state_dict(*args, **options)

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return self.inner.load_state_dict(state, strict=strict, assign=assign)


class LoadsAPart(nn.Module):
    """Gives one of its parts what there is of it, and does not mind what there is not."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, width), nn.Linear(width, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        part = {k.removeprefix(f"{prefix}backbone."): v for k, v in state.items() if "backbone" in k}
        self.backbone.load_state_dict(part, strict=False)
        super()._load_from_state_dict(state, prefix, *rest)


class Lenient(nn.Sequential):
    """Loads what there is, however strictly it is asked."""

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, False, assign)


class Unwraps(nn.Sequential):
    """Takes off a prefix before it loads."""

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(
            {key.removeprefix("module."): value for key, value in state.items()}, strict, assign
        )


class LowRank(nn.Module):
    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, rank, bias=False), nn.Linear(rank, 4, bias=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up.weight @ self.down.weight


def adapted(rank: int = 2) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    parametrize.register_parametrization(model[0], "weight", LowRank(rank))
    return model


def normed(apply: Callable[[nn.Module], Any]) -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older functions are deprecated; their checkpoints live on
        for layer in model:
            apply(layer)
    return model


def observed(channels: int = 3) -> nn.Module:
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [PerChannelMinMaxObserver(ch_axis=0), MinMaxObserver(), FakeQuantize()]
        parts[0](torch.randn(channels, 4, device="cpu"))
    return nn.Sequential(nn.Linear(4, channels), *parts)


def averaged(outputs: int = 2) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(plain(outputs))


def plain(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))


def encoder(width: int = 8, layers: int = 2, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


ZOO = {
    "Transformer": Exhibit(
        lambda: nn.Transformer(8, 2, 2, 1, 16, batch_first=True),
        lambda: nn.Transformer(8, 2, 1, 2, 12, batch_first=True),
    ),
    "TransformerEncoder": Exhibit(encoder, lambda: encoder(layers=3, bias=False)),
    "LSTM": Exhibit(
        lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2), lambda: nn.LSTM(3, 4, 3, proj_size=2)
    ),
    "GRU": Exhibit(lambda: nn.GRU(3, 4, 2), lambda: nn.GRU(3, 6, 2)),
    "RNNCell": Exhibit(lambda: nn.RNNCell(3, 4), lambda: nn.RNNCell(3, 4, bias=False)),
    "MultiheadAttention": Exhibit(
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), lambda: nn.MultiheadAttention(8, 2)
    ),
    "MultiheadAttention, other keys": Exhibit(
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6), lambda: nn.MultiheadAttention(8, 2, kdim=6)
    ),
    "BatchNorm": Exhibit(plain, lambda: nn.Sequential(*plain()[:1], nn.BatchNorm1d(4, affine=False))),
    "BatchNorm without statistics": Exhibit(
        lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.BatchNorm1d(4)),
    ),
    "SyncBatchNorm": Exhibit(
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(plain()), lambda: plain(outputs=3)
    ),
    "InstanceNorm": Exhibit(
        lambda: nn.Sequential(nn.InstanceNorm2d(3)),
        lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)),
    ),
    "weight norm": Exhibit(
        lambda: normed(parametrizations.weight_norm), lambda: normed(nn.utils.weight_norm)
    ),
    "weight norm of old": Exhibit(
        lambda: normed(nn.utils.weight_norm), lambda: normed(parametrizations.weight_norm)
    ),
    "spectral norm": Exhibit(
        lambda: normed(parametrizations.spectral_norm), lambda: normed(nn.utils.spectral_norm)
    ),
    "spectral norm of old": Exhibit(
        lambda: normed(nn.utils.spectral_norm), lambda: normed(parametrizations.spectral_norm)
    ),
    "orthogonal": Exhibit(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))),
        lambda: nn.Sequential(nn.Linear(4, 4)),
    ),
    "adapter": Exhibit(adapted, lambda: adapted(rank=3)),
    "lazy": Exhibit(
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2, bias=False)
        ),
    ),
    "lazy, saved before its first batch": Exhibit(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2)),
    ),
    "observers": Exhibit(observed, lambda: observed(channels=5)),
    "versions": Exhibit(Versioned, Version1),
    "fuses on load": Exhibit(FusesOnLoad, Separate),
    "forgiving": Exhibit(
        Forgiving, lambda: nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    ),
    "extra state": Exhibit(
        lambda: nn.ModuleList([Quantised(), nn.Linear(2, 2)]),
        lambda: nn.ModuleList([Quantised(bits=4), Quantised()]),
    ),
    "tied": Exhibit(Tied, lambda: Tied(words=11)),
    "shared": Exhibit(SharedBlock, lambda: SharedBlock(depth=3)),
    "buffers": Exhibit(Buffers, lambda: Buffers(size=5)),
    "not to be copied": Exhibit(Uncopyable, lambda: Uncopyable(width=5)),
    "tables": Exhibit(Tables, lambda: Tables(scales=2)),
    "wrapper of its own": Exhibit(Wrapped, lambda: Wrapped(outputs=3)),
    "loads a part": Exhibit(LoadsAPart, lambda: LoadsAPart(width=5)),
    "lenient": Exhibit(lambda: Lenient(*plain()), lambda: plain(outputs=3)),
    "takes its prefix off": Exhibit(
        lambda: Unwraps(nn.Linear(3, 4), nn.Linear(4, 2)), lambda: nn.DataParallel(plain())
    ),
    "DataParallel": Exhibit(lambda: nn.DataParallel(plain()), plain),
    "AveragedModel": Exhibit(averaged, lambda: nn.DataParallel(plain())),
    "embeddings": Exhibit(
        lambda: nn.ModuleList([nn.EmbeddingBag(5, 3), nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10])]),
        lambda: nn.ModuleList([nn.EmbeddingBag(5, 3), nn.AdaptiveLogSoftmaxWithLoss(64, 20, [5, 10, 15])]),
    ),
    "a layer alone": Exhibit(lambda: nn.PReLU(3), nn.PReLU),
    "nothing": Exhibit(nn.Identity, lambda: nn.Linear(2, 2)),
}
