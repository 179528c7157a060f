"""What a pickle describes, as plain data: the objects are never built, their classes never imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Recognizer(Protocol):
    """Takes objects of one class from a pickle whole."""

    def take(self, stack: Any, kind: Global) -> object | None:
        """The object that begins where `stack` is; None if it has to be read opcode by opcode."""


class Global:
    """The name of a class or function: ``collections.OrderedDict``.

    Attributes:
        name: module and qualified name, joined by a dot.
        rebuild: what *we* do in place of calling it, or None: then a `Stub` stands for the result.
        records: recognises its objects whole, or None.
    """

    __slots__ = ("name", "rebuild", "records")

    def __init__(
        self,
        name: str,
        rebuild: Callable[[tuple[Any, ...]], object] | None = None,
        records: Recognizer | None = None,
    ) -> None:
        self.name = name
        self.rebuild = rebuild
        self.records = records

    def __repr__(self) -> str:
        return f"Global({self.name!r})"


LOCKED = "a lock, which keeps no such values"
"""Stands in a `Global` for the class of an object that a lock only names."""


class Stub:
    """Stands for an object that we know nothing of but what the pickle says.

    Attributes:
        kind: its class, or the function that would give it.
        args: the arguments of the call, as a pickle gives them.
        state: what ``__setstate__`` or ``__dict__`` would get, or None.
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
        """Name of its class or function, or ``""`` where that is itself computed."""
        return self.kind.name if isinstance(self.kind, Global) else ""

    @property
    def attributes(self) -> dict[object, object]:
        """Its attributes by name, if its state is a dict or a (dict, slots) pair."""
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
        names: of its attributes.
        values: of the same.
    """

    __slots__ = ("kind", "names", "values")

    def __init__(self, kind: Global, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.kind = kind
        self.names = names
        self.values = values

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        return self.values[self.names.index(name)] if name in self.names else None


class Dict(dict[object, object]):
    """A dict, ordered dict, default dict or counter, with the attributes that a pickle sets on it.

    Keys are what hashes fast and fairly (see `put`): a file can't make us hash its containers.

    Attributes:
        attributes: what a pickle sets on it, such as torch's ``_metadata``.
        kind: name of its class; ``""`` for a plain dict.
    """

    __slots__ = ("attributes", "kind")

    def __init__(self, kind: str = "") -> None:
        self.attributes: dict[object, object] | None = None
        self.kind = kind

    def put(self, key: object, value: object) -> None:
        """Set an entry.

        Strings and bytes hash by a secret seed, small integers and floats (nearly) by themselves. Anything
        else (tuples, big integers, objects) may be crafted to collide or to take forever, and becomes a
        `Stub`: each is a key of its own then.
        """
        kind = type(key)
        if kind is str or kind in _FAIR or (isinstance(key, int) and abs(key) < _SMALL):
            self[key] = value
        else:
            self[Stub(key)] = value


class Set(list[object]):
    """The elements of a set, in the file's order: nothing that a file holds is hashed."""

    __slots__ = ("frozen",)

    def __init__(self, elements: Iterable[object] = (), *, frozen: bool = False) -> None:
        super().__init__(elements)
        self.frozen = frozen


class Size(tuple[Any, ...]):
    """A ``torch.Size``."""

    __slots__ = ()


class Branch(Dict):
    """A dict that stands for the dots in keys, as distributed checkpoints have them: ``model.fc.weight``."""

    __slots__ = ()


class Branches(list[object]):
    """A list that stands for numbers between the dots of keys."""

    __slots__ = ()


_FAIR = {str, bytes, bool, float, type(None), Global, Stub, Record}
_SMALL = (1 << 61) - 1
"""Below this, an integer is its own hash: no two collide fully."""


class Storage:
    """The bytes behind tensors, or a part of them, as a pickle refers to them.

    Attributes:
        key: names the storage within the file.
        dtype: of its elements, torch's name without ``torch.``.
        itemsize: bytes of one element.
        numel: how many elements this part has.
        start: first element of this part.
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
        """Bytes of this part."""
        return self.numel * self.itemsize

    def __repr__(self) -> str:
        return f"Storage({self.key!r}, {self.dtype}, {self.numel})"


def renamed(node: object, file: str, deepest: int = 16) -> object:
    """The same tree with the storages of its tensors named after their file, so that several can be joined.

    Objects lose their parts.

    Raises:
        CheckpointError: it is nested too deeply.
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
    """Whether it is a NumPy array, as any pickle protocol writes it."""
    return isinstance(node, Stub) and node.name in _ARRAYS


_ARRAYS = {
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray"),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
}


def children(node: object) -> Iterator[tuple[str, object]]:
    """The named parts of a container: entries of a dict, elements of a list, attributes of an object.

    Those of a module that was pickled whole are its children, parameters and buffers, too.
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
    """The part of a container that `children` gives under this name.

    Raises:
        LookupError: there is none.
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
    """The containers that an object's named parts lie in."""
    attributes = stub.attributes
    yield from (stub.items, stub.elements)
    yield from (attributes.get(name) for name in _OF_MODULES if isinstance(attributes.get(name), dict))
    yield attributes


_OF_MODULES = ("_modules", "_parameters", "_buffers")
