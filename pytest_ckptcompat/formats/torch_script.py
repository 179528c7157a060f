"""TorchScript archives: a pickle of modules, and code that says which attributes are parameters.

The code is not run. Its lists ``__parameters__`` and ``__buffers__`` are read as text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.tensor_spec import TensorSpec

from .pickle_stubs import Dict, Stub
from .zip_members import read_member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.core.limits import Limits
    from pytest_ckptcompat.files.file import File

    from .zip_directory import Entry

UNSAFE = "torch.load(weights_only=True) refuses it: it is a program (TorchScript)"

_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:[ \t].*\n|\n)*)", re.MULTILINE)
_LIST = re.compile(r"^\s+__(parameters|buffers)__ = \[(.*)\]", re.MULTILINE)
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')

Members = tuple[tuple[str, ...], tuple[str, ...]]
"""The names of a class's parameters and of its buffers."""


def state_dict_of(tree: object, file: File, members: Mapping[str, Entry], root: str, limits: Limits) -> Dict:
    """Return the parameters and buffers of a TorchScript archive, with the keys of its ``state_dict()``.

    Args:
        tree: the description of its pickle.
        file: the archive.
        members: its members.
        root: the folder inside it.
        limits: limits on the code (``pickle_bytes``, for all of it), modules, tensors and keys.

    Raises:
        CheckpointError: the code is damaged or too long, or a limit is exceeded.
    """
    classes = _classes(file, members, f"{root}/code/", limits)
    made = Dict("collections.OrderedDict")
    for key, value in _entries(tree, classes, limits):
        made.put(key, value)
    if not made:
        raise CheckpointError("it is a TorchScript archive without parameters and buffers")
    return made


def _classes(file: File, members: Mapping[str, Entry], folder: str, limits: Limits) -> dict[str, Members]:
    """Return class name -> its parameters and buffers, from the code of all modules."""
    found: dict[str, Members] = {}
    room = 0
    for name, member in members.items():
        if not name.startswith(folder) or not name.endswith(".py"):
            continue
        room += member.nbytes
        limits.check("pickle_bytes", room, f"its code has {room} bytes and more")
        try:
            code = read_member(file, member).decode()
        except UnicodeDecodeError:
            raise CheckpointError("its code is not text: it is damaged") from None
        module = name[len(folder) : -len(".py")].replace("/", ".")
        for match in _CLASS.finditer(code):
            lists = {kind: tuple(_NAME.findall(names)) for kind, names in _LIST.findall(match[2])}
            found[f"{module}.{match[1]}"] = lists.get("parameters", ()), lists.get("buffers", ())
    return found


def _entries(
    root: object, classes: Mapping[str, Members], limits: Limits
) -> Iterator[tuple[str, TensorSpec]]:
    """Yield the entries of ``state_dict()``: those of each module, then those of its children."""
    pending: list[tuple[str, object, int]] = [("", root, 0)]
    looked_at = 0
    while pending:
        prefix, node, depth = pending.pop()
        limits.check("nesting", depth, "its modules are nested too deeply")
        if not isinstance(node, Stub) or node.name not in classes:
            continue
        attributes = node.attributes
        looked_at += 1 + len(attributes)
        limits.check("tensors", looked_at // 2, "it holds too many modules and tensors")
        for names in classes[node.name]:
            for name in names:
                value = attributes.get(name)
                if isinstance(value, TensorSpec):
                    limits.check("key_bytes", len(prefix) + len(name), "a key is too long")
                    yield f"{prefix}{name}", value
        inner = [
            (f"{prefix}{name}.", part, depth + 1)
            for name, part in attributes.items()
            if isinstance(part, Stub)
        ]
        pending.extend(reversed(inner))
