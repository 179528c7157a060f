"""Weights saved in parts, which don't work without each other, and batch norms that were folded.

The parts may be parametrised, adapted or quantised.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.recipes.operators import fold_batch_norm, fold_weight_norm
from pytest_ckptcompat.recipes.operators.fold_weight_norm import UNKNOWN_PARAMETRIZATION, parametrized

from .templates import Globs, indices, matches_only, starred

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pytest_ckptcompat.recipes.plan import State

    from .budget import Budget
    from .templates import Shapes

_TOGETHER = {"weight norm": ("_g", "_v"), "spectral norm": ("_orig", "_u"), "pruning": ("_orig", "_mask")}
"""Endings of two parts that mean a kind if both exist; spectral norm also has ``_v``."""
_PARAMETRIZED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<leaf>[^.]+)\..*", re.DOTALL)
_ADAPTED = re.compile(
    r"(?P<module>(?:.*?\.)?)(?:lora|hada|lokr|oft|boft|ia3|vera|dora|adalora)_.*", re.DOTALL
)
_BASE = re.compile(r"(?P<module>(?:.*\.)?)base_layer\.(?P<leaf>.*)", re.DOTALL)
_SCALE = re.compile(
    r"(?P<module>(?:.*\.)?)(?P<leaf>weight_|input_|activation_|act_|output_)?"
    r"(?:scales?|scale_inv|zero_points?|zp|qzeros|qweight|g_idx|SCB|absmax|quant_map|quant_state.*|packed_params.*)",
    re.DOTALL,
)


def folds(checkpoint: State, target: State) -> list[fold_weight_norm]:
    """Fold weights that are parametrised in the checkpoint but plain in the model."""
    parts = parametrized(checkpoint)
    kinds = {each.kind for each in parametrized(target).values()} | {UNKNOWN_PARAMETRIZATION}
    folded = [name for name, each in parts.items() if each.kind not in kinds]
    return list(map(fold_weight_norm, Globs(parts).cover(folded)))


class Apart(NamedTuple):
    """The keys that a search for other changes must ignore.

    Attributes:
        checkpoint: the keys of parts whose kind the other side does not have.
        model: the weights that they may stand for; or the reverse.
        kinds: the kinds of the checkpoint's parts.
    """

    checkpoint: set[str]
    model: set[str]
    kinds: set[str]


def set_apart(checkpoint: Shapes, model: Shapes, budget: Budget) -> Apart:
    """Find the parts of weights that the other side has whole.

    Otherwise a part could be renamed to the weight, or dropped, which would lose numbers.
    """
    olds, news = (dict(_parts(shapes, budget)) for shapes in (checkpoint, model))
    old_kinds, new_kinds = ({kind for kind, _ in parts.values()} for parts in (olds, news))
    one_sided = old_kinds ^ new_kinds
    apart = Apart(set(), set(), old_kinds - new_kinds)
    for key, (kind, whole) in olds.items():
        if kind in one_sided:
            apart.checkpoint.add(key)
            apart.model.update(name for name in _endings(whole) if name in model)
            if whole in checkpoint:
                apart.checkpoint.add(whole)
    for key, (kind, whole) in news.items():
        if kind in one_sided:
            apart.model.add(key)
            if kind != "adapter":  # an adapter's base weight is unchanged
                apart.checkpoint.update(name for name in _endings(whole) if name in checkpoint)
    return apart


def _parts(keys: Collection[str], budget: Budget) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield keys of parts, each with its kind and the key of the whole weight."""
    adapted = {found["module"] for key in keys if (found := _ADAPTED.fullmatch(key))}
    for key in budget.each(keys):
        if found := _PARAMETRIZED.fullmatch(key):
            yield key, ("parametrisation", found["module"] + found["leaf"])
        elif found := _ADAPTED.fullmatch(key):
            yield key, ("adapter", found["module"] + "weight")
        elif (found := _BASE.fullmatch(key)) and found["module"] in adapted:
            yield key, ("adapter", found["module"] + found["leaf"])
        elif ((found := _SCALE.fullmatch(key)) and f"{found['module']}weight" in keys) or key.endswith(
            ".qweight"
        ):
            yield key, ("quantisation", key.rpartition(".")[0] + ".weight")
        else:
            stem = key[: key.rindex("_")] if "_" in key else ""
            for kind, ends in _TOGETHER.items() if stem else ():
                if all(f"{stem}{end}" in keys for end in ends) and key[len(stem) :] in (*ends, "_v"):
                    yield key, (kind, stem)
                    break


def _endings(key: str) -> Iterator[str]:
    """Yield the key, then the key without its first module, and so on."""
    while key:
        yield key
        key = key.partition(".")[2]


# -- batch norms --------------------------------------------------------------------------------------------


def folded_norms(checkpoint: Shapes, model: Shapes) -> Iterator[fold_batch_norm]:
    """Fold each batch norm that was removed into the layer before it, which has a bias now.

    Similar layers are folded by one pattern if it matches no other norm.
    """
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for layer, norm in _pairs(checkpoint, model):
        alike.setdefault((starred(layer), starred(norm)), []).append((layer, norm))
    norms = {key.removesuffix(".running_mean") for key in checkpoint if key.endswith(".running_mean")}
    for globs, pairs in alike.items():
        together = all(indices(layer) == indices(norm) for layer, norm in pairs)
        if len(pairs) > 1 and together and matches_only(globs[1], [norm for _, norm in pairs], norms):
            pairs = [globs]
        yield from (fold_batch_norm(layer, norm) for layer, norm in pairs)


def _pairs(checkpoint: Shapes, model: Shapes) -> Iterator[tuple[str, str]]:
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
