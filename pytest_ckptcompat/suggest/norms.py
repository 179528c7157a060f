"""Find batch norms that the model no longer has: they may be folded into the layers before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ckptcompat.recipes.operators import fold_batch_norm

from .patterns import matches_only, starred
from .templates import indices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .templates import Shapes

_Pair = tuple[str, str]
"""The paths of a layer and the norm after it."""


def folded_norms(checkpoint: Shapes, model: Shapes) -> Iterator[fold_batch_norm]:
    """Fold each batch norm that was removed into the layer before it, which has a bias now.

    Similar layers are folded by one pattern if it matches no other norm.
    """
    alike: dict[_Pair, list[_Pair]] = {}
    for layer, norm in _pairs(checkpoint, model):
        alike.setdefault((starred(layer), starred(norm)), []).append((layer, norm))
    norms = {key.removesuffix(".running_mean") for key in checkpoint if key.endswith(".running_mean")}
    for globs, pairs in alike.items():
        together = all(indices(layer) == indices(norm) for layer, norm in pairs)
        if len(pairs) > 1 and together and matches_only(globs[1], [norm for _, norm in pairs], norms):
            pairs = [globs]
        yield from (fold_batch_norm(layer, norm) for layer, norm in pairs)


def _pairs(checkpoint: Shapes, model: Shapes) -> Iterator[_Pair]:
    """Yield norms that the model lacks, each with the layer before it, which has a bias in the model.

    If the model has no norms at all, the layer may have another name there.
    """
    if any(key.endswith(".running_mean") and key not in checkpoint for key in model):
        return  # it may be one that has another name there
    normless = not any(key.endswith(".weight") and shape and len(shape) == 1 for key, shape in model.items())
    last = before = ""
    for key in checkpoint:
        module, _, leaf = key.rpartition(".")
        if module != last:
            before, last = last, module
        if leaf != "running_mean" or key in model:
            continue
        weight, channels = checkpoint.get(f"{before}.weight"), checkpoint[key]
        if (
            channels is not None
            and weight is not None
            and len(weight) > 1
            and weight[:1] == channels
            and (normless or model.get(f"{before}.weight") == weight)
            and (normless or model.get(f"{before}.bias") == channels)
            and len(model.get(f"{module}.weight") or weight) > 1
            and _may_follow(before, module)
        ):
            yield before, module


def _may_follow(layer: str, norm: str) -> bool:
    """Return whether the norm may directly follow the layer. In a sequence, their numbers must do so."""
    (parent, _, number), (other, _, following) = layer.rpartition("."), norm.rpartition(".")
    numbered = parent == other and number.isdecimal() and following.isdecimal()
    return not numbered or int(following) == int(number) + 1
