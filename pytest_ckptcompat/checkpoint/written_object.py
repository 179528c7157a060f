"""The outermost object of a checkpoint in the form that the writers take."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Dict

from .objects import given
from .written_tensor import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_LEFT_OUT = object()


class Content:
    """A converter from the tree of a header to plain content.

    Objects of classes are left out, because files with them could only be loaded unsafely.

    Attributes:
        left_out: the paths of such objects, safe to print.
    """

    def __init__(self, value: Callable[[TensorSpec], Value]) -> None:
        self.left_out: list[str] = []
        self._value = value
        self._done: dict[int, Any] = {}
        self._alive: list[Any] = []  # so that no id is used twice

    def instead(self, node: Any, content: Any) -> None:
        """Write `content` in place of a part."""
        self._done[id(node)] = content

    def leave_out(self, node: Any) -> None:
        """Don't write a part."""
        self._done[id(node)] = _LEFT_OUT

    def of(self, node: Any) -> Any:
        """Return the content of a part and everything in it. Shared parts stay shared.

        Raises:
            ValueError: the part is nested too deeply to be written.
        """
        self._alive.append(node)
        try:
            return self._of(node, "")
        except RecursionError:
            raise ValueError("the checkpoint is nested too deeply to be written") from None

    def _of(self, node: Any, path: str) -> Any:
        if id(node) in self._done:
            return self._done[id(node)]
        if isinstance(node, (TensorSpec, torch.Tensor)):
            content: Any = self._value(node) if isinstance(node, TensorSpec) else Value.of(node)
        elif isinstance(node, dict):
            return self._of_dict(node, path)
        elif isinstance(node, list):
            return self._of_list(node, path)
        elif isinstance(node, tuple):
            content = tuple(self._elements(node, path))
        elif isinstance(node, _PLAIN):
            return node
        else:
            content = given(node, lambda _: torch.empty(0))
            if not isinstance(content, (torch.dtype, torch.device)):
                content = _LEFT_OUT
                self.left_out.append(path)
        self._done[id(node)] = content
        return content

    def _of_dict(self, node: dict[Any, Any], path: str) -> dict[Any, Any]:
        attributes = node.attributes if isinstance(node, Dict) else None
        content: dict[Any, Any] = OrderedDict() if attributes else {}
        self._done[id(node)] = content
        for key, value in node.items():
            inner = f"{path}.{escape(str(key), 60)}".removeprefix(".")
            written = self._of(value, inner) if isinstance(key, _PLAIN) else _LEFT_OUT
            if written is not _LEFT_OUT:
                content[key] = written
            elif not isinstance(key, _PLAIN):
                self.left_out.append(inner)
        for name, value in (attributes or {}).items():
            if isinstance(name, str) and name.isidentifier():
                setattr(content, name, self._of(value, f"{path}.{name}"))
        return content

    def _of_list(self, node: list[Any], path: str) -> list[Any]:
        content: list[Any] = []
        self._done[id(node)] = content
        content.extend(self._elements(node, path))
        return content

    def _elements(self, node: Sequence[Any], path: str) -> Iterator[Any]:
        for index, value in enumerate(node):
            written = self._of(value, f"{path}[{index}]")
            yield None if written is _LEFT_OUT else written
