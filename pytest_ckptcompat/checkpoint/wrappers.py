"""Where in a checkpoint the model's state dict is."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from pytest_ckptcompat.checkpoint.entries import _module_entries, has_tensors, is_module
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Branch, Stub, child, children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits

USUAL = (
    "state_dict", "model_state_dict", "model", "module", "net", "ema", "model_state", "network", "weights",
    "params", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict",
    "params_ema", "net_state_dict", "model_weights",
)  # fmt: skip
"""What people call the state dict inside a checkpoint."""

CHOOSING = "state_dict_key= (on the command line --key)"
"""How a person says which state dict is meant."""

_DEEPEST = 3

_TRAINING = ("optim", "sched", "scaler")

_CONTAINERS = (dict, list, tuple, Stub)

_SHOWN = 8


def state_dict_at(tree: object, path: str) -> object:
    """The part of a checkpoint that a dotted path names.

    Keys may themselves contain dots. List elements are named by their index.

    Raises:
        CheckpointError: there is none; the text lists what is there.
    """
    node = tree
    rest = path
    while rest:
        for name in _beginnings(rest):
            try:
                node = child(node, name)
            except LookupError:
                continue
            rest = rest[len(name) + 1 :]
            break
        else:
            where = path[: len(path) - len(rest)].rstrip(".")
            here = f"{escape(where)!r}" if where else "the checkpoint"
            raise CheckpointError(
                f"{CHOOSING} names {escape(path)!r}: {here} has no such part; it has {_listed(node)}"
            )
    return node


def find_state_dict(tree: object, limits: Limits) -> tuple[str, object]:
    """The state dict of a checkpoint and the dotted path to it, ``""`` where it is the outer object itself.

    The usual names are looked for, at most three levels deep, the shallowest first; then, if none of them is
    there, anything that looks like a state dict. A module that was saved whole counts as one. In a
    distributed checkpoint, everything together is the state dict then.

    Raises:
        CheckpointError: there is none, or there are several that are equally good.
    """
    whole = _is_state_dict(tree, limits)
    others: list[tuple[str, object]] = []
    for level in islice(_levels(tree), 1 if whole else _DEEPEST):
        found = [(path, name, node) for path, name, node in level if _is_state_dict(node, limits)]
        usual = [(path, node) for path, name, node in found if name in USUAL]
        if usual:
            return _only(usual)
        others = others or [(path, node) for path, _, node in found]
    if whole or (others and isinstance(tree, Branch)):
        return "", tree
    if others:
        return _only(others)
    raise CheckpointError(_nothing(tree))


def _levels(tree: object) -> Iterator[list[tuple[str, str, object]]]:
    """The containers inside, level by level: their path, the last part of it, and what they are.

    Each is given once, under the first of its paths, so that shared parts don't multiply.
    """
    seen = {id(tree)}
    level = [] if _serves_training("", tree) else [("", "", tree)]
    while level:
        inner: list[tuple[str, str, object]] = []
        for path, _, node in level:
            if is_module(node):
                continue
            for name, part in children(node):
                if (
                    isinstance(part, _CONTAINERS)
                    and id(part) not in seen
                    and not _serves_training(name, part)
                ):
                    seen.add(id(part))
                    inner.append((f"{path}.{name}".removeprefix("."), name, part))
        yield inner
        level = inner


def _only(found: list[tuple[str, object]]) -> tuple[str, object]:
    if len(found) > 1:
        names = ", ".join(repr(escape(path)) for path, _ in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(
            f"it holds {len(found)} state dicts that may be meant: {names}{more}; say which with {CHOOSING}"
        )
    return found[0]


def _is_state_dict(node: object, limits: Limits) -> bool:
    if is_module(node):
        return any(isinstance(value, TensorSpec) for _, value in _module_entries(node, limits))
    return has_tensors(node)


def _serves_training(name: str, node: object) -> bool:
    """Whether it is an optimizer's or a scheduler's state, which may look like a state dict."""
    return any(part in name for part in _TRAINING) or (isinstance(node, dict) and "param_groups" in node)


def _beginnings(path: str) -> Iterator[str]:
    """The path, then shorter and shorter beginnings of it, cut at dots."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _nothing(tree: object) -> str:
    if isinstance(tree, TensorSpec):
        return "it holds a single tensor, not a state dict; save {'name': tensor} or model.state_dict()"
    return (
        f"there is no state dict in it (no dict with tensors, at most {_DEEPEST} levels deep): it is "
        f"{_kind(tree)}, and has {_listed(tree)}"
    )


def _listed(node: object) -> str:
    parts = list(islice(children(node), _SHOWN + 1))
    names = ", ".join(f"{escape(name, 60)!r} ({_kind(value)})" for name, value in parts[:_SHOWN])
    return (names + (", ..." if len(parts) > _SHOWN else "")) or "no parts"


def _kind(value: object) -> str:
    if isinstance(value, TensorSpec):
        return "a tensor"
    if isinstance(value, Stub):
        return escape(value.name, 80) or "an object"
    if isinstance(value, dict):
        return f"a dict of {len(value)}"
    return f"a {type(value).__name__}"
