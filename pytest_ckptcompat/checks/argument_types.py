"""Validators for the arguments of a check: functions ``(name, value) -> value`` that raise `ValueError`.

They import, open and build nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import Any, Literal

from pytest_ckptcompat.core.imports import misnamed

from .waivers import Waiver

AUTO = "auto"
"""Use the inputs that the model itself provides."""

FROM_CHECKPOINT = "ckpt:"
"""The prefix of a path to the model's arguments in the checkpoint."""

Direction = Literal["backward", "forward", "full"]
"""Which model reads whose checkpoint; see `rollback`."""

DEVICES = "auto, cpu, cuda, cuda:N, rehearse or none"


def _kind(wanted: str, accepts: Callable[[Any], bool]) -> Callable[[str, Any], Any]:
    """Return a validator of one kind of value, described by what an argument *wants*."""

    def check(name: str, value: Any) -> Any:
        if not accepts(value):
            raise _refused(name, wanted, value)
        return value

    return check


def _one_or_several(wanted: str, kind: type) -> Callable[[str, Any], Any]:
    """Return a validator of a value of a type or a sequence of them, which gives a tuple."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        values = [value] if isinstance(value, kind) else value
        if not isinstance(values, Sequence) or not all(isinstance(item, kind) for item in values):
            raise _refused(name, wanted, value)
        return tuple(values)

    return check


def _refused(name: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{name}= wants {wanted}, not {type(value).__name__} {str(value)[:60]!r}")


text = _kind("a string", lambda value: isinstance(value, str))
method = _kind(
    "the name of a method, such as 'infer'", lambda value: isinstance(value, str) and value.isidentifier()
)
direction = _kind("'backward', 'forward' or 'full'", lambda value: value in ("backward", "forward", "full"))
patterns = _one_or_several("a list of key patterns", str)
waivers = _one_or_several("a list of allow(rule, key, reason=...)", Waiver)


def model(name: str, value: Any) -> Any:
    """Accept a callable, an ``nn.Module``, or the name of either."""
    if isinstance(value, str):
        if wrong := misnamed(value):
            raise ValueError(f"{name}: {wrong}")
    elif not callable(value):
        raise _refused(name, "a callable, an nn.Module or 'package.module:name'", value)
    return value


def loader(name: str, value: Any) -> Any:
    """Accept a loading function, or its name."""
    if isinstance(value, str):
        if wrong := misnamed(value, "loader name", "detector:load_detector"):
            raise ValueError(f"{name}: {wrong}")
    elif not callable(value) or hasattr(value, "state_dict"):
        wanted = "your function (path) -> model, or (model, path) where model= is given, or its name"
        raise _refused(name, wanted, value)
    return value


def path(name: str, value: Any) -> str:
    """Accept one path."""
    if not isinstance(value, (str, PathLike)) or not str(fspath(value)).strip():
        raise _refused(name, "a path", value)
    return str(fspath(value))


def paths(name: str, value: Any) -> tuple[str, ...]:
    """Accept one path or several."""
    values = [value] if isinstance(value, (str, PathLike)) else value
    if not isinstance(values, Sequence) or not values:
        raise _refused(name, "a path or a list of paths", value)
    for each in values:
        if not isinstance(each, (str, PathLike)):
            raise _refused(name, "paths", each)
        if not str(fspath(each)).strip():
            raise ValueError(f"{name}= is empty: name a checkpoint")
    return tuple(str(fspath(each)) for each in values)


def recipe(name: str, value: Any) -> Any:
    """Accept a `Recipe`, or the path of a recipe file."""
    if isinstance(value, (str, PathLike)):
        return str(fspath(value))
    from pytest_ckptcompat.recipes.recipe import Recipe  # a caller with a Recipe has already imported this

    if not isinstance(value, Recipe):
        raise _refused(name, "a Recipe or a path to a TOML recipe", value)
    return value


def inputs(name: str, value: Any) -> Any:
    """Accept anything that `Inputs.parse` takes, or ``"auto"``."""
    if value != AUTO:
        from pytest_ckptcompat.forward.inputs import Inputs

        Inputs.parse(value)  # raises ValueError if the inputs are invalid
    return value


def device(name: str, value: Any) -> str:
    """Accept a device, as ``--ckpt-device`` does.

    Raises:
        ValueError: the value is not a device. The message contains `name`.
    """
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?|rehearse|none", value):
        raise ValueError(f"{name}={value!r} is not a device: use {DEVICES}")
    return value


def optimizer(name: str, value: Any) -> Any:
    """Accept a callable ``(parameters) -> Optimizer``, or its name."""
    if isinstance(value, str):
        module, _, path = value.partition(":")
        if not module or not path:
            raise ValueError(f"{name}={value!r}: write {_meant(value)!r}")
    elif not callable(value):
        raise _refused(name, "a callable (parameters) -> Optimizer or its name", value)
    return value


def _meant(text: str) -> str:
    """Suggest a full name for an optimizer's name without a colon, such as ``torch.optim.Adam``."""
    module, _, name = text.rpartition(".")
    if module.replace(".", "_").isidentifier() and name.isidentifier():
        return f"{module}:{name}"
    known = {each.lower(): each for each in _OPTIMIZERS}
    return f"torch.optim:{known.get(text.strip(' :.').lower(), 'AdamW')}"


_OPTIMIZERS = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
)
"""torch's optimizers, listed here so that a hint needs no import of torch."""


def model_args(name: str, value: Any) -> Any:
    """Accept a dict of keyword arguments, or ``"ckpt:PATH"``."""
    if isinstance(value, str) and value.startswith(FROM_CHECKPOINT) and value != FROM_CHECKPOINT:
        return value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _refused(name, "a dict of keyword arguments or 'ckpt:PATH'", value)
    return value


def memory(name: str, value: Any) -> int:
    """Return the number of bytes that a text like ``"24GB"`` means."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]i?)?B", value) if isinstance(value, str) else None
    size = float(found[1]) * _UNITS[found[2] or ""] if found else 0
    if size < 1:
        raise _refused(name, "a size such as '24GB' or '80GiB'", value)
    return int(size)


_UNITS = {"": 1} | {
    f"{prefix}{binary}": base**power
    for binary, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kMGT", 1)
}
