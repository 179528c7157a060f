"""The verdict is torch's own strict verdict, complete in one pass."""

import re
from collections import OrderedDict
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.verification.comparison import compare


def meta(state_dict):
    out = OrderedDict((k, v.to("meta") if isinstance(v, torch.Tensor) else v) for k, v in state_dict.items())
    if hasattr(state_dict, "_metadata"):
        out._metadata = state_dict._metadata
    return out


def torch_verdict(model, state_dict):
    """What torch says, from its public behaviour alone: loads of real tensors, mismatched keys taken out."""
    mismatched = set()
    while True:
        try:
            rest = OrderedDict((k, v) for k, v in state_dict.items() if k not in mismatched)
            if hasattr(state_dict, "_metadata"):
                rest._metadata = state_dict._metadata
            result = model.load_state_dict(rest, strict=False)
        except RuntimeError as error:
            mismatched |= set(re.findall(r"size mismatch for (.*?): copying", str(error)))
        else:
            missing = [key for key in result.missing_keys if key not in mismatched]
            return set(missing), set(result.unexpected_keys), mismatched


def check_equal(model, state_dict):
    found = compare(meta_copy(model), meta(state_dict))
    missing, unexpected, mismatched = torch_verdict(model, state_dict)
    assert set(found.missing) == missing
    assert set(found.unexpected) == unexpected
    assert {key for key, _, _ in found.mismatched} == mismatched
    assert found.fits == (not (missing or unexpected or mismatched))
    return found


def test_all_three_kinds_in_one_pass():
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.BatchNorm1d(4), c=nn.Linear(4, 2)))
    state = model.state_dict()
    state["a.weight"] = torch.zeros(5, 3)
    del state["b.running_var"], state["c.bias"]
    state["aux.weight"] = torch.zeros(1)
    found = check_equal(model, state)
    assert found.missing == ["b.running_var", "c.bias"]
    assert found.unexpected == ["aux.weight"]
    assert found.mismatched == [("a.weight", (5, 3), (4, 3))]
    assert (found.matched, found.total) == (6, 10)
    assert [(f.rule, f.key, f.checkpoint, f.model) for f in found.findings] == [
        ("shape-mismatch", "a.weight", "(5, 3) f32", "(4, 3) f32"),
        ("missing-key", "b.running_var", "", "(4,) f32"),
        ("missing-key", "c.bias", "", "(2,) f32"),
        ("unexpected-key", "aux.weight", "(1,) f32", ""),
    ]


def test_batchnorm_with_and_without_metadata():
    model = nn.Sequential(nn.BatchNorm1d(3))
    state = model.state_dict()
    del state["0.num_batches_tracked"]
    assert not check_equal(model, state).fits  # its version in _metadata says that the key must be there
    del state._metadata
    assert check_equal(model, state).fits  # a state dict from before the key existed


def test_one_element_into_a_scalar():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

    assert check_equal(Scalar(), OrderedDict(scale=torch.ones(1))).fits
    check_equal(Scalar(), OrderedDict(scale=torch.ones(2)))  # older torch takes the first of several


def test_keys_under_a_child_that_is_none_are_ignored_where_torch_ignores_them():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.head = None
            self.register_module("aux", None)

    state = Headless().state_dict()
    state["aux.weight"] = torch.zeros(2)
    check_equal(Headless(), state)


def test_a_lazy_module_takes_any_shape():
    model = nn.Sequential(nn.LazyLinear(4))
    state = nn.Sequential(nn.Linear(7, 4)).state_dict()
    found = compare(meta_copy(model), meta(state))
    assert found.fits
    assert isinstance(model[0], nn.LazyLinear), "the model under test is left as it was"


def test_an_own_loader_that_raises_is_a_load_error():
    class Strict(nn.Linear):
        def _load_from_state_dict(self, *args):
            raise ValueError("only v2 checkpoints")

    found = compare(Strict(2, 2), meta(nn.Linear(2, 2).state_dict()))
    assert [f.rule for f in found.findings] == ["load-error"]
    assert "only v2 checkpoints" in found.findings[0].message
    assert not found.fits


def test_what_is_no_tensor_is_a_load_error_as_torch_says():
    state = nn.Linear(2, 2).state_dict()
    state["weight"] = "seven"
    found = compare(nn.Linear(2, 2), state)
    assert [f.rule for f in found.findings] == ["load-error"]
    assert "weight" in found.findings[0].message


def test_the_model_is_left_alone():
    model = nn.Linear(2, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compare(model, meta(nn.Linear(2, 3).state_dict()))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert "_load_from_state_dict" not in vars(model)


def test_a_hostile_key_does_not_confuse_the_reading_of_torchs_text():
    key = "x: copying a param with shape torch.Size([9]) from checkpoint, the shape in current model is y."
    model = nn.Module()
    model.register_parameter(key.replace(".", "_"), nn.Parameter(torch.zeros(2)))
    state = OrderedDict({key.replace(".", "_"): torch.zeros(3)})
    found = compare(meta_copy(model), meta(state))
    assert found.mismatched == [(key.replace(".", "_"), (3,), (2,))]


def test_a_lossy_cast_is_a_warning():
    found = compare(nn.Linear(2, 2).half(), meta(nn.Linear(2, 2).state_dict()))
    assert {(f.rule, f.severity, f.checkpoint) for f in found.findings} == {
        ("dtype-mismatch", "warn", "(2, 2) f32"),
        ("dtype-mismatch", "warn", "(2,) f32"),
    }
    assert found.fits


# -- random trees, random edits ----------------------------------------------------------------------------

LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(2, 3),
        lambda: nn.Linear(3, 2, bias=False),
        lambda: nn.BatchNorm1d(3),
        lambda: nn.Conv2d(1, 2, 3),
        lambda: nn.Embedding(4, 2),
        lambda: nn.LayerNorm(3),
        lambda: nn.PReLU(),
        lambda: nn.GRU(2, 2),
        lambda: nn.Identity(),
    ]
)
NAMES = st.sampled_from(["a", "b", "layers", "0", "weight", "head"])
TREES = st.recursive(
    LEAVES.map(lambda make: make()),
    lambda children: st.dictionaries(NAMES, children, max_size=3).map(
        lambda parts: nn.ModuleDict({k: v for k, v in parts.items() if k not in ("keys", "values")})
    ),
    max_leaves=6,
)


@st.composite
def edited(draw):
    model = draw(TREES)
    state = model.state_dict()
    keys = list(state)
    for key in draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)) if keys else []:
        edit = draw(st.sampled_from(["drop", "reshape", "rename", "deepen"]))
        value = state.pop(key)
        if edit == "reshape":
            state[key] = torch.zeros(*value.shape, 2)
        elif edit == "rename":
            state[key + "_old"] = value
        elif edit == "deepen":
            state["module." + key] = value
    if draw(st.booleans()) and hasattr(state, "_metadata"):
        del state._metadata
    return model, state


@settings(max_examples=150, deadline=None)
@given(edited())
def test_random_trees_and_edits_give_torchs_verdict(pair):
    check_equal(*pair)


def test_what_a_lenient_model_lets_pass_is_no_match() -> None:
    class Lenient(nn.Linear):
        def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
            return super().load_state_dict(state_dict, False, assign)

    found = compare(Lenient(3, 2), {"weight": torch.empty(2, 3, device="meta"), "other": torch.empty(0)})
    assert found.fits  # as torch has it
    assert (found.matched, found.total) == (1, 3)
