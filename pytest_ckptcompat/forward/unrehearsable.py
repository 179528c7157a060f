"""What fake tensors can't simulate: values, data pointers, operations without a fake kernel, the driver."""

from __future__ import annotations

import traceback
from pathlib import Path

from .devices import NO_DRIVER
from .fake_cuda import Unrehearsable
from .locate import cause

_TYPES = {
    "DataDependentOutputException": "it depends on values",
    "DynamicOutputShapeException": "a shape depends on values",
    "GuardOnDataDependentSymNode": "it depends on values",
    "UnsupportedFakeTensorException": "an operation has no fake kernel",
    "UnsupportedOperatorException": "an operation has no fake kernel",
    "UnsupportedMutationAliasingException": "an operation has no fake kernel",
    "FakeTensorDeviceMismatchError": "an operation's fake kernel does not know which device it gives",
}
"""By name, because torch moves these types between modules."""

_TEXTS = {
    "it depends on values": ("Cannot copy out of meta tensor", "cannot be called on meta tensors"),
    "an operation has no fake kernel": ("fake impl", "'Meta' backend", "convert all Tensors to FakeTensors"),
    "code outside torch reads the values": ("data pointer", "doesn't have storage"),
    "NumPy reads the values": (".numpy() is not supported",),
    "the model makes a module and moves it": ("Couldn't swap",),
    "it asks the driver": NO_DRIVER,
}
"""By text, because torch raises a plain RuntimeError or AssertionError for these."""

_FAKE_KERNELS = {
    "_subclasses", "_meta_registrations.py", "_refs", "_prims", "_prims_common", "_decomp", "_dispatch",
}  # fmt: skip
_SLIPS = (AssertionError, AttributeError, KeyError, NameError, NotImplementedError, RecursionError, TypeError)
"""What a fake kernel raises by mistake. It raises RuntimeError or ValueError for a wrong shape or dtype."""


def limitation(error: BaseException) -> str:
    """Return why an error is not the model's fault, or ``""`` if it may be.

    The causes of the error count too, because code may catch what a fake tensor raised.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, Unrehearsable):
            return str(link)
        if reason := _reason(link):
            return f"{reason} ({cause(link, limit=160)})"
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return ""


def _reason(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _TYPES:
            return _TYPES[kind.__name__]
    text = str(error)
    for reason, parts in _TEXTS.items():
        if any(part in text for part in parts):
            return reason
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, _SLIPS) else None
    if not frames:
        return ""
    raised_in = Path(frames[-1].filename)
    if raised_in.is_relative_to(Path(__file__).parents[1]):
        return "the rehearsal itself failed"
    in_torch = "torch" in raised_in.parts and not _FAKE_KERNELS.isdisjoint(raised_in.parts)
    return "fake tensors failed" if in_torch else ""
