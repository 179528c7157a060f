"""Small networks of many kinds, and edits of them: what people do to a model between two releases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

SIDE = 4
WIDTH = 8


@dataclass(frozen=True)
class Spec:
    """One network. Fields that its kind does not use are left alone."""

    kind: str = "mlp"
    inputs: int = 5
    hidden: tuple[int, ...] = (6, 8)
    outputs: int = 4
    norm: str = "none"
    depthwise: bool = False
    gate: str = "none"
    flatten: str = "first"
    kernel: int = 3
    words: int = 12
    tied: bool = False
    places: int = 7
    cell: str = "LSTM"
    anchors: int = 3
    fused: bool = False
    wrap: str = "none"
    aux: bool = False
    body: str = "layers"
    head: str = "head"
    under: str = ""
    gap: bool = False


def wrapped(spec: Spec, module: nn.Module) -> nn.Module:
    """A layer with the parametrisation of the network."""
    if spec.wrap == "weight":
        return parametrizations.weight_norm(module)
    return parametrizations.spectral_norm(module) if spec.wrap == "spectral" else module


def norm(spec: Spec, size: int, dims: int) -> nn.Module:
    """What stands behind a layer."""
    if spec.norm == "batch":
        return nn.BatchNorm2d(size) if dims == 2 else nn.BatchNorm1d(size)
    if spec.norm == "layer" and dims != 2:
        return nn.LayerNorm(size)
    return nn.GroupNorm(2, size) if spec.norm == "group" and size % 2 == 0 else nn.Identity()


class Gate(nn.Module):
    """A gated layer: of two layers, or of the halves of one."""

    def __init__(self, spec: Spec, inputs: int, units: int) -> None:
        super().__init__()
        if spec.gate == "two":
            self.gate, self.up = nn.Linear(inputs, units), nn.Linear(inputs, units)
        else:
            self.both = nn.Linear(inputs, 2 * units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (self.gate(x), self.up(x)) if hasattr(self, "gate") else self.both(x).chunk(2, -1)
        return torch.sigmoid(gate) * up


def mlp(spec: Spec) -> nn.Module:
    layers: list[nn.Module] = []
    size = spec.inputs
    for units in spec.hidden:
        if spec.gate != "none":
            layers.append(Gate(spec, size, units))
        else:
            layers += [wrapped(spec, nn.Linear(size, units)), norm(spec, units, 1), nn.Tanh()]
        layers += [nn.Dropout()] if spec.gap else []
        size = units
    return nn.Sequential(*layers)


def convolutions(spec: Spec) -> nn.Module:
    layers: list[nn.Module] = []
    size = spec.inputs
    for units in spec.hidden:
        conv = nn.Conv2d(size, units, spec.kernel, padding=spec.kernel // 2)
        layers += [wrapped(spec, conv), norm(spec, units, 2), nn.ReLU()]
        if spec.depthwise:
            layers += [nn.Conv2d(units, units, 3, padding=1, groups=units), norm(spec, units, 2), nn.ReLU()]
        layers += [nn.Dropout()] if spec.gap else []
        size = units
    return nn.Sequential(*layers)


class Attention(nn.Module):
    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        if spec.fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, spec.hidden[0]),
            nn.Linear(spec.hidden[0], width),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1) if hasattr(self, "qkv") else (self.q(x), self.k(x), self.v(x))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """The network of a spec."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        body, size = self._body()
        outputs = spec.words if spec.kind == "words" else spec.outputs
        if spec.kind == "anchors":
            outputs, head = spec.anchors * (5 + spec.outputs), nn.Conv2d
            made: nn.Module = head(size, outputs, 1)
        else:
            made = nn.Linear(size, outputs, bias=spec.kind != "words")
        inner: nn.Module = self
        if spec.under:
            inner = nn.Module()
            self.add_module(spec.under, inner)
        if spec.kind in ("words", "attention"):
            inner.add_module("embed", nn.Embedding(spec.words, WIDTH))
        if spec.kind == "attention":
            inner.register_parameter("pos_embed", nn.Parameter(torch.randn(1, spec.places, WIDTH)))
        inner.add_module(spec.body, body)
        inner.add_module(spec.head, made)
        if spec.aux:
            inner.add_module("aux", nn.Linear(3, 2))
        if spec.kind == "words" and spec.tied:
            made.weight = inner.embed.weight  # type: ignore[union-attr,assignment]

    def _body(self) -> tuple[nn.Module, int]:
        spec = self.spec
        if spec.kind in ("conv", "anchors"):
            last = spec.hidden[-1]
            return convolutions(
                spec
            ), last if spec.kind == "anchors" or spec.flatten == "mean" else last * SIDE**2
        if spec.kind == "rnn":
            return getattr(nn, spec.cell)(spec.inputs, spec.hidden[0], batch_first=True), spec.hidden[0]
        if spec.kind == "attention":
            return nn.ModuleList(Attention(spec, WIDTH) for _ in range(2)), WIDTH
        if spec.kind == "words":
            return nn.Linear(WIDTH, WIDTH), WIDTH
        return mlp(spec), spec.hidden[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        inner: Any = self.get_submodule(spec.under)
        body, head = inner.get_submodule(spec.body), inner.get_submodule(spec.head)
        if spec.kind == "rnn":
            return head(body(x)[0][:, -1])
        if spec.kind == "words":
            return head(torch.tanh(body(inner.embed(x))))
        if spec.kind == "attention":
            x = inner.embed(x) + inner.pos_embed[:, : x.shape[1]]
            for block in body:
                x = block(x)
            return head(x)
        x = body(x)
        if spec.kind == "anchors":
            return head(x).unflatten(1, (spec.anchors, -1)).movedim(2, -1)
        if spec.kind == "conv":
            x = (
                x.mean((2, 3))
                if spec.flatten == "mean"
                else (x if spec.flatten == "first" else x.permute(0, 2, 3, 1)).flatten(1)
            )
        return head(x)


def inputs_of(spec: Spec) -> Callable[[], torch.Tensor]:
    """Inputs for a network."""
    if spec.kind in ("words", "attention"):
        return lambda: torch.randint(0, spec.words, (3, 5))
    shape = {
        "conv": (3, spec.inputs, SIDE, SIDE),
        "anchors": (3, spec.inputs, SIDE, SIDE),
        "rnn": (3, 6, spec.inputs),
    }
    return lambda: torch.randn(shape.get(spec.kind, (3, spec.inputs)))


def random_spec(rng: random.Random) -> Spec:
    """One of many."""
    kind = rng.choice(["mlp", "mlp", "conv", "conv", "words", "attention", "rnn", "anchors"])
    return Spec(
        kind=kind,
        inputs=3 if kind in ("conv", "anchors") else rng.choice([4, 5, 6]),
        hidden=tuple(
            rng.choice([4, 6, 8]) for _ in range(1 if kind in ("rnn", "attention") else rng.randint(1, 3))
        ),
        outputs=rng.randint(2, 6),
        norm=rng.choice(["none", "none", "batch", "layer", "group"]),
        depthwise=rng.random() < 0.3,
        gate=rng.choice(["none", "none", "two", "chunk"]),
        flatten=rng.choice(["first", "last", "mean"]),
        kernel=rng.choice([1, 3]),
        tied=rng.random() < 0.5,
        places=rng.choice([7, 9]),
        cell=rng.choice(["LSTM", "GRU", "RNN"]),
        fused=rng.random() < 0.5,
        wrap=rng.choice(["none", "none", "none", "weight", "spectral"]),
        aux=rng.random() < 0.2,
        under=rng.choice(["", "", "model"]),
        gap=rng.random() < 0.3,
    )


EDITS: dict[str, Callable[[random.Random, Spec], Spec]] = {
    "more outputs": lambda rng, spec: replace(spec, outputs=spec.outputs + rng.randint(1, 5)),
    "fewer outputs": lambda rng, spec: replace(spec, outputs=max(1, spec.outputs - 1)),
    "more units": lambda rng, spec: replace(spec, hidden=_wider(rng, spec)),
    "twice the units": lambda rng, spec: replace(spec, hidden=tuple(2 * size for size in spec.hidden)),
    "fewer units": lambda rng, spec: replace(spec, hidden=(max(spec.hidden[0] - 2, 2), *spec.hidden[1:])),
    "more words": lambda rng, spec: replace(spec, words=spec.words + rng.randint(1, 4)),
    "untied": lambda rng, spec: replace(spec, tied=not spec.tied),
    "places": lambda rng, spec: replace(spec, places=spec.places + rng.choice([-1, 2, 7])),
    "cell": lambda rng, spec: replace(spec, cell=rng.choice(["LSTM", "GRU", "RNN"])),
    "fused": lambda rng, spec: replace(spec, fused=not spec.fused),
    "wrap": lambda rng, spec: replace(
        spec, wrap="none" if spec.wrap != "none" else rng.choice(["weight", "spectral"])
    ),
    "aux": lambda rng, spec: replace(spec, aux=not spec.aux),
    "body": lambda rng, spec: replace(spec, body=rng.choice(["blocks", "net", "features"])),
    "head": lambda rng, spec: replace(spec, head=rng.choice(["classifier", "fc", "output_layer"])),
    "under": lambda rng, spec: replace(
        spec, under="" if spec.under else rng.choice(["model", "module", "wrapped"])
    ),
    "gap": lambda rng, spec: replace(spec, gap=not spec.gap),
    "kernel": lambda rng, spec: replace(spec, kernel=spec.kernel + 2),
    "gate": lambda rng, spec: replace(spec, gate=rng.choice(["none", "two", "chunk"])),
    "norm": lambda rng, spec: replace(spec, norm=rng.choice(["none", "batch"])),
    "inputs": lambda rng, spec: replace(spec, inputs=spec.inputs + rng.randint(1, 3)),
}


def _wider(rng: random.Random, spec: Spec) -> tuple[int, ...]:
    place = rng.randrange(len(spec.hidden))
    more = spec.hidden[place] + rng.choice([2, 4, spec.hidden[place]])
    return (*spec.hidden[:place], more, *spec.hidden[place + 1 :])


def _shapes(spec: Spec) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in Net(spec).state_dict().items()}


def edited(rng: random.Random, spec: Spec) -> tuple[Spec, list[str]]:
    """The spec after one to three edits that change its state dict, and what they are."""
    names: list[str] = []
    new = spec
    while _shapes(new) == _shapes(spec) or len(names) < rng.randint(1, 3):
        name = rng.choice(list(EDITS))
        names.append(name)
        new = EDITS[name](rng, new)
    return new, names
