"""The models of ``pairs.toml``, and ``save``, which writes a checkpoint for each.

All weights are small integers and all inputs too, so that sums are exact, and reports the same, on every
machine. What torch itself would word differently from release to release is avoided.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

State = OrderedDict[str, Any]


class Net(nn.Module):
    def __init__(self, outputs: int = 4, hidden: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.float()))


class Grown(Net):
    def __init__(self) -> None:
        super().__init__(outputs=10)


class Wide(Net):
    def __init__(self) -> None:
        super().__init__(hidden=12)


class Biasless(Net):
    def __init__(self) -> None:
        super().__init__(bias=False)


class WithAux(Net):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 2)


class Particular(Net):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        args[-1].append("the tokenizer of v1 is not supported any more")


class Broken(Net):
    def __init__(self) -> None:
        raise TypeError("the config has no 'width'")


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Forgetful(Net):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        kept = OrderedDict(state_dict)
        kept["head.weight"] = self.head.weight.detach().clone()
        return super().load_state_dict(kept, *args, **kwargs)


class Raises(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"images of {x.shape[1]} channels are not supported")


class Infinite(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float("inf")


class Other(Grown):
    """Of the same keys as `Grown`, and another function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 64


class Forgotten(Net):
    """Works on the CPU alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(4)


class Encoder(nn.Module):
    """Many keys of few kinds, some with long names."""

    def __init__(self, width: int = 4, layers: int = 12, norm: bool = False, name: str = "attention") -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, width)
        self.layers = nn.ModuleList(nn.ModuleDict() for _ in range(layers))
        for layer in self.layers:
            for part in ("query", "key", "value"):
                layer[f"{name}_of_the_encoder_layer_{part}_projection"] = nn.Linear(width, width)
            layer["feed_forward"] = nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, width))
            if norm:
                layer["norm"] = nn.LayerNorm(width)


class Wider(Encoder):
    def __init__(self) -> None:
        super().__init__(width=6, norm=True)


class Renamed(Encoder):
    def __init__(self) -> None:
        super().__init__(name="mixer")


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(4, 12)}) for _ in range(2))


class Separate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({part: nn.Linear(4, 4) for part in ("q", "k", "v")}) for _ in range(2)
        )


class Varied(nn.Module):
    """Enough different rows for a report to cut."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        parts = ("stem", "neck", "trunk", "tail", "crown", "root", "leaf")
        names = [part + letter for part in parts for letter in "abcdefgh"]
        for size, name in enumerate(names, 1):
            self.register_parameter(name, nn.Parameter(torch.zeros(size + more)))


class Longer(Varied):
    def __init__(self) -> None:
        super().__init__(1)


def remap(state: State) -> State:
    """A step of the repository's own."""
    return OrderedDict((key.removeprefix("net."), value) for key, value in state.items())


def double(state: State) -> State:
    return OrderedDict((key, value * 2 if "head" in key else value) for key, value in state.items())


def exact(state: Any) -> State:
    """Small integers, no two tensors alike; tied ones stay tied."""
    values: dict[int, Tensor] = {}
    for number, value in enumerate(state.values()):
        if value.data_ptr() not in values:
            numbers = torch.arange(value.numel()) * 7 + number
            numbers = numbers % 5 - 2 + (numbers % 11 == 0)
            values[value.data_ptr()] = numbers.to(value.dtype).view(value.shape)
    return OrderedDict((key, values[value.data_ptr()]) for key, value in state.items())


def trained(state: State, step: int = 3, kind: str = "adam") -> dict[str, Any]:
    """A checkpoint with an optimizer's state, as torch writes it."""
    slots = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[kind]
    states: dict[int, dict[str, Tensor]] = {}
    for number, value in enumerate(state.values()):
        states[number] = {slot: torch.ones_like(value) for slot in slots}
        if kind == "adam":
            states[number]["step"] = torch.tensor(float(step))
    group = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "params": list(states)}
    return {"model": state, "optimizer": {"state": states, "param_groups": [group]}, "epoch": 3}


def write_safetensors(path: Path, state: State) -> None:
    """Written by hand: the same bytes on every machine."""
    table, values = {}, b""
    for key, value in state.items():
        content = value.numpy().tobytes() if value.dtype == torch.float32 else b""
        table[key] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [len(values), len(values) + len(content)],
        }
        values += content
    header = json.dumps({"__metadata__": {"format": "pt"}, **table}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + values)


def save(folder: Path) -> None:
    """Write every checkpoint of ``pairs.toml`` and of the commands into `folder`."""
    net = exact(Net().state_dict())
    without_bias = OrderedDict((key, value) for key, value in net.items() if not key.endswith("bias"))
    half_infinite = OrderedDict((key, value.clone()) for key, value in net.items())
    half_infinite["body.0.weight"][1, 2:5] = float("nan")
    untied = OrderedDict((key, value.clone()) for key, value in exact(Words().state_dict()).items())
    untied["head.weight"] += 1
    misshapen, negative = trained(net), trained(net)
    misshapen["optimizer"]["state"][2]["exp_avg"] = torch.ones(10, 8)
    negative["optimizer"]["state"][1]["exp_avg_sq"] = torch.full((8,), -0.5)
    hostile = ["\x1b[31mred", "two\nlines", "::error::x", "<b>bold</b>", "a|b`c`", "\u202egnp.exe", "日本語.weight"]  # fmt: skip
    whole = torch.arange(12.0).view(3, 4)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    contents: dict[str, Any] = {
        "net.pth": net,
        "biasless.pth": without_bias,
        "grown.pth": exact(Grown().state_dict()),
        "aux.pth": exact(WithAux().state_dict()),
        "double.pth": OrderedDict((key, value.double() + 1e-9) for key, value in net.items()),
        "half.pth": OrderedDict((key, value.half()) for key, value in net.items()),
        "nan.pth": half_infinite,
        "words.pth": exact(Words().state_dict()),
        "untied.pth": untied,
        "unsafe.pth": {"model": net, "config": argparse.Namespace(lr=0.1)},
        "adam.pth": trained(net),
        "misshapen.pth": misshapen,
        "negative.pth": negative,
        "sgd.pth": trained(net, kind="sgd"),
        "late.pth": trained(net, step=20_000),
        "prefixed.pth": OrderedDict((f"net.{key}", value) for key, value in net.items()),
        "parallel.pth": OrderedDict((f"module.{key}", value) for key, value in net.items()),
        "two.pth": {"generator": net, "discriminator": exact(Words().state_dict())},
        "encoder.pth": exact(Encoder().state_dict()),
        "separate.pth": exact(Separate().state_dict()),
        "varied.pth": exact(Varied().state_dict()),
        "hostile.pth": OrderedDict((key, torch.ones(2)) for key in hostile) | net,
        "empty.pth": OrderedDict(),
        "views.pth": {"whole": whole, "turned": whole.t(), "row": whole[1]},
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    torch.save(trained(net), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    write_safetensors(folder / "net.safetensors", net)
    shards = folder / "shards"
    shards.mkdir()
    for number, keys in enumerate((list(net)[:2], list(net)[2:]), 1):
        part = OrderedDict((key, net[key]) for key in keys)
        write_safetensors(shards / f"model-{number:05}-of-00002.safetensors", part)
    weight_map = {key: f"model-{1 + (place > 1):05}-of-00002.safetensors" for place, key in enumerate(net)}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "nothing").mkdir()
    whole_file = (folder / "net.pth").read_bytes()
    for name, content_of in {
        "zero.pth": b"",
        "text.pth": b"these are not the weights you are looking for\n",
        "page.pth": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer.pth": pointer.encode(),
        "truncated.pth": whole_file[: len(whole_file) // 2],
        "cut.safetensors": (folder / "net.safetensors").read_bytes()[:-100],
        "object.json": b'{"lr": 0.1}',
    }.items():
        (folder / name).write_bytes(content_of)


class Table(nn.Module):
    """A model of any keys: ``Table.shapes`` says which."""

    shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  # set before each use

    def __init__(self) -> None:
        super().__init__()
        for key, shape in self.shapes.items():
            *path, name = key.split(".")
            module: nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
