"""Replacements for Python's own names in a pickle: ordered dicts, sets, bytes, object construction."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.limits import exceeded

from .pickle_stubs import Dict, Global, Set, Size, Stub, check_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.limits import Limits


_SIZES = 1 << 63


class PlainNames:
    """The replacements for Python's names while one pickle runs.

    A pickle can copy a long list a million times with few opcodes, so copies are counted against a budget.

    Attributes:
        names: name -> function to call in its place, for `Machine`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._room = limits.pickle_memory
        self.names: Mapping[str, Callable[[tuple[Any, ...]], object]] = {
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": partial(self._ordered, kind="collections.Counter"),
            "collections.defaultdict": self._default,
            "builtins.dict": self._ordered,
            "builtins.set": self._set,
            "builtins.frozenset": partial(self._set, frozen=True),
            "builtins.list": self._listed,
            "builtins.bytearray": self._bytearray,
            "builtins.bytes": self._bytes,
            "builtins.complex": self._complex,
            "torch.Size": self._torch_size,
            "_codecs.encode": self._encoded,
            "copyreg._reconstructor": self._reconstructed,
            "copyreg.__newobj__": self._new,
        }

    def _spend(self, nbytes: int) -> None:
        self._room -= nbytes
        if self._room < 0:
            raise exceeded(
                "pickle_memory", self._limits.pickle_memory, "the pickle describes too many objects"
            )

    def _ordered(self, args: tuple[Any, ...], kind: str = "") -> Dict:
        """``OrderedDict()``, ``OrderedDict(pairs)``, ``Counter(dict)``."""
        made = Dict(kind)
        (given,) = args or ((),)
        self._spend(100 * len(given))
        for key, value in given.items() if isinstance(given, dict) else given:
            made.put(key, value)
        return made

    def _ordered_dict(self, args: tuple[Any, ...]) -> Dict:
        """``OrderedDict``: a state dict, or the (empty) hooks of every tensor."""
        return self._ordered(args, "collections.OrderedDict") if args else Dict("collections.OrderedDict")

    def _default(self, args: tuple[Any, ...]) -> Dict:
        """``defaultdict(factory)``; its entries follow in the pickle."""
        return Dict("collections.defaultdict")

    def _set(self, args: tuple[Any, ...], *, frozen: bool = False) -> Set:
        elements = self._listed(args)
        for element in elements:
            check_hash(element)
        return Set(elements, frozen=frozen)

    def _listed(self, args: tuple[Any, ...]) -> list[object]:
        """``list(elements)``."""
        (elements,) = args or ([],)
        if not isinstance(elements, (list, tuple)):
            raise TypeError("a set that is not made of a list")
        self._spend(8 * len(elements))
        return list(elements)

    def _torch_size(self, args: tuple[Any, ...]) -> Size:
        sizes = self._listed(args)
        if not all(isinstance(size, int) and -_SIZES <= size < _SIZES for size in sizes):
            raise TypeError("a torch.Size that is not made of whole numbers")
        return Size(sizes)

    def _encoded(self, args: tuple[Any, ...]) -> bytes:
        """``_codecs.encode(text, "latin1")``: bytes as pickles before protocol 3 write them."""
        text, encoding = args
        if encoding not in ("latin1", "latin-1", "utf-8"):
            raise ValueError("bytes in an encoding that pickle does not write")
        self._spend(4 * len(text))
        return str.encode(text, encoding)

    def _bytearray(self, args: tuple[Any, ...]) -> bytearray:
        return bytearray(self._bytes(args))

    def _bytes(self, args: tuple[Any, ...]) -> bytes:
        """``bytes()``, ``bytearray(bytes)``, ``bytearray(text, "latin-1")``."""
        if len(args) == 2:
            return self._encoded(args)
        given = args[0] if args else b""
        if not isinstance(given, bytes):
            raise TypeError("a bytearray that is not made of bytes")
        return given

    def _complex(self, args: tuple[Any, ...]) -> complex:
        real, imaginary = args
        return complex(float(real), float(imaginary))

    def _reconstructed(self, args: tuple[Any, ...]) -> object:
        """``copyreg._reconstructor(cls, base, state)``: an object of `cls`, which may be a dict subclass."""
        kind, base, state = args
        made = Stub(kind, (base, state))
        if isinstance(base, Global) and base.name == "builtins.dict" and state:
            made.items = self._ordered((state,))
        return made

    def _new(self, args: tuple[Any, ...]) -> object:
        """``copyreg.__newobj__(cls, *args)``."""
        kind, arguments = args[0], args[1:]
        self._spend(8 * len(arguments))
        rebuild = kind.rebuild if isinstance(kind, Global) else None
        return Stub(kind, arguments) if rebuild is None else rebuild(arguments)
