"""Find the model's state dict in a checkpoint."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import AmbiguousError, CheckpointError
from pytest_ckptcompat.core.escape import escape, listed
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Dict, Global, Set, Stub, child, children, is_array

from .candidates import DEEPEST, Candidate, meant, survey
from .entries import is_module, is_training_state, metadata_of, own_keys
from .rank_part import part_without_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.core.limits import Limits

CHOOSING = "state_dict_key= (on the command line --key)"
"""How users say which state dict they mean."""

_SHOWN = 8
_MOST_SEARCHED = 1000


def state_dict_at(tree: object, path: str) -> object:
    """Return the part of a checkpoint that a dotted path names.

    Keys may contain dots. List elements are named by their index. A path that ends with a prefix of keys
    (``state_dict.backbone``) names a `Selection` of the entries with that prefix.

    Raises:
        CheckpointError: there is no such part. The message lists the parts.
    """
    node = tree
    rest = path
    while rest:
        name = rest
        while name:  # ever shorter beginnings that end before a dot
            try:
                node = child(node, name)
                break
            except LookupError:
                name = name.rpartition(".")[0]
        if not name:
            if selection := _selection(node, f"{rest}."):
                return selection
            where = path[: len(path) - len(rest)].rstrip(".")
            here = f"{escape(where)!r}" if where else "the checkpoint"
            raise CheckpointError(
                f"{CHOOSING} names {escape(public(path))!r}: {here} has no such part; it has {_listed(node)}"
            )
        rest = rest[len(name) + 1 :]
    return node


class Selection(Dict):
    """The entries of a state dict whose keys have a prefix, which is removed."""

    __slots__ = ()


def _selection(node: object, prefix: str) -> Selection | None:
    if not isinstance(node, Dict):
        return None
    selection = Selection(node.kind)
    for key, value in node.items():
        if isinstance(key, str) and key.startswith(prefix):
            selection[key.removeprefix(prefix)] = value
    versions = metadata_of(node) or {}
    below = {name[len(prefix) :]: entry for name, entry in versions.items() if f"{name}.".startswith(prefix)}
    if below:
        selection.attributes = {"_metadata": below}
    return selection or None


def find_state_dict(tree: object, limits: Limits) -> tuple[str, object]:
    """Return the dotted path to the state dict (``""`` for the outermost object) and the state dict.

    `candidates.meant` says how it is distinguished from other parts of the checkpoint.

    Raises:
        AmbiguousError: there are several possible state dicts. The message lists them.
        CheckpointError: there is no state dict.
    """
    root = survey(tree, limits)
    found = meant(root)
    if len(found) == 1:
        return found[0].path, own_keys(found[0].node)
    if not found:
        deeper = next((each.path for each in root.walk() if each.model_like), "")
        raise CheckpointError(_nothing(tree, deeper))
    raise AmbiguousError(_several(found))


def _several(found: list[Candidate]) -> str:
    first, *others = found
    joined = not first.own and others[0] in first.inner
    whole = f", or all of it as {escape(first.path)!r}, joined by dots" if joined else ""
    each = others if joined else found
    names = listed([*map(_described, each)], _SHOWN)
    return f"it holds {len(each)} state dicts that may be meant: {names}{whole}. Say which with {CHOOSING}"


def _described(candidate: Candidate) -> str:
    many = candidate.tensors
    tensors = f"{many} tensor{'s' if many > 1 else ''}"
    return f"{escape(candidate.path)!r} ({'a whole module' if is_module(candidate.node) else tensors})"


def _nothing(tree: object, deeper: str) -> str:
    if isinstance(tree, TensorSpec):
        return "it holds a single tensor, not a state dict; save {'name': tensor} or model.state_dict()"
    if isinstance(tree, (dict, list, tuple)) and not tree:
        return "there is no state dict in it: it is empty, as that of a model without parameters"
    if part := part_without_model(tree):
        return part
    for wanted, instead in _INSTEAD:
        if (found := "" if wanted(tree) else _first(tree, wanted)) is not None:
            return instead.format(f", such as {escape(found, 60)!r}," if found else "")
    what = "an optimizer's state" if is_training_state(tree) else _kind_of(tree)
    lies = f"; {escape(deeper)!r} lies deeper" if deeper else ""
    return (
        f"there is no state dict in it (no dict with tensors of a model, at most {DEEPEST} levels deep): "
        f"it is {what}, and has {_listed(tree)}{lies}. If one of these is meant, name it with {CHOOSING}"
    )


def _first(tree: object, wanted: Callable[[object], bool]) -> str | None:
    """Return the path of the first such part in a checkpoint that is not too deep, or None."""
    pending = [("", tree, 0)]
    for path, node, depth in islice(pending, _MOST_SEARCHED):  # grows during the iteration
        for name, part in islice(children(node), _MOST_SEARCHED) if depth <= DEEPEST else ():
            inner = f"{path}.{name}".removeprefix(".")
            if wanted(part):
                return inner
            if isinstance(part, (dict, list, Stub)):
                pending.append((inner, part, depth + 1))
    return None


def _is_named(start: str) -> Callable[[object], bool]:
    return lambda node: isinstance(node, Stub) and node.name.startswith(start)


_INSTEAD: tuple[tuple[Callable[[object], bool], str], ...] = (
    (
        is_array,
        "it holds NumPy arrays{} and no tensors of a model, so torch can't load it into one. Convert them "
        "where the file is written: "
        "torch.save({{key: torch.from_numpy(array) for key, array in arrays.items()}}, path)",
    ),
    (
        _is_named("torch.nn.parameter.Uninitialized"),
        "its parameters{} are uninitialized: lazy modules have no shapes before their first forward pass. "
        "Run the model on a batch once, and save it then",
    ),
    (
        _is_named("torch.ScriptObject"),
        "its weights{} are packed for quantized kernels, and only torch unpacks them. Save the state_dict() "
        "of the model before it is quantized",
    ),
)
"""What is in a file without tensors of a model, and what to do. The first such part is filled in."""


def _listed(node: object) -> str:
    parts = list(islice(children(node), _SHOWN + 1))
    names = ", ".join(f"{escape(name, 60)!r} ({_kind_of(value)})" for name, value in parts[:_SHOWN])
    return (names + (", ..." if len(parts) > _SHOWN else "")) or "no parts"


def _kind_of(value: object) -> str:
    """Describe the kind of a value in a checkpoint."""
    if isinstance(value, TensorSpec):
        return "a tensor"
    if is_array(value):
        return "a NumPy array"
    if isinstance(value, Stub):
        return "a whole module" if is_module(value) else escape(value.name, 80) or "an object"
    if isinstance(value, Global):
        return escape(value.name, 80)
    for kind, name in _NAMES.items():
        if isinstance(value, kind):
            return f"{name} of {len(value)}" if isinstance(value, (dict, list, tuple)) else name
    return f"a {type(value).__name__}"


_NAMES: dict[type, str] = {
    dict: "a dict", Set: "a set", list: "a list", tuple: "a tuple", bool: "a bool", int: "an int",
    float: "a float", str: "a string", bytes: "bytes", type(None): "None",
}  # fmt: skip
