"""Compare a state dict with a model, by the model's own ``load_state_dict`` on the meta device."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.tensors.casts import loses
from pytest_ckptcompat.tensors.unread import Unread, unread

from .strict_load import strict_load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Shape = tuple[int, ...]

_MISMATCH = re.compile(
    r"size mismatch for (?P<key>.*): copying a param with shape (?P<checkpoint>.*?) from checkpoint, "
    r"the shape in current model is (?P<model>.*)\.",
    re.DOTALL,
)


@dataclass(frozen=True)
class Comparison:
    """The parts of torch's verdict on a strict load.

    Attributes:
        missing: keys that only the model has, in its order.
        unexpected: keys that only the state dict has.
        mismatched: (key, the state dict's shape, the model's shape).
        matched: how many keys are in both, with the same shape.
        total: how many keys are in either.
        findings: the above as findings, and losses of values that torch lets pass.
        fitting: key -> shape and dtype as text, for the keys that match.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    matched: int = 0
    total: int = 0
    findings: list[Finding] = field(default_factory=list)
    fitting: dict[str, str] = field(default_factory=dict)

    @property
    def needs_values(self) -> bool:
        """Whether the model's own loader needs values, which tensors on the meta device don't have."""
        return any(f.rule == "load-error" and _NO_VALUES.search(f.message) for f in self.findings)

    @property
    def fits(self) -> bool:
        """Whether torch loads the state dict strictly."""
        return not self.differing

    @property
    def differing(self) -> list[str]:
        """The keys that make a strict load fail; ``""`` stands for an error of the model's own loader."""
        return [f.key for f in self.findings if f.rule in _STRICT]


_NO_VALUES = re.compile(r"\bmeta tensors?\b|\bmeta device\b|'\w*Meta' backend|Meta tensor")
_STRICT = {"missing-key", "unexpected-key", "shape-mismatch", "load-error"}


def compare(model: nn.Module, state_dict: Mapping[str, Any]) -> Comparison:
    """Load `state_dict` (meta tensors) into a copy of `model`, strictly, and report every difference at once.

    The model's own machinery decides: ``_load_from_state_dict``, hooks, versions in ``_metadata``, ties. The
    copy takes no memory, and `model` is not changed. torch names no missing keys if there is a mismatch, so
    the lists that it fills are read directly.
    """
    faults, passed = strict_load(model, state_dict)
    expected = model.state_dict()
    missing = list(dict.fromkeys(faults.missing))
    unexpected = list(dict.fromkeys(faults.unexpected))
    mismatched, others = _sort_errors(faults.errors)
    wrong = {*missing, *unexpected, *(key for key, _, _ in mismatched)}
    withheld = unread(state_dict)
    before = f"{withheld}: " if withheld else ""
    findings = [
        *(
            finding("shape-mismatch", key, _shown(state_dict.get(key), old), _shown(expected.get(key), new))
            for key, old, new in mismatched
        ),
        *(finding("missing-key", key, "", _shown(expected.get(key))) for key in missing),
        *(finding("unexpected-key", key, _shown(state_dict.get(key))) for key in unexpected),
        *(finding("load-error", message=before + text) for text in others),
        *_lossy({key: value for key, value in state_dict.items() if key not in wrong}, expected),
    ]
    fitting = {key: _shown(value) for key, value in expected.items() if key not in wrong}
    total = len(expected.keys() | wrong | passed)
    matched = _matched(expected, state_dict, wrong, passed)
    return Comparison(missing, unexpected, mismatched, matched, total, findings, fitting)


def _matched(
    expected: Mapping[str, Any], state_dict: Mapping[str, Any], wrong: set[str], passed: set[str]
) -> int:
    """Count the keys of the model that got their tensor from the state dict.

    A hook may have renamed keys. If the state dict does not fit, a key that the model fills in itself (as
    torch does for ``num_batches_tracked``) is not counted.
    """
    right = expected.keys() - wrong - passed
    if not wrong:
        return len(right)
    renamed = len(state_dict.keys() - expected.keys() - wrong - passed)
    named = len(right & state_dict.keys())
    return named + min(len(right) - named, renamed)


def _sort_errors(errors: list[str]) -> tuple[list[tuple[str, Shape, Shape]], list[str]]:
    mismatched, others = [], []
    for text in errors:
        if match := _MISMATCH.fullmatch(text):
            mismatched.append((match["key"], _shape(match["checkpoint"]), _shape(match["model"])))
        else:
            others.append(escape(" ".join(text.split()), limit=500))
    return mismatched, others


def _shape(text: str) -> Shape:
    """Parse the shape in torch's text: ``torch.Size([4, 256])``."""
    return tuple(int(size) for size in re.findall(r"\d+", text))


def _shown(value: Any, shape: Shape | None = None) -> str:
    if isinstance(value, torch.Tensor):
        if nn.parameter.is_lazy(value):
            return "any shape"
        if value.is_nested:
            return "nested"
        return shown(tuple(value.shape) if shape is None else shape, str(value.dtype))
    if shape is not None:
        return shown(shape, "")
    return "" if value is None else f"({type(value).__name__})"


def _lossy(state_dict: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Finding]:
    """Find what a load that raises no error loses."""
    for key, value in state_dict.items():
        target = expected.get(key)
        if isinstance(value, Unread):
            yield finding("extra-state-unread", key, message=f"was not judged: {value.why}")
        elif isinstance(value, torch.Tensor) and isinstance(target, torch.Tensor):
            lazy = nn.parameter.is_lazy(target) or nn.parameter.is_lazy(value)
            if not lazy and loses(value.dtype, target.dtype):
                yield finding("dtype-mismatch", key, _shown(value), _shown(target))
