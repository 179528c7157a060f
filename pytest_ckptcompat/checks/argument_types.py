"""Validators for the arguments of a check: functions ``(name, value) -> value`` that raise `ValueError`.

They import, open and build nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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


def model(name: str, value: Any) -> Any:
    """Accept a callable, an ``nn.Module``, or the name of either."""
    if isinstance(value, str):
        if wrong := misnamed(value):
            raise ValueError(f"{name}: {wrong}")
    elif not callable(value):
        raise ValueError(f"{name}= wants a callable, an nn.Module or 'package.module:name', {_not(value)}")
    return value


def loader(name: str, value: Any) -> Any:
    """Accept a loading function, or its name."""
    if isinstance(value, str):
        if wrong := misnamed(value, "loader name", "detector:load_detector"):
            raise ValueError(f"{name}: {wrong}")
        return value
    if not callable(value) or hasattr(value, "state_dict"):
        wanted = "your function (path) -> model, or (model, path) where model= is given, or its name"
        raise ValueError(f"{name}= wants {wanted}, {_not(value)}")
    return value


def paths(name: str, value: Any) -> tuple[str, ...]:
    """Accept one path or several."""
    values = [value] if isinstance(value, (str, PathLike)) else value
    if not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name}= wants a path or a list of paths, {_not(value)}")
    for path in values:
        if not isinstance(path, (str, PathLike)):
            raise ValueError(f"{name}= wants paths, {_not(path)}")
        if not str(fspath(path)).strip():
            raise ValueError(f"{name}= is empty: name a checkpoint")
    return tuple(str(fspath(path)) for path in values)


def recipe(name: str, value: Any) -> Any:
    """Accept a `Recipe`, or the path of a recipe file."""
    if isinstance(value, PathLike):
        return str(fspath(value))
    if isinstance(value, str):
        return value
    from pytest_ckptcompat.recipes.recipe import Recipe  # a caller with a Recipe has already imported this

    if not isinstance(value, Recipe):
        raise ValueError(f"{name}= wants a Recipe or a path to a TOML recipe, {_not(value)}")
    return value


def inputs(name: str, value: Any) -> Any:
    """Accept anything that `Inputs.parse` takes, or ``"auto"``."""
    if value == AUTO:
        return value
    from pytest_ckptcompat.forward.inputs import Inputs

    Inputs.parse(value)  # raises ValueError if the inputs are invalid
    return value


def text(name: str, value: Any) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise ValueError(f"{name}= wants a string, {_not(value)}")
    return value


def path(name: str, value: Any) -> str:
    """Accept one path."""
    if not isinstance(value, (str, PathLike)) or not str(fspath(value)).strip():
        raise ValueError(f"{name}= wants a path, {_not(value)}")
    return str(fspath(value))


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Accept one key pattern or several."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, str) for item in values):
        raise ValueError(f"{name}= wants a list of key patterns, {_not(value)}")
    return tuple(values)


def waivers(name: str, value: Any) -> tuple[Waiver, ...]:
    """Accept one waiver or several."""
    values = [value] if isinstance(value, Waiver) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, Waiver) for item in values):
        raise ValueError(f"{name}= wants a list of allow(rule, key, reason=...), {_not(value)}")
    return tuple(values)


@dataclass(frozen=True)
class Named:
    """A callable given by its name, ``"package.module:name"``, and imported when it is called."""

    name: str

    def __call__(self, parameters: Any) -> Any:
        """Import the callable and call it."""
        return self.imported()(parameters)

    def imported(self) -> Any:
        """Return the named object; raise `ModelError` if it can't be imported."""
        from pytest_ckptcompat.core.imports import imported

        return imported(self.name)


def device(name: str, value: Any) -> str:
    """Accept a device, as ``--ckpt-device`` does.

    Raises:
        ValueError: the value is not a device. The message contains `name`.
    """
    kind, _, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda", "rehearse", "none") or (
        ":" in value and not (kind == "cuda" and index.isdigit())
    ):
        raise ValueError(f"{name}={value!r} is not a device: use {DEVICES}")
    return str(value)


def optimizer(name: str, value: Any) -> Any:
    """Accept a callable ``(parameters) -> Optimizer``, or its name."""
    if isinstance(value, str):
        module, _, path = value.partition(":")
        if not module or not path:
            raise ValueError(f"{name}={value!r}: write {_meant(value)!r}")
        return Named(value)
    if not callable(value):
        raise ValueError(f"{name}= wants a callable (parameters) -> Optimizer or its name, {_not(value)}")
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
        raise ValueError(f"{name}= wants a dict of keyword arguments or 'ckpt:PATH', {_not(value)}")
    return value


def method(name: str, value: Any) -> str:
    """Accept the name of a method."""
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{name}= wants the name of a method, such as 'infer', {_not(value)}")
    return value


def memory(name: str, value: Any) -> int:
    """Return the number of bytes that a text like ``"24GB"`` means."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]i?)?B", value) if isinstance(value, str) else None
    size = float(found[1]) * _UNITS[found[2] or ""] if found else 0
    if size < 1:
        raise ValueError(f"{name}= wants a size such as '24GB' or '80GiB', {_not(value)}")
    return int(size)


_UNITS = {"": 1} | {
    f"{prefix}{binary}": base**power
    for binary, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kMGT", 1)
}


def direction(name: str, value: Any) -> str:
    """Accept ``"backward"``, ``"forward"`` or ``"full"``."""
    if value not in ("backward", "forward", "full"):
        raise ValueError(f"{name}= wants 'backward', 'forward' or 'full', {_not(value)}")
    return str(value)


def _not(value: Any) -> str:
    return f"not {type(value).__name__} {str(value)[:60]!r}"
