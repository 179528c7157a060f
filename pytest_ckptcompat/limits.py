"""What fake tensors can't follow: values, data pointers, operations without a fake kernel, the driver."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from .blame import cause
from .card import Unrehearsable

if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES = {
    "DataDependentOutputException": "it depends on values",
    "DynamicOutputShapeException": "a shape depends on values",
    "GuardOnDataDependentSymNode": "it depends on values",
    "UnsupportedFakeTensorException": "an operation has no fake kernel",
    "UnsupportedOperatorException": "an operation has no fake kernel",
    "UnsupportedMutationAliasingException": "an operation has no fake kernel",
    "FakeTensorDeviceMismatchError": "an operation's fake kernel does not know which device it gives",
}
"""By name, since torch moves these types about."""

_TEXTS = {
    "it depends on values": ("Cannot copy out of meta tensor", "cannot be called on meta tensors"),
    "an operation has no fake kernel": ("fake impl", "'Meta' backend", "convert all Tensors to FakeTensors"),
    "code outside torch reads the values": ("data pointer", "doesn't have storage"),
    "NumPy reads the values": (".numpy() is not supported",),
    "the model makes a module and moves it": ("Couldn't swap",),
    "it asks the driver": (
        "Found no NVIDIA driver",
        "CUDA driver version",
        "CUDA error",
        "No CUDA GPUs",
        "no CUDA-capable device",
        "0 active drivers",
        "Cannot access accelerator device",
        # on a CPU-only build
        "compiled with CUDA",
        "compiled without CUDA",
        "not linked with support for",
        "without ATen_cuda",
        "requires CUDA support",
    ),
}
"""By text: torch raises a plain RuntimeError or AssertionError for these."""

_FAKE_KERNELS = {
    "_subclasses",
    "_meta_registrations.py",
    "_refs",
    "_prims",
    "_prims_common",
    "_decomp",
    "_dispatch",
}
_SLIPS = (AssertionError, AttributeError, KeyError, NameError, NotImplementedError, RecursionError, TypeError)
"""What a fake kernel raises by mistake; it reports a wrong shape or dtype by a RuntimeError or ValueError."""


def limit(error: BaseException) -> str:
    """Why an error says nothing against the model, or ``""`` if it does.

    The errors that led to it count too: code may have caught what a fake tensor raised.
    """
    for link in _chain(error):
        if isinstance(link, Unrehearsable):
            return str(link)
        if reason := _reason(link):
            return f"{reason} ({cause(link, limit=160)})"
    return ""


def _reason(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _TYPES:
            return _TYPES[kind.__name__]
    text = str(error)
    for reason, parts in _TEXTS.items():
        if any(part in text for part in parts):
            return reason
    if isinstance(error, _SLIPS) and not _FAKE_KERNELS.isdisjoint(_innermost(error)):
        return "fake tensors failed"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _innermost(error: BaseException) -> set[str]:
    """The parts, below torch's own folder, of the path of the file that raised; none for other files."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = frames[-1].filename.replace("\\", "/").split("/") if frames else []
    return set(parts[parts.index("torch") :]) if "torch" in parts else set()
