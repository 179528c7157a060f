"""On real architectures and broken checkpoints of theirs, our verdict is the text of torch's own strict load."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import nn
from verdict_published import TORCHVISION, TRANSFORMERS, torchvision_exhibit, transformers_exhibit
from verdict_zoo import ZOO

from pytest_ckptcompat.models.blueprint import blueprint
from pytest_ckptcompat.verification.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verdict_zoo import Exhibit

State = OrderedDict[str, Any]

# -- what torch says ----------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    other_errors: int


def torchs(model: nn.Module, state: State) -> Verdict | None:
    """From the text of the error that a strict load raises, which is all that a user of torch gets to see.

    Returns:
        None where the load ends in another error, such as an own loader's, and torch comes to no verdict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_state_dict(state, strict=True)
    except Exception as error:
        head, *errors = str(error).split("\n\t")
        if not head.startswith("Error(s) in loading state_dict for "):
            return None
    else:
        return Verdict([], [], [], 0)
    lists: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    mismatched, others = [], 0
    for text in errors:
        kind, _, keys = text.partition(" key(s) in state_dict: ")
        sizes = re.fullmatch(
            r"size mismatch for (.*): copying a param with shape torch\.Size\(\[(.*)\]\) from checkpoint, "
            r"the shape in current model is torch\.Size\(\[(.*)\]\)\.",
            text,
        )
        if keys:
            lists[kind] = list(dict.fromkeys(re.findall(r'"([^"]*)"', keys)))  # some loaders say it twice
        elif sizes:
            old, new = (tuple(map(int, re.findall("[0-9]+", sizes[side]))) for side in (2, 3))
            mismatched.append((sizes[1], old, new))
        else:
            others += 1
    return Verdict(lists["Missing"], lists["Unexpected"], mismatched, others)


def ours(schema: nn.Module, state: State) -> Verdict:
    found = compare(schema, on_meta(state))
    others = sum(f.rule == "load-error" for f in found.findings)
    verdict = Verdict(found.missing, found.unexpected, found.mismatched, others)
    assert found.fits == (verdict == ([], [], [], 0))
    assert found.matched <= found.total
    if any(verdict[:3]):  # what a lenient model lets pass is in neither
        assert found.matched < found.total, "a count that belies the verdict"
    return verdict


def on_meta(state: State) -> State:
    def copied(value: Any) -> Any:
        usual = isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value)
        return value.to("meta") if usual else value

    return like(state, {key: copied(value) for key, value in state.items()})


def like(state: State, entries: Any) -> State:
    """Other entries with the same versions of modules."""
    new: State = OrderedDict(entries)
    if hasattr(state, "_metadata"):
        new._metadata = state._metadata  # type: ignore[attr-defined]
    return new


# -- what happens to checkpoints ----------------------------------------------------------------------------


def edits(state: State, model: nn.Module) -> Iterator[tuple[str, State]]:
    """The checkpoint as it is, and broken in the ways of which the issue trackers are full."""
    keys = list(state)
    yield "as it is", state
    yield "empty", like(state, {})
    yield "without versions", OrderedDict(state)
    yield "every third key gone", like(state, [each for n, each in enumerate(state.items()) if n % 3])
    yield "under a wrapper", like(state, {f"module.{key}": value for key, value in state.items()})
    yield "other dtypes", like(state, {k: other_dtype(v) for k, v in state.items()})
    for name, reshape in RESHAPES.items():
        yield name, like(state, [(k, reshape(v) if n % 2 else v) for n, (k, v) in enumerate(state.items())])
    further = {"aux.weight": torch.zeros(2), "_extra_state": torch.zeros(1), "x": torch.zeros(())}
    for key in keys[:: max(len(keys) // 4, 1)]:
        parent = key.rpartition(".")[0]
        further |= {f"{parent}.aux".strip("."): torch.zeros(2), f"{key}.deeper": torch.zeros(2)}
        further |= {f"{parent}._extra_state".strip("."): torch.zeros(1)}
    yield "further keys", like(state, {**state, **further})
    if keys:
        block = keys[len(keys) // 2].rpartition(".")[0]
        moved = {k.replace(block, f"{block}_old", 1) if block else f"old.{k}": v for k, v in state.items()}
        yield "a renamed block", like(state, moved)
        yield "no tensor", like(state, {**state, keys[0]: "seven"})
    for tied in tied_names(model):
        yield f"without {tied[-1]}", like(state, {k: v for k, v in state.items() if k != tied[-1]})
        grown = RESHAPES["grown"](state[tied[-1]])
        yield f"{tied[-1]} grown apart", like(state, {**state, tied[-1]: grown})
    everything = [(k, v) for n, (k, v) in enumerate(state.items()) if n % 4]
    everything = [(k, RESHAPES["grown"](v) if n % 5 == 1 else v) for n, (k, v) in enumerate(everything)]
    yield "all at once", like(state, [*everything, *further.items()])


def reshaped(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def of(value: Any) -> Any:
        usual = isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value)
        return change(value) if usual else value

    return of


RESHAPES = {
    "grown": reshaped(lambda v: v.new_zeros((v.shape[0] + 1, *v.shape[1:]) if v.dim() else (2,))),
    "deeper": reshaped(lambda v: v.unsqueeze(-1)),
    "flat": reshaped(lambda v: v.reshape(-1)),
}


def other_dtype(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or nn.parameter.is_lazy(value) or value.is_complex():
        return value
    if value.is_floating_point():
        return value.to(torch.float64 if value.dtype != torch.float64 else torch.float16)
    return value.to(torch.float32)


def tied_names(model: nn.Module) -> list[list[str]]:
    """Two of the groups of names that stand for one tensor."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1][:2]


def agree(exhibit: Exhibit, *, anew: bool = False) -> None:
    """Every edit of the architecture's own checkpoint, and its variant's.

    Args:
        exhibit: the architecture.
        anew: build it for each of torch's loads, since a load changes more than its values.
    """
    model, schema = exhibit.build(), blueprint(exhibit.build).schema()
    pairs = [*edits(model.state_dict(), model), ("of its variant", exhibit.variant().state_dict())]
    for edit, state in pairs:
        copied = on_meta(state) if any(each.is_meta for each in model.parameters()) else state
        found = ours(schema, state)
        wanted = torchs(exhibit.build() if anew else model, copied)
        if wanted is None:
            assert found.other_errors, f"{edit}: torch raises"
        else:
            assert found == wanted, edit


# -- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_verdict_is_torchs(name: str) -> None:
    agree(ZOO[name], anew=True)


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_verdict_is_torchs_in_torchvision(name: str) -> None:
    pytest.importorskip("torchvision")
    agree(torchvision_exhibit(name))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_verdict_is_torchs_in_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    agree(transformers_exhibit(name))


def test_there_are_enough_architectures() -> None:
    assert len(ZOO) >= 30
    assert len(TORCHVISION) + len(TRANSFORMERS) >= 70
