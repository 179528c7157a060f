"""Averages of the weights beside them in a checkpoint (EMA, SWA): grown like the weights, or left out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
from pytest_ckptcompat.checkpoint.wrappers import CHOOSING
from pytest_ckptcompat.checkpoint.written_tensor import Value
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.optimizer.state import saved_states
from pytest_ckptcompat.tensors.deferred import DeferredTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from pytest_ckptcompat.checkpoint.written_object import Content
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

_NAME = re.compile(
    r"(?<![a-z])(ema|average|averaged|avg|swa|shadow|teacher|polyak|master|fp32)", re.IGNORECASE
)
_OPTIMIZER = re.compile(r"optim", re.IGNORECASE)
_DEPTH, _WIDTH = 3, 1000


def grown_averages(
    content: Content, checkpoint: Checkpoint, inner: Any, recipe: Recipe, applied: Applied, model: nn.Module
) -> Iterator[str]:
    """Put what becomes of every further copy of the model's weights in its place, and say what that is.

    An average is known by its name and by its tensors: the model's keys, perhaps behind a prefix, or a list
    of tensors in the shapes and order of its parameters. Another copy, which may be that of another network,
    is kept and said.

    Args:
        content: what is written.
        checkpoint: the old one.
        inner: its state dict.
        recipe: how its weights become the new ones.
        applied: what it made of them.
        model: the new model.
    """
    changed = {
        old for key in applied.touched for old in applied.sources.get(key, (key,)) if old in checkpoint
    }
    changed |= {old for new, old in applied.origin.items() if old is not None and old != new}
    if not changed or not isinstance(checkpoint.wrapper, dict):
        return
    known = {id(saved.node) for saved in saved_states(checkpoint.wrapper)} | {id(inner)}
    for name, node in _unknown_optimizers(checkpoint.wrapper, known):
        content.leave_out(node)
        known.add(id(node))
        yield f"{escape(name, 120)} is left out: an optimizer's state in a form that is not known"
    shapes = {checkpoint[key].shape for key in changed}
    for path, node in _inside("", checkpoint.wrapper, known):
        copy, where = _copy_of(checkpoint, node), escape(path, 120)
        if copy is None or changed.isdisjoint(copy):
            if any(len(each.shape) > 0 and each.shape in shapes for each in _tensors(node)):
                yield f"{where} is kept as it was: tensors in it have the shapes of weights that changed"
        elif not _NAME.search(path):
            yield f"{where} is kept as it was: name it with {CHOOSING} to grow it"
        else:
            try:
                content.instead(node, _grown(content, checkpoint, node, copy, recipe, applied, model))
                yield f"{where} is grown too"
            except (RecipeError, LookupError) as reason:
                content.leave_out(node)
                yield f"{where} is left out: it can't be grown as the weights are ({reason})"


def _unknown_optimizers(wrapper: dict[Any, Any], known: set[int]) -> Iterator[tuple[str, Any]]:
    """Parts that are called an optimizer, hold tensors, and have no state that can be told."""
    for name, node in wrapper.items():
        if isinstance(node, (dict, list)) and id(node) not in known and _OPTIMIZER.search(str(name)):
            inside = [node, *(part for _, part in _containers("", node, set()))]
            holds = any(each.shape for part in inside for each in _tensors(part))
            if holds and known.isdisjoint(map(id, inside)):
                yield str(name), node


def _tensors(node: Any) -> list[TensorSpec]:
    values = node.values() if isinstance(node, dict) else node
    return [value for value in values if isinstance(value, TensorSpec)]


def _inside(path: str, node: Any, known: set[int]) -> Iterator[tuple[str, Any]]:
    """The containers with tensors inside, and where they are; nothing inside of one that has some."""
    taken: set[int] = set()
    for name, part in _containers(path, node, known | taken):
        if _tensors(part) and id(part) not in taken:
            taken |= {id(inner) for _, inner in _containers("", part, known)}
            yield name, part


def _containers(path: str, node: Any, known: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The dicts and lists inside, from the outside in, without the known ones."""
    for key, part in list(node.items() if isinstance(node, dict) else enumerate(node))[:_WIDTH]:
        if isinstance(part, (dict, list)) and id(part) not in known:
            name = f"{path}.{key}".removeprefix(".")
            yield name, part
            if depth < _DEPTH:
                yield from _containers(name, part, known, depth + 1)


def _copy_of(checkpoint: Checkpoint, node: Any) -> dict[str, Any] | None:
    """The weights' keys -> this copy's own keys, if it has the same keys and shapes as far as it goes."""
    shapes = {key: spec.shape for key, spec in checkpoint.items()}
    if isinstance(node, dict):
        own = {
            key: value
            for key, value in node.items()
            if isinstance(key, str) and isinstance(value, TensorSpec)
        }
        for prefix in _prefixes(own, shapes):
            copy = {
                key.removeprefix(prefix): key
                for key in own
                if key.startswith(prefix) and key.removeprefix(prefix) in shapes
            }
            if len(copy) * 2 > len(shapes):
                return copy
        return None
    tensors = [value.shape for value in node if isinstance(value, TensorSpec)]
    names = _in_order(tensors, shapes)
    return (
        None
        if names is None or len(tensors) != len(node)
        else dict(zip(names, range(len(node)), strict=True))
    )


def _prefixes(own: Mapping[str, Any], shapes: Mapping[str, Any]) -> Iterator[str]:
    """What may stand before the model's keys: nothing, or what stands before its first one."""
    yield ""
    first = next(iter(shapes))
    for key in own:
        if key.endswith(f".{first}"):
            yield key.removesuffix(first)
            return


def _in_order(tensors: Sequence[Any], shapes: Mapping[str, Any]) -> list[str] | None:
    """The keys of tensors that have the shapes of the state dict's in its order, buffers perhaps left out."""
    names: list[str] = []
    for key, shape in shapes.items():
        if len(names) < len(tensors) and tensors[len(names)] == shape:
            names.append(key)
    return names if len(names) == len(tensors) and len(names) * 2 > len(shapes) else None


def _grown(
    content: Content,
    checkpoint: Checkpoint,
    node: Any,
    copy: Mapping[str, Any],
    recipe: Recipe,
    applied: Applied,
    model: nn.Module,
) -> Any:
    """The copy as the weights became, under its own form of keys; whatever else it holds is kept.

    Raises:
        RecipeError: it has not all that the recipe wants.
        LookupError: what it becomes has not the shapes that the weights have.
    """
    entries = {key: node[own] for key, own in copy.items()}
    made = recipe.run(
        Checkpoint(checkpoint.contents, "", entries, None).stored(), model.state_dict()
    ).state_dict
    for key, value in made.items():
        if key in applied.state_dict and tuple(value.shape) != tuple(applied.state_dict[key].shape):
            raise LookupError(f"{escape(key)} would have another shape than the weights")
    values = {key: _value(value) for key, value in made.items()}
    if isinstance(node, list):
        order = [name for name, _ in model.named_parameters() if name in values]
        if set(order) != set(values):
            raise LookupError(
                "it is a list, and the order of new tensors is not that of the model's parameters"
            )
        return [values[name] for name in order]
    key, own = next(iter(copy.items()))
    prefix = str(own).removesuffix(key)
    taken = set(copy.values())
    rest = {name: content.of(value) for name, value in node.items() if name not in taken}
    return {**{f"{prefix}{name}": value for name, value in values.items()}, **rest}


def _value(tensor: torch.Tensor) -> Value:
    if isinstance(tensor, DeferredTensor):
        return Value(tuple(tensor.shape), tensor.dtype, tensor.read, id(tensor))
    return Value.of(tensor)
