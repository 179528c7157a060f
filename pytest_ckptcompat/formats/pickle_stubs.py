"""Plain data that describes the objects in a pickle. They are never built, nor their classes imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


Recognizer = Callable[[Any, "Global"], object | None]
"""Returns the object of a class at the position of a `Stack`, or None if it must be read opcode by opcode."""


class Global:
    """The name of a class or function: ``collections.OrderedDict``.

    Attributes:
        name: module and qualified name, joined by a dot.
        rebuild: our function to call in its place. If None, the result of a call is a `Stub`.
        recognize: returns one of its objects whole, or None.
    """

    __slots__ = ("name", "rebuild", "recognize")

    def __init__(
        self,
        name: str,
        rebuild: Callable[[tuple[Any, ...]], object] | None = None,
        recognize: Recognizer | None = None,
    ) -> None:
        self.name = name
        self.rebuild = rebuild
        self.recognize = recognize

    def __repr__(self) -> str:
        return f"Global({self.name!r})"


LOCKED = "a lock, which keeps no such values"
"""The name of the `Global` that is the class of an object in a lock, which does not store it."""


class Stub:
    """A placeholder for an object, with everything that the pickle says about it.

    Attributes:
        kind: its class, or the function that would return it.
        args: the arguments of the call, as the pickle has them.
        state: what ``__setstate__`` or ``__dict__`` would receive, or None.
        items: its entries, if it was filled like a dict.
        elements: its elements, if it was filled like a list or set.
    """

    __slots__ = ("args", "elements", "items", "kind", "state")

    def __init__(self, kind: object, args: object = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None
        self.items: Dict | None = None
        self.elements: list[object] | None = None

    @property
    def name(self) -> str:
        """The name of its class or function, or ``""`` if the pickle computes it."""
        return self.kind.name if isinstance(self.kind, Global) else ""

    @property
    def attributes(self) -> dict[object, object]:
        """The attributes by name, if the state is a dict or a (dict, slots) pair."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0] if isinstance(state[0], dict) else state[1]
        return state if isinstance(state, dict) else {}

    def __repr__(self) -> str:
        return f"Stub({self.name!r})"


class Record:
    """An object whose state is a flat dict.

    Attributes:
        kind: its class.
        names: the names of its attributes.
        values: the values of its attributes.
    """

    __slots__ = ("kind", "names", "values")

    def __init__(self, kind: Global, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.kind = kind
        self.names = names
        self.values = values

    def get(self, name: str) -> Any:
        """Return an attribute, or None."""
        return self.values[self.names.index(name)] if name in self.names else None


class Dict(dict[object, object]):
    """A dict, ordered dict, default dict or counter, with the attributes that a pickle sets on it.

    Keys from a file are hashed only if that is fast and safe; see `put`.

    Attributes:
        attributes: the attributes that a pickle sets, such as torch's ``_metadata``, or None.
        kind: the name of its class; ``""`` for a plain dict.
    """

    __slots__ = ("attributes", "kind")

    def __init__(self, kind: str = "") -> None:
        self.attributes: dict[object, object] | None = None
        self.kind = kind

    def put(self, key: object, value: object) -> None:
        """Set an entry.

        Strings and bytes are hashed with a secret seed, and small integers and floats rarely collide. Other
        keys (tuples, big integers, objects) could be crafted to collide or to take forever, so each becomes
        a `Stub`, which is a key of its own.

        Raises:
            TypeError: the key has no hash.
        """
        kind = type(key)
        if kind is str or kind in _FAIR or (isinstance(key, int) and abs(key) < _SMALL):
            self[key] = value
        else:
            check_hash(key)
            self[Stub(key)] = value


class Set(list[object]):
    """The elements of a set, in the file's order and not hashed."""

    __slots__ = ("frozen",)

    def __init__(self, elements: Iterable[object] = (), *, frozen: bool = False) -> None:
        super().__init__(elements)
        self.frozen = frozen


def check_hash(value: object) -> None:
    """Check that a value can be a key, or an element of a set.

    Raises:
        TypeError: Python can't hash it.
    """
    if isinstance(value, (dict, list, bytearray)) and not (isinstance(value, Set) and value.frozen):
        raise TypeError("a key, or an element of a set, that has no hash")


class Size(tuple[Any, ...]):
    """A ``torch.Size``."""

    __slots__ = ()


class Branch(Dict):
    """A dict whose keys are joined by dots, as in distributed checkpoints: ``model.fc.weight``."""

    __slots__ = ()


class Branches(list[object]):
    """A list whose indices are joined to keys by dots; see `Branch`."""

    __slots__ = ()


_FAIR = {str, bytes, bool, float, type(None), Global, Stub, Record}
_SMALL = (1 << 61) - 1
"""Below this, an integer is its own hash, so no two have the same."""


class Storage:
    """A storage of tensors, or a part of one, as a pickle refers to it.

    Attributes:
        key: the name of the storage in the file.
        dtype: the dtype of its elements, torch's name without ``torch.``.
        itemsize: the size of one element in bytes.
        numel: the number of elements in this part.
        start: the index of this part's first element.
    """

    __slots__ = ("dtype", "itemsize", "key", "numel", "start")

    def __init__(self, key: str, dtype: str, itemsize: int, numel: int, start: int = 0) -> None:
        self.key = key
        self.dtype = dtype
        self.itemsize = itemsize
        self.numel = numel
        self.start = start

    @property
    def nbytes(self) -> int:
        """The size of this part in bytes."""
        return self.numel * self.itemsize


def renamed(node: object, file: str, deepest: int = 16) -> object:
    """Return the tree with the file's name before each storage's name, so that trees can be joined.

    Objects lose their parts.

    Raises:
        CheckpointError: the tree is nested too deeply.
    """
    if isinstance(node, TensorSpec):
        return node.within(file)
    if not deepest:
        raise CheckpointError(f"{escape(file)} is nested too deeply to be read together with other files")
    if isinstance(node, Dict):
        made = Dict(node.kind)
        made.attributes = node.attributes
        for key, value in node.items():
            made[key] = renamed(value, file, deepest - 1)
        return made
    if type(node) in (list, tuple):
        return type(node)(renamed(value, file, deepest - 1) for value in node)  # type: ignore[call-arg, attr-defined]
    return Stub(node.kind) if isinstance(node, Stub) else node


def is_array(node: object) -> bool:
    """Return whether a node is a NumPy array, as any pickle protocol writes it."""
    return isinstance(node, Stub) and node.name in _ARRAYS


_ARRAYS = {
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray"),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
}


def children(node: object) -> Iterator[tuple[str, object]]:
    """Yield the named parts of a container: entries of a dict, elements of a list, attributes of an object.

    For a pickled module, these include its child modules, parameters and buffers.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(key, str) or type(key) is int:
                yield str(key), value
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield str(index), value
    elif isinstance(node, Stub):
        for part in _parts(node):
            yield from children(part)


def child(node: object, name: str) -> object:
    """Return the part of a container that `children` yields under this name.

    Raises:
        LookupError: there is no such part.
    """
    number = int(name) if name.isdecimal() and len(name) < 16 else None
    if isinstance(node, Stub):
        for part in _parts(node):
            try:
                return child(part, name)
            except LookupError:
                continue
    elif isinstance(node, dict):
        return node[name] if name in node or number is None else node[number]
    elif isinstance(node, (list, tuple)) and number is not None:
        return node[number]
    raise LookupError(name)


def _parts(stub: Stub) -> Iterator[object]:
    """Yield the containers that hold an object's named parts."""
    attributes = stub.attributes
    yield from (stub.items, stub.elements)
    yield from (attributes.get(name) for name in _OF_MODULES if isinstance(attributes.get(name), dict))
    yield attributes


_OF_MODULES = ("_modules", "_parameters", "_buffers")
