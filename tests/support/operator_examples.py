"""An example of every operator but `custom`, for the laws that all of them obey."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_ckptcompat.recipes import operators as o

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.base import Operator

State = OrderedDict[str, Any]


def drawn(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values; variances are positive."""
    values = torch.randn(shape, generator=generator)
    return values.abs() if key.endswith("running_var") else values


class Example(NamedTuple):
    """An operator, the shapes that it is given, and those that the model has where it asks."""

    operator: Operator
    old: dict[str, tuple[int, ...]]
    model: dict[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return repr(self.operator)

    def state(self, dtype: torch.dtype = torch.float32) -> State:
        """Values of which no two are equal, and two keys that no example names."""
        generator = torch.Generator().manual_seed(1)
        shapes = {"aside.weight": (3, 2), **self.old, "last.bias": (5,)}
        return OrderedDict((key, drawn(key, shape, generator).to(dtype)) for key, shape in shapes.items())

    def meta(self) -> State:
        """The same without values."""
        shapes = {"aside.weight": (3, 2), **self.old, "last.bias": (5,)}
        return OrderedDict((key, torch.empty(shape, device="meta")) for key, shape in shapes.items())

    @property
    def target(self) -> State:
        return OrderedDict((key, torch.empty(shape, device="meta")) for key, shape in self.model.items())


LAYER = {"fc.weight": (4, 6), "fc.bias": (4,)}
BLOCKS = {
    f"layers.{i}.{key}": shape
    for i in range(2)
    for key, shape in {"a.weight": (3, 3), "b.weight": (3, 3)}.items()
}
HIDDEN = {
    "one.weight": (4, 5),
    "one.bias": (4,),
    "bn.weight": (4,),
    "bn.running_var": (4,),
    "two.weight": (3, 4),
}
MORE = {"fc.weight": (9, 6), "fc.bias": (9,)}

NORMED = {"fc.weight_g": (4, 1), "fc.weight_v": (4, 6), "fc.bias": (4,)}
NORMED_ANEW = {
    "up.parametrizations.weight.original0": (1, 5, 1),
    "up.parametrizations.weight.original1": (3, 5, 2),
}
SPECTRAL = {"fc.weight_orig": (4, 6), "fc.weight_u": (4,), "fc.weight_v": (6,)}
FOLDED = {
    "conv.weight": (4, 3, 2, 2),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
}
EXPERTS = {f"experts.{i}.w": (2, 3) for i in (0, 1, 2, 10)}
ADAPTED = {
    "m.q.base_layer.weight": (4, 6),
    "m.q.base_layer.bias": (4,),
    "m.q.lora_A.default.weight": (2, 6),
    "m.q.lora_B.default.weight": (4, 2),
    "m.k.weight": (3, 4),
}

EXAMPLES = [
    Example(o.rename("fc.*", "head.*"), LAYER, {}),
    Example(o.strip_prefix("fc."), {"fc.w": (2, 3)}, {}),
    Example(o.add_prefix("net."), LAYER, {}),
    Example(o.drop("fc.bias"), LAYER, {}),
    Example(o.tile("fc.*", dim=0), LAYER, MORE),
    Example(o.tile("fc.*", dim=0, noise_std=0.1), LAYER, MORE),
    Example(o.tile("fc.weight", dim=-1, to=13, optim="zeros"), LAYER, {}),
    *(Example(o.append("fc.*", dim=0, init=init), LAYER, MORE) for init in ("zeros", "normal", "kaiming_uniform", "xavier_uniform", "mean", "multivariate_normal")),
    Example(o.append("fc.weight", dim=1, n=2, init="constant", value=0.5), LAYER, {}),
    Example(o.select("fc.*", dim=0, index=[3, 1, 1]), LAYER, {}),
    Example(o.select("fc.*", dim=0, old_names=["a", "b", "c", "d"], new_names=["d", "x", "a"], missing="normal"), LAYER, {}),
    Example(o.pad("conv.weight"), {"conv.weight": (3, 2, 3, 3)}, {"conv.weight": (3, 2, 5, 7)}),
    Example(o.pad("conv.weight", sizes=[1, 0, 0, 2]), {"conv.weight": (3, 2, 3, 3)}, {}),
    Example(o.scale("fc.*", 0.5), LAYER, {}),
    Example(o.scale("fc.weight", [1, 2, 3, 4], dim=0, optim="copy"), LAYER, {}),
    Example(o.reduce("k.weight", dim=0, groups=2, optim="copy"), {"k.weight": (8, 3)}, {"k.weight": (4, 3)}),
    Example(o.reduce("k.weight", dim=1, groups=3, op="sum"), {"k.weight": (4, 6)}, {}),
    Example(o.repeat_channels("conv.weight", optim="copy"), {"conv.weight": (4, 3, 2, 2)}, {"conv.weight": (4, 5, 2, 2)}),
    Example(o.concat(["q", "k", "v"], "qkv", dim=0), {"q": (2, 3), "k": (4, 3), "v": (1, 3)}, {}),
    Example(o.split("qkv", ["q", "k", "v"], dim=0), {"qkv": (6, 3)}, {}),
    Example(o.permute("w", [2, 0, 1]), {"w": (2, 3, 4)}, {}),
    Example(o.transpose("w"), {"w": (2, 3)}, {}),
    Example(o.resample("pos", size=[5, 4], prefix_tokens=1, optim="copy"), {"pos": (1, 10, 3)}, {}),
    Example(o.resample("patch", size=[6, 6], mode="pinv"), {"patch": (2, 3, 4, 4)}, {}),
    Example(o.inflate("conv", time=3), {"conv": (2, 3, 2, 2)}, {}),
    Example(o.inflate("conv", time=3, mode="centre", optim="copy"), {"conv": (2, 3, 2, 2)}, {}),
    *(Example(o.widen("one", ["two"], norms=["bn"], to=7, split=split), HIDDEN, {}) for split in ("equal", "unequal", "zero")),
    Example(o.widen("one", ["two"], norms=["bn"], to=7, noise_std=0.1), HIDDEN, {}),
    Example(o.insert_block("layers.1", at=1, zero=["b.*"], optim="copy"), BLOCKS, {}),
    Example(o.stack("layers", times=2, optim="copy"), BLOCKS, {}),
    Example(o.cast("fc.*", "float8_e4m3fn"), LAYER, {}),
    Example(o.tile("fc.*", dim=0, to=10, blocks=2), LAYER, {}),
    Example(o.append("fc.*", dim=0, n=4, init="normal", blocks=2), LAYER, {}),
    Example(o.select("fc.*", dim=0, index=[1], blocks=2), LAYER, {}),
    Example(o.reshape("fc.weight", shape=[4, 6, 1, -1]), LAYER, {}),
    Example(o.reshape("fc.*"), LAYER, {"fc.weight": (2, 12), "fc.bias": (1, 4)}),
    *(Example(o.add("new.*", init=init), LAYER, {"new.weight": (5, 4), "new.bias": (5,)}) for init in ("zeros", "ones", "kaiming_uniform", "xavier_uniform")),
    Example(o.add("new", init="normal", std=0.1), LAYER, {"new": (5, 4)}),
    Example(o.add("new", init="constant", value=0.5), LAYER, {"new": ()}),
    Example(o.copy("fc.*", "fc2.*"), LAYER, {}),
    Example(o.stack_tensors("experts.*.w", "experts.w"), EXPERTS, {}),
    Example(o.stack_tensors(["fc.weight", "head.weight"], "both", dim=-1), {"fc.weight": (4, 6), "head.weight": (4, 6)}, {}),
    Example(o.unbind("experts.w", "experts.*.w", dim=1), {"experts.w": (2, 4, 3)}, {}),
    Example(o.unbind("w", ["one", "two"]), {"w": (2, 3)}, {}),
    Example(o.merge_lora("m.", alpha=4), ADAPTED, {}),
    Example(o.fold_weight_norm("fc"), NORMED, {}),
    Example(o.fold_weight_norm("up.weight"), NORMED_ANEW, {}),
    Example(o.fold_weight_norm("*"), SPECTRAL, {}),
    Example(o.fold_batch_norm("conv", "bn"), FOLDED, {}),
    Example(o.fold_batch_norm("conv", "bn", eps=0.1), FOLDED | {"conv.bias": (4,)}, {}),
    Example(o.tie(["fc.weight", "head.weight"]), {**LAYER, "head.weight": (4, 6)}, {}),
]  # fmt: skip
