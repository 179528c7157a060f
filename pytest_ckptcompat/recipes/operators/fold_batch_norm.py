"""The operator `fold_batch_norm`: a batch norm folded into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import Computed
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.recipes.base import Surroundings

EPS = 1e-5
"""The default of torch's batch norms."""

_LEAVES = ("running_mean", "running_var", "weight", "bias")


class Pair(NamedTuple):
    """A layer and the norm after it.

    Attributes:
        conv: the path of the layer.
        norm: the path of the norm.
        outputs: the dimension of the layer's weight that counts outputs.
        leaves: the names of the norm's tensors -> their keys.
    """

    conv: str
    norm: str
    outputs: int
    leaves: dict[str, str]


@dataclass(frozen=True, repr=False)
class fold_batch_norm(Operator):
    """Fold a batch norm into the convolution or linear layer before it (`torch.nn.utils.fuse_conv_bn_eval`).

    ``fold_batch_norm("layer*.conv1", "layer*.bn1")``. The weight of each output is multiplied by
    ``γ / sqrt(var + eps)``. Mean and β are folded into the bias, which is added if the layer had none. The
    norm's keys are removed. The function is kept in eval mode only, because in train mode a batch norm uses
    the statistics of the batch. The optimizer's state of weight and bias starts anew.

    Attributes:
        conv: the layer's path; stars match the same text in `norm`.
        norm: the norm's path.
        eps: of the norm; that of ``source_model`` where one is given, else 1e-5.
        transposed: whether the layer is a transposed convolution, whose weight is (in, out, ...). If it is
            left out, it is taken from the models, or else from the sizes. If both dimensions fit, it is
            taken for an ordinary layer.
    """

    changes_function: ClassVar[str] = ""
    eval_only: ClassVar[bool] = True

    conv: str
    norm: str
    eps: float | None = None
    transposed: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("fold_batch_norm", self.conv, self.norm)

    def completed(self, surroundings: Surroundings) -> Self:
        """Fill in eps and the kind of layer from the models, if they are not given."""
        eps, transposed = self.eps, self.transposed
        for model in filter(None, (surroundings.source(), surroundings.model)):
            modules = dict(model.named_modules())
            layers = {path: each for path, each in modules.items() if stars(self.conv, path) is not None}
            norms = {path: modules.get(filled(self.norm, stars(self.conv, path) or ())) for path in layers}
            followed = [path for path, norm in norms.items() if norm is not None] or list(layers)
            kinds = {
                isinstance(layers[path], nn.modules.conv._ConvTransposeNd)
                for path in followed
                if hasattr(layers[path], "weight")
            }
            all_eps = {
                norm.eps for norm in norms.values() if isinstance(norm, nn.modules.batchnorm._BatchNorm)
            }
            if (eps is None and len(all_eps) > 1) or (transposed is None and len(kinds) > 1):
                differ = "transposed and ordinary layers" if len(kinds) > 1 else "norms with different eps"
                raise self.unfit(self.conv, f"it matches {differ}; fold them one by one")
            eps = min(all_eps, default=None) if eps is None else eps
            transposed = min(kinds, default=None) if transposed is None else transposed
        return replace(self, eps=eps, transposed=transposed)

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        for pair in self._pairs(state):
            weight, bias = f"{pair.conv}.weight", f"{pair.conv}.bias"
            plan |= {key: [] for key in state if key.rpartition(".")[0] == pair.norm}
            fold = _Fold(self._eps, pair.outputs, tuple(pair.leaves))
            sources = tuple(pair.leaves.values())
            plan[weight] = [Write(weight, (weight, *sources), fold.weight)]
            if bias in state:
                plan[bias] = [Write(bias, (bias, *sources), fold.bias)]
            else:
                plan[weight].append(Write(bias, (weight, *sources), fold.new_bias))
        return plan

    def destination(self, key: str) -> str | None:
        return None if stars(self.norm, key.rpartition(".")[0]) is not None else key

    @property
    def _eps(self) -> float:
        return EPS if self.eps is None else self.eps

    def _pairs(self, state: State) -> Iterator[Pair]:
        modules = dict.fromkeys(key.rpartition(".")[0] for key in state)
        named = [path for path in modules if stars(self.conv, path) is not None]
        if not named:
            raise self.unused(self.conv, f"{python(self.conv)} matches no layer in the checkpoint")
        pairs = [(path, filled(self.norm, stars(self.conv, path) or ())) for path in named]
        if "*" in self.conv:  # may match layers without a norm after them
            pairs = [(conv, norm) for conv, norm in pairs if f"{norm}.running_var" in state] or pairs[:1]
        for conv, norm in pairs:
            outputs = self._outputs(conv, norm, state)
            leaves = {leaf: f"{norm}.{leaf}" for leaf in _LEAVES if f"{norm}.{leaf}" in state}
            if "running_mean" not in leaves:
                raise self.unfit(f"{norm}.running_mean", "it is not in the checkpoint")
            yield Pair(conv, norm, outputs, leaves)

    def _outputs(self, conv: str, norm: str, state: State) -> int:
        """Return the dimension of the layer's weight that counts the norm's channels."""
        channels, weight = shape(state.get(f"{norm}.running_var")), shape(state.get(f"{conv}.weight"))
        if weight is None or len(weight) < 2:
            raise self.unfit(f"{conv}.weight", "the layer has no weight in the checkpoint")
        if not state[f"{conv}.weight"].is_floating_point():
            raise self.unfit(f"{conv}.weight", "it holds no real floats")
        if channels is None or len(channels) != 1:
            raise self.unfit(f"{norm}.running_var", "the norm has no running statistics in the checkpoint")
        fitting = [dim for dim in (0, 1) if weight[dim] == channels[0]]
        if self.transposed is not None:
            fitting = [dim for dim in fitting if dim == int(self.transposed)]
        if not fitting:
            why = f"it is {shown(weight)}, and the norm has {channels[0]} channels"
            grouped = "; transposed convolutions with groups are not supported" if self.transposed else ""
            raise self.unfit(f"{conv}.weight", why + grouped)
        return fitting[0]

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the new layer, times the norm's deviation, is the old one times γ; also for the bias."""

        def faults() -> Iterator[str]:
            for pair in self._pairs(before):
                yield from self._faults(pair, before, after)

        told = f"in eval mode, eps {self._eps:g}" + (" (torch's default)" if self.eps is None else "")
        yield Claim.of(f"{self}: folded into the layer", faults, told)

    def _faults(self, pair: Pair, before: State, after: State) -> Iterator[str]:
        """Compare with what torch folds in float64. Absolute values, folded likewise, scale the rounding."""
        if any(key.rpartition(".")[0] == pair.norm for key in after):
            yield f"{escape(pair.norm)} is still there"
            return
        norm = {leaf: materialise(before[key]).double() for leaf, key in pair.leaves.items()}
        mean, var = norm["running_mean"], norm["running_var"]
        gamma, beta = norm.get("weight", torch.ones_like(mean)), norm.get("bias", torch.zeros_like(mean))
        weight = materialise(before[f"{pair.conv}.weight"]).double()
        had = before.get(f"{pair.conv}.bias")
        bias = torch.zeros_like(mean) if had is None else materialise(had).double()
        transposed = bool(pair.outputs)
        folded = fuse_conv_bn_weights(weight, bias, mean, var, self._eps, gamma, beta, transposed)
        sizes = fuse_conv_bn_weights(
            weight.abs(), bias.abs(), -mean.abs(), var, self._eps, gamma.abs(), beta.abs(), transposed
        )
        for leaf, exact, size in zip(("weight", "bias"), folded, sizes, strict=True):
            key = f"{pair.conv}.{leaf}"
            yield from Computed().faults(key, exact, after.get(key), size)


class _Fold(NamedTuple):
    """Computes the tensors of a layer with its norm folded in, in float64."""

    eps: float
    outputs: int
    leaves: tuple[str, ...]

    def _norm(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return factor, mean and β of every channel."""
        named = {leaf: tensor.double() for leaf, tensor in zip(self.leaves, tensors, strict=True)}
        factor = named.get("weight", 1.0) / (named["running_var"] + self.eps).sqrt()
        return factor, named["running_mean"], named.get("bias", torch.zeros_like(factor))

    def weight(self, tensor: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            return tensor.new_empty(tensor.shape)
        factor, _, _ = self._norm(norm)
        across = [-1 if dim == self.outputs else 1 for dim in range(tensor.dim())]
        return (tensor.double() * factor.reshape(across)).to(tensor.dtype)

    def bias(self, tensor: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            return tensor.new_empty(tensor.shape)
        factor, mean, beta = self._norm(norm)
        return ((tensor.double() - mean) * factor + beta).to(tensor.dtype)

    def new_bias(self, weight: torch.Tensor, *norm: torch.Tensor) -> torch.Tensor:
        return self.bias(weight.new_zeros(norm[0].shape), *norm)
