"""Averages of the weights (EMA, SWA) in a checkpoint: grown like the weights, or left out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
from pytest_ckptcompat.checkpoint.wrappers import CHOOSING
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.optimizer.state import saved_states

from .output import grown_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.checkpoint.written import Content

    from .growth import Growth

_NAME = re.compile(
    r"(?<![a-z])(ema|average|averaged|avg|swa|shadow|teacher|polyak|master|fp32)", re.IGNORECASE
)
_OPTIMIZER = re.compile(r"optim", re.IGNORECASE)
_DEPTH, _WIDTH = 3, 1000


def grown_averages(content: Content, inner: Any, growth: Growth) -> Iterator[str]:
    """Rewrite every other copy of the model's weights in the content to be written, and yield a note on each.

    An average is recognised by its name and its tensors: either the model's keys, perhaps with a prefix, or a
    list of tensors with the shapes and order of the model's parameters. Any other copy may belong to another
    network, so it is kept and noted. `inner` is the state dict of the old checkpoint.
    """
    checkpoint, sources = growth.checkpoint, growth.applied.sources
    copied = {old for new, olds in sources.items() for old in olds if old != new}
    changed = growth.changed | copied
    if not changed or not isinstance(checkpoint.wrapper, dict):
        return
    known = {id(saved.node) for saved in saved_states(checkpoint.wrapper)} | {id(inner)}
    for name, node in _unknown_optimizers(checkpoint.wrapper, known):
        content.leave_out(node)
        known.add(id(node))
        yield f"{escape(name, 120)} is left out: an optimizer's state in a form that is not known"
    shapes = {checkpoint[key].shape for key in changed}
    for path, node in _holders(checkpoint.wrapper, known):
        copy, where = _copy_of(checkpoint, node), escape(path, 120)
        if copy is None or changed.isdisjoint(copy):
            if any(len(each.shape) > 0 and each.shape in shapes for each in _tensors(node)):
                yield f"{where} is kept as it was: tensors in it have the shapes of weights that changed"
        elif not _NAME.search(path):
            yield f"{where} is kept as it was: name it with {CHOOSING} to grow it"
        else:
            try:
                content.instead(node, _grown(content, node, copy, growth))
                yield f"{where} is grown too"
            except CheckpointError:
                raise
            except (ValueError, LookupError) as reason:
                content.leave_out(node)
                yield f"{where} is left out: it can't be grown as the weights are ({reason})"


def _unknown_optimizers(wrapper: dict[Any, Any], known: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield parts that are named like an optimizer and hold tensors, but no state in a known form."""
    for name, node in wrapper.items():
        if isinstance(node, (dict, list)) and id(node) not in known and _OPTIMIZER.search(str(name)):
            inside = [node, *(part for _, part in _containers(node, set()))]
            holds = any(each.shape for part in inside for each in _tensors(part))
            if holds and known.isdisjoint(map(id, inside)):
                yield str(name), node


def _tensors(node: Any) -> list[TensorSpec]:
    values = node.values() if isinstance(node, dict) else node
    return [value for value in values if isinstance(value, TensorSpec)]


def _holders(node: Any, known: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield the outermost containers that hold tensors directly, with their paths."""
    taken: set[int] = set()
    for name, part in _containers(node, known):
        if _tensors(part) and id(part) not in taken:
            taken |= {id(inner) for _, inner in _containers(part, known)}
            yield name, part


def _containers(node: Any, known: set[int], path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the dicts and lists inside, outer ones first, except known ones."""
    for key, part in list(node.items() if isinstance(node, dict) else enumerate(node))[:_WIDTH]:
        if isinstance(part, (dict, list)) and id(part) not in known:
            name = f"{path}.{key}".removeprefix(".")
            yield name, part
            if depth < _DEPTH:
                yield from _containers(part, known, name, depth + 1)


def _copy_of(checkpoint: Checkpoint, node: Any) -> dict[str, Any] | None:
    """Return weight key -> the copy's key or index, or None unless it has more than half of the weights.

    The copy's keys may have a prefix. The tensors of a list are matched by shape and order; keys, such as
    those of buffers, may be skipped.
    """
    shapes = {key: spec.shape for key, spec in checkpoint.items()}
    copy: dict[str, Any] = {}
    if isinstance(node, list):
        for key, shape in shapes.items():
            place = len(copy)
            if place < len(node) and isinstance(node[place], TensorSpec) and node[place].shape == shape:
                copy[key] = place
        return copy if len(copy) == len(node) and len(copy) * 2 > len(shapes) else None
    own = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, TensorSpec)]
    first = next(iter(shapes))
    prefixes = ["", *(key.removesuffix(first) for key in own if key.endswith(f".{first}"))]
    for prefix in prefixes[:2]:
        names = {f"{prefix}{key}": key for key in shapes}
        copy = {names[key]: key for key in own if key in names}
        if len(copy) * 2 > len(shapes):
            return copy
    return None


def _grown(content: Content, node: Any, copy: Mapping[str, Any], growth: Growth) -> Any:
    """Grow the copy like the weights, with the copy's form of keys, and keep whatever else it holds.

    Raises `ValueError` or `LookupError` if the copy lacks keys, or would get other shapes than the weights.
    """
    model, weights = growth.model, growth.applied.state_dict
    entries = {key: node[own] for key, own in copy.items()}
    old = Checkpoint(growth.checkpoint.contents, "", entries, None).stored()
    made = growth.recipe.run(old, model.state_dict()).state_dict
    for key, value in made.items():
        if key in weights and tuple(value.shape) != tuple(weights[key].shape):
            raise LookupError(f"{escape(key)} would have another shape than the weights")
    values = grown_state(made, model, content)
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
