"""Find batch norms that the model no longer has: they may be folded into the layers before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .steps import Step
from .templates import indices, template

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .templates import Shape, Shapes

_Pair = tuple[str, str]
"""The paths of a layer and the norm after it."""


def folded_norms(checkpoint: Shapes, model: Shapes) -> tuple[list[Step], dict[str, Shape]]:
    """Find steps that fold each removed batch norm into the layer before it, which has a bias now.

    Returns:
        The steps, and the checkpoint after them.
    """
    pairs = list(_pairs(checkpoint, model))
    gone = {norm for _, norm in pairs}
    biases = {f"{layer}.weight": (f"{layer}.bias", f"{norm}.running_mean") for layer, norm in pairs}
    after: dict[str, Shape] = {}
    for key, shape in checkpoint.items():
        if key.rpartition(".")[0] not in gone:
            after[key] = shape
        if key in biases:
            bias, channels = biases[key]
            after[bias] = checkpoint[channels]
    return [Step("fold_batch_norm", pair) for pair in _patterns(pairs, checkpoint)], after


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
        weight, channels = checkpoint.get(f"{before}.weight"), checkpoint[key]
        if (
            leaf == "running_mean"
            and channels is not None
            and weight is not None
            and len(weight) > 1
            and weight[:1] == channels
            and (normless or model.get(f"{before}.weight") == weight)
            and (normless or model.get(f"{before}.bias") == channels)
            and len(model.get(f"{module}.weight") or weight) > 1
            and key not in model
            and _may_follow(before, module)
        ):
            yield before, module


def _may_follow(layer: str, norm: str) -> bool:
    """Return whether the norm may directly follow the layer: numbers in a sequence must be consecutive."""
    (parent, _, number), (other, _, following) = layer.rpartition("."), norm.rpartition(".")
    numbered = parent == other and number.isdecimal() and following.isdecimal()
    return not numbered or int(following) == int(number) + 1


def _patterns(pairs: Iterable[_Pair], checkpoint: Shapes) -> Iterator[_Pair]:
    """Yield the paths; those of similar layers as one pattern, if it matches no other norm."""
    alike: dict[_Pair, list[_Pair]] = {}
    for layer, norm in pairs:
        starred = tuple(".".join(template(path)).replace("#", "*") for path in (layer, norm))
        alike.setdefault((starred[0], starred[1]), []).append((layer, norm))
    norms = {key.removesuffix(".running_mean") for key in checkpoint if key.endswith(".running_mean")}
    for starred, several in alike.items():
        like = [norm for norm in norms if ".".join(template(norm)).replace("#", "*") == starred[1]]
        if len(several) == len(like) and all(indices(layer) == indices(norm) for layer, norm in several):
            yield starred if len(several) > 1 else several[0]
        else:
            yield from several
