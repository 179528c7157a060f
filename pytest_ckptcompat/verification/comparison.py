"""Compare a state dict with a model, by the model's own ``load_state_dict`` on the meta device."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.tensors.casts import loses
from pytest_ckptcompat.tensors.difference import is_strided
from pytest_ckptcompat.tensors.unread import Unread, spared, unread

from .plain_load import is_plain, plain_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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
    heard, passed = _heard(model, state_dict)
    expected = model.state_dict()
    missing = list(dict.fromkeys(heard.missing))
    unexpected = list(dict.fromkeys(heard.unexpected))
    mismatched, others = _sort_errors(heard.errors)
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
        *(
            finding("extra-state-unread", key, message=f"was not judged: {value.why}")
            for key, value in state_dict.items()
            if isinstance(value, Unread) and key not in wrong
        ),
        *_lossy(state_dict, expected, wrong),
    ]
    fitting = {key: _shown(value) for key, value in expected.items() if key not in wrong}
    total = len(expected.keys() | wrong | passed)
    matched = _matched(expected, state_dict, wrong, passed)
    return Comparison(missing, unexpected, mismatched, matched, total, findings, fitting)


def _heard(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[_Heard, set[str]]:
    """Return the faults that a strict load names, and the missing and unexpected keys that it tolerates."""
    if is_plain(model, state_dict):
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            return _Heard(*plain_load(model, state_dict)), set()
    trial = meta_copy(model)
    _give_memory(trial, [key for key, value in state_dict.items() if _has_own_layout(value)])
    return _strict_load(trial, state_dict)


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


def _has_own_layout(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not (value.is_meta or is_strided(value))


def _give_memory(trial: nn.Module, keys: Iterable[str]) -> None:
    """Move some tensors off the meta device, where any layout can be copied into any other."""
    for key in keys:
        prefix, _, leaf = key.rpartition(".")
        try:
            owner = trial.get_submodule(prefix)
        except AttributeError:
            continue
        if (buffer := owner._buffers.get(leaf)) is not None and buffer.is_meta:
            owner._buffers[leaf] = torch.zeros_like(buffer, device="cpu")
        elif (weight := owner._parameters.get(leaf)) is not None and weight.is_meta:
            owner._parameters[leaf] = nn.Parameter(
                torch.zeros_like(weight, device="cpu"), weight.requires_grad
            )


@dataclass
class _Heard:
    """The lists that the modules fill during one ``load_state_dict``."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def made(self, error: BaseException) -> bool:
        """Return whether the text of an error was made from these lists."""
        return bool(self.errors) and str(error).endswith("\n\t".join(self.errors))

    def counted(self) -> _Heard:
        """Return only the faults that torch reports.

        torch puts a text with the missing keys and one with the unexpected keys before the errors. If the
        load turned out not to be strict, there are none.
        """
        missing = any(text.startswith(_MISSING) for text in self.errors)
        unexpected = any(text.startswith(_UNEXPECTED) for text in self.errors)
        return _Heard(
            self.missing if missing else [],
            self.unexpected if unexpected else [],
            [text for text in self.errors if not text.startswith((_MISSING, _UNEXPECTED))],
        )


_MISSING = "Missing key(s) in state_dict: "
_UNEXPECTED = "Unexpected key(s) in state_dict: "


def _strict_load(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[_Heard, set[str]]:
    """Load strictly, and listen to the lists that ``load_state_dict`` passes to every module's loader.

    Returns the faults that torch reports, and the missing and unexpected keys that it tolerates, as for a
    model that makes every load of itself a lenient one.

    Each load in progress has its own lists: a wrapper may leave the load to the module that it wraps, and a
    module may load a part of itself, strictly or not. The error shows which lists count.
    """
    heard: dict[int, _Heard] = {}
    module: Any
    for module in model.modules():
        module._load_from_state_dict = _listening(module._load_from_state_dict, heard)
    try:
        with warnings.catch_warnings(), spared(model, state_dict):
            warnings.simplefilter("ignore")
            model.load_state_dict(state_dict, strict=True)
    except (Exception, SystemExit) as error:
        for lists in heard.values():
            if lists.made(error):
                return lists.counted(), set()
        root = next(iter(heard.values()), _Heard())
        return _Heard(root.missing, root.unexpected, [*root.errors, load_fault(error)]), set()
    root = next(iter(heard.values()), _Heard())
    return _Heard(), {*root.missing, *root.unexpected}


def load_fault(error: BaseException) -> str:
    """Describe what ``load_state_dict`` raised, and in which module: in its hook, or its own loader."""
    trace, place = error.__traceback__, None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "load" and code.co_filename == nn.modules.module.__file__:
            place = trace.tb_frame.f_locals
        trace = trace.tb_next
    if place is None:
        return raised(error)
    name = str(place.get("prefix", "")).rstrip(".") or "the model itself"
    return f"loading {escape(name)} ({type(place['module']).__name__}) raised {raised(error)}"


def _listening(loader: Callable[..., None], heard: dict[int, _Heard]) -> Callable[..., None]:
    def listening_loader(state: Any, prefix: str, metadata: Any, strict: bool, *lists: Any) -> None:
        heard.setdefault(id(lists[0]), _Heard(*lists))
        loader(state, prefix, metadata, strict, *lists)

    return listening_loader


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


def _lossy(state_dict: Mapping[str, Any], expected: Mapping[str, Any], wrong: set[str]) -> list[Finding]:
    findings = []
    for key, value in state_dict.items():
        target = expected.get(key)
        if key in wrong or not isinstance(value, torch.Tensor) or not isinstance(target, torch.Tensor):
            continue
        lazy = nn.parameter.is_lazy(target) or nn.parameter.is_lazy(value)
        if not lazy and loses(value.dtype, target.dtype):
            findings.append(finding("dtype-mismatch", key, _shown(value), _shown(target)))
    return findings
