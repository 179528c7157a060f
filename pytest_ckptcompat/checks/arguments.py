"""One case to check: the marker's arguments, held to their types before anything is opened or imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from .waivers import Waiver

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .rollback import Direction

DEVICES = "auto, cpu, cuda, cuda:N, rehearse or none"


@dataclass(frozen=True)
class CheckArguments:
    """The arguments of ``@pytest.mark.ckpt_compat``, of `check` and of a ``[[check]]`` table alike.

    Made by `CheckArguments.of`, which checks them; nothing is imported, opened or built yet.
    """

    model: Any
    ckpt: tuple[str, ...] = ()
    recipe: Recipe | str | None = None
    inputs: Any = None
    source_model: Any = None
    state_dict_key: str | None = None
    protect: tuple[str, ...] = ()
    allow: tuple[Waiver, ...] = ()
    device: str | None = None
    optimizer: Callable[..., Any] | None = None
    direction: Direction = "backward"

    @classmethod
    def of(cls, **arguments: Any) -> CheckArguments:
        """The case that these arguments declare.

        Raises:
            ValueError: an argument is unknown, missing or of a wrong type; the text names it.
        """
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}=?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"unknown argument {name}=: {hint}")
        if arguments.get("model") is None:
            raise ValueError("model= is missing: a callable giving the model, or 'package.module:name'")
        return cls(
            **{name: _CHECKS[name](name, value) for name, value in arguments.items() if value is not None}
        )


def _model(name: str, value: Any) -> Any:
    if isinstance(value, str):
        module, _, path = value.partition(":")
        if not module or not path:
            raise ValueError(f"{name}={value!r} is no model name: write 'package.module:name'")
    elif not callable(value):
        raise ValueError(f"{name}= wants a callable, an nn.Module or 'package.module:name', {_not(value)}")
    return value


def _paths(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, (str, PathLike)) else value
    if not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name}= wants a path or a list of paths, {_not(value)}")
    for path in values:
        if not isinstance(path, (str, PathLike)):
            raise ValueError(f"{name}= wants paths, {_not(path)}")
        if not str(fspath(path)).strip():
            raise ValueError(f"{name}= is empty: name a checkpoint")
    return tuple(str(fspath(path)) for path in values)


def _recipe(name: str, value: Any) -> Any:
    if isinstance(value, PathLike):
        return str(fspath(value))
    if isinstance(value, str):
        return value
    from pytest_ckptcompat.recipes.recipe import Recipe  # whoever has a Recipe has imported this already

    if not isinstance(value, Recipe):
        raise ValueError(f"{name}= wants a Recipe or a path to a TOML recipe, {_not(value)}")
    return value


def _inputs(name: str, value: Any) -> Any:
    from pytest_ckptcompat.forward.inputs import Inputs

    Inputs.parse(value)  # raises what is wrong with it
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}= wants a string, {_not(value)}")
    return value


def _patterns(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, str) for item in values):
        raise ValueError(f"{name}= wants a list of key patterns, {_not(value)}")
    return tuple(values)


def _waivers(name: str, value: Any) -> tuple[Waiver, ...]:
    values = [value] if isinstance(value, Waiver) else value
    if not isinstance(values, Sequence) or not all(isinstance(item, Waiver) for item in values):
        raise ValueError(f"{name}= wants a list of allow(rule, key, reason=...), {_not(value)}")
    return tuple(values)


@dataclass(frozen=True)
class Named:
    """A callable that is given by its name, ``"package.module:name"``, and imported when it is called."""

    name: str

    def __call__(self, parameters: Any) -> Any:
        """Import it, and call it."""
        from pytest_ckptcompat.core.imports import imported

        return imported(self.name)(parameters)


def device_name(name: str, value: Any) -> str:
    """A device as ``--ckpt-device`` takes it, checked.

    Raises:
        ValueError: it is none; the text names `name`.
    """
    kind, _, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in ("auto", "cpu", "cuda", "rehearse", "none") or (
        ":" in value and not (kind == "cuda" and index.isdigit())
    ):
        raise ValueError(f"{name}={value!r} is no device: {DEVICES}")
    return str(value)


def _optimizer(name: str, value: Any) -> Any:
    if isinstance(value, str):
        module, _, path = value.partition(":")
        if not module or not path:
            raise ValueError(f"{name}={value!r}: write {_meant(value)!r}")
        return Named(value)
    if not callable(value):
        raise ValueError(f"{name}= wants a callable (parameters) -> Optimizer or its name, {_not(value)}")
    return value


def _meant(text: str) -> str:
    """What may be meant by an optimizer's name without a colon: ``Adam``, ``torch.optim.Adam``."""
    module, _, name = text.rpartition(".")
    if module.replace(".", "_").isidentifier() and name.isidentifier():
        return f"{module}:{name}"
    known = {each.lower(): each for each in _OPTIMIZERS}
    return f"torch.optim:{known.get(text.strip(' :.').lower(), 'AdamW')}"


_OPTIMIZERS = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
)
"""Those of torch: a hint alone, for which torch is not imported."""


def _direction(name: str, value: Any) -> str:
    if value not in ("backward", "forward", "full"):
        raise ValueError(f"{name}= wants 'backward', 'forward' or 'full', {_not(value)}")
    return str(value)


def _not(value: Any) -> str:
    return f"not {type(value).__name__} {str(value)[:60]!r}"


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": _model,
    "ckpt": _paths,
    "recipe": _recipe,
    "inputs": _inputs,
    "source_model": _model,
    "state_dict_key": _text,
    "protect": _patterns,
    "allow": _waivers,
    "device": device_name,
    "optimizer": _optimizer,
    "direction": _direction,
}
