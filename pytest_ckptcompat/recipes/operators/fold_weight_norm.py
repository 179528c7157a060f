"""The operator `fold_weight_norm`: plain weights from parametrized ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.keys import matches
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import Computed
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator


class Parts(NamedTuple):
    """The keys that a weight is computed from, in the order of the arguments: first the one of its shape."""

    kind: str
    keys: tuple[str, ...]


_WEIGHT, _SPECTRAL, UNKNOWN_PARAMETRIZATION = "weight norm", "spectral norm", "another parametrization"


@dataclass(frozen=True, repr=False)
class fold_weight_norm(Operator):
    """Replace a weight norm or spectral norm by the weight that results from it.

    Weight norm (Salimans and Kingma 2016, arXiv:1602.07868) is ``g * v / |v|``, with the norm over every
    dimension in which g has size 1. Spectral norm (Miyato et al. 2018, arXiv:1802.05957) is the weight over
    ``u · W v``, as torch computes it in eval mode. Both of torch's spellings are known: ``weight_g`` and
    ``weight_orig`` of `torch.nn.utils`, ``parametrizations.weight.original0`` of
    `torch.nn.utils.parametrizations`. Others, such as orthogonal, can't be computed from the checkpoint
    alone and are refused.

    ``fold_weight_norm("decoder.*")``

    Attributes:
        key: the weight that results (``conv.weight``), its layer (``conv``), or a glob of either. The
            optimizer's state of the weight starts anew.
    """

    changes_function: ClassVar[str] = ""

    key: str

    def plan(self, state: State, target: State) -> Plan:
        plan: dict[str, list[Write]] = {}
        places = {key: place for place, key in enumerate(state)}
        for name, parts in self._chosen(state).items():
            if parts.kind == UNKNOWN_PARAMETRIZATION:
                raise self.unfit(
                    name,
                    f"{python(parts.keys[0])} belongs to a parametrization that can't be computed from the "
                    "checkpoint alone; call torch.nn.utils.parametrize.remove_parametrizations on the old "
                    "model, and save that",
                )
            if not all(state[key].is_floating_point() for key in parts.keys):
                raise self.unfit(name, "it holds no real floats")
            first = min(parts.keys, key=places.__getitem__)
            make = _weight_normed if parts.kind == _WEIGHT else _spectral_normed
            plan |= {key: [] for key in parts.keys} | {first: [Write(name, parts.keys, make)]}
        return plan

    def destination(self, key: str) -> str | None:
        found = _part(key)
        if found is None or not self._names(found[0]):
            return key
        return found[0] if found[1] in ("direction", "original") else None

    def _names(self, name: str) -> bool:
        """Return whether `key` matches this weight or its layer."""
        return matches(self.key, name) or matches(self.key, name.rpartition(".")[0])

    def _chosen(self, state: State) -> dict[str, Parts]:
        """Return the weights to fold, by name."""
        found = {name: parts for name, parts in parametrized(state).items() if self._names(name)}
        if not found:
            known = ", ".join(python(name) for name in list(parametrized(state))[:3])
            hint = f"; there is one of {known}" if known else ""
            raise self.unused(self.key, f"matches no weight norm or spectral norm in the checkpoint{hint}")
        return found

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the new weight equals one computed in another way, up to rounding."""
        computed = Computed()

        def faults() -> Iterator[str]:
            for name, parts in self._chosen(before).items():
                if any(key in after and key != name for key in parts.keys):
                    yield f"{escape(name)}: what it was computed from is still there"
                    return
                values = [materialise(before[key]).double() for key in parts.keys]
                exact = _by_slices(*values) if parts.kind == _WEIGHT else _by_matrix(*values)
                yield from computed.faults(name, exact, after.get(name))

        yield Claim.of(f"{self}: the weight that results", faults, lambda: str(computed))


def parametrized(state: State) -> dict[str, Parts]:
    """Return the parts of parametrized weights in a state dict, by the weight's plain name."""
    found: dict[str, dict[str, str]] = {}
    for key in state:
        part = _part(key)
        if part is not None and shape(state[key]) is not None:
            found.setdefault(part[0], {})[part[1]] = key
    return {name: parts for name, named in found.items() if (parts := _parts(named)) is not None}


def _part(key: str) -> tuple[str, str] | None:
    """Return the weight that a key is a part of, and which part; None if it is not a part."""
    module, inner, leaf = key.rpartition(".parametrizations.")
    if inner or key.startswith("parametrizations."):
        leaf = leaf if inner else key.removeprefix("parametrizations.")
        name, _, part = leaf.partition(".")
        return f"{module}.{name}".removeprefix("."), _PARAMETRIZED.get(part, "unknown")
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    return None


_PARAMETRIZED = {
    "original0": "magnitude",
    "original1": "direction",
    "original": "original",
    "0._u": "left",
    "0._v": "right",
}
_SUFFIXES = {"_g": "magnitude", "_v": "direction", "_orig": "original", "_u": "left"}


def _parts(named: dict[str, str]) -> Parts | None:
    if named.keys() == {"magnitude", "direction"}:
        return Parts(_WEIGHT, (named["direction"], named["magnitude"]))
    right = named.get("right") or named.get("direction")  # the old spelling is _v, as in weight norm
    if named.keys() in ({"original", "left", "right"}, {"original", "left", "direction"}):
        return Parts(_SPECTRAL, (named["original"], named["left"], str(right)))
    if any(".parametrizations." in f".{key}" for key in named.values()):
        return Parts(UNKNOWN_PARAMETRIZATION, tuple(named.values()))
    return None


def _weight_normed(v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Return ``g * v / |v|``, computed in float64."""
    if v.is_meta:
        return v.new_empty(v.shape)
    wide = v.double()
    over = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
    norm = torch.linalg.vector_norm(wide, dim=over, keepdim=True) if over else wide.abs()
    return (wide * (g.double().reshape(norm.shape) / norm)).to(v.dtype)


def _spectral_normed(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the weight divided by ``u · W v``, computed in float64."""
    if weight.is_meta:
        return weight.new_empty(weight.shape)
    wide = weight.double()
    if weight.dim() == 1:
        norm: torch.Tensor = torch.linalg.vector_norm(wide)
        return (wide / norm).to(weight.dtype)
    products = torch.stack([torch.dot(u.double(), rows @ v.double()) for rows in _matrices(wide, u, v)])
    sigma: torch.Tensor = products.max()
    return (wide / sigma).to(weight.dtype)


def _matrices(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """Return the weight as matrices that fit u and v; a transposed convolution's outputs are second.

    If both fit, the one that u and v were computed for has the larger ``u · W v``.
    """
    found = [weight.transpose(0, dim).flatten(1) for dim in ((0, 1) if weight.dim() > 2 else (0,))]
    return [rows for rows in found if rows.shape == (len(u), len(v))]


def _by_slices(v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Compute weight norm in another way, slice by slice, for the proof."""
    if g.numel() == 1:
        return v * (g.flatten()[0] / v.square().sum().sqrt())
    dim = next(dim for dim in range(g.dim()) if g.shape[dim] > 1)
    slices = zip(v.unbind(dim), g.flatten(), strict=True)
    return torch.stack([each * (size / each.square().sum().sqrt()) for each, size in slices], dim)


def _by_matrix(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute spectral norm in another way, by sums of products, for the proof."""
    if weight.dim() == 1:
        return weight / weight.square().sum().sqrt()
    products = [(u[:, None] * rows * v).sum() for rows in _matrices(weight, u, v)]
    sigma: torch.Tensor = torch.stack(products).max()
    return weight / sigma
