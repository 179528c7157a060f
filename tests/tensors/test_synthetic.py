"""Values without a checkpoint, against the same arithmetic in Python's own integers."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.tensors import synthetic


def sixteen_bits(name: str, count: int) -> list[int]:
    """What `synthetic` says that it does, one number at a time."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    seed, stride = int.from_bytes(digest[:4], "little"), (int.from_bytes(digest[4:], "little") >> 1) | 1
    half = (count + 1) // 2
    hashed = []
    for counter in range(half):
        x = (counter * stride + seed) % 2**32
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        hashed.append(x ^ x >> 16)
    return ([x >> 16 for x in hashed] + [x & 0xFFFF for x in hashed])[:count]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20), st.lists(st.integers(0, 7), max_size=3))
def test_numbers_are_those_of_the_hash(name, shape):
    drawn = synthetic.signal(name, shape)
    mantissa, exponent = math.frexp(math.sqrt(3) / 2**15)
    width = math.ldexp(round(mantissa * 256) / 256, exponent)
    expected = [(x - 2**15) * width for x in sixteen_bits(f"{name} {tuple(shape)}", math.prod(shape))]
    assert drawn.shape == tuple(shape)
    assert drawn.reshape(-1).tolist() == expected


def test_pieces_join_without_a_seam():
    count = 3 * (1 << 15) + 5
    drawn = synthetic.signal("x", (count,))
    expected = sixteen_bits(f"x {(count,)}", count)
    assert drawn.sub(drawn.min()).div(drawn.max() - drawn.min()).mul(65535).round().tolist() == expected


def test_threads_and_default_dtype_change_no_bit():
    before = synthetic.values("a.weight", (300, 700))
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        assert torch.equal(synthetic.values("a.weight", (300, 700)), before)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("key", ["a.weight", "norm.running_var", "b.bias", "logit_scale", "pos_embed"])
def test_values_are_exact_in_float32(key):
    drawn = synthetic.values(key, (8, 77) if key in ("a.weight", "pos_embed") else (77,))
    assert torch.equal(drawn.float().double(), drawn)
    assert drawn.dtype == torch.float64


def test_names_and_shapes_choose_the_values():
    one = synthetic.values("a.weight", (4, 6))
    assert torch.equal(one, synthetic.values("a.weight", (4, 6)))
    assert not torch.equal(one, synthetic.values("b.weight", (4, 6)))
    assert not torch.equal(one.reshape(-1), synthetic.values("a.weight", (6, 4)).reshape(-1))


def test_ranges():
    factors = synthetic.values("norm.weight", (500,))
    assert 0.75 <= factors.min() < 0.8 < 1.2 < factors.max() <= 1.25
    assert synthetic.values("bn.running_var", (500,)).min() >= 1.5
    assert synthetic.values("bn.running_mean", (500,)).abs().max() <= 0.25
    assert abs(synthetic.values("fc.bias", (500,)).mean()) < 0.03
    assert synthetic.values("conv.weight", (64, 32, 3, 3)).var() * 32 * 9 == pytest.approx(1.7, rel=0.05)
    assert synthetic.values("fc.weight", (1, 500)).min() < 0  # one output, not a factor
    assert synthetic.values("experts.up", (8, 100, 400)).var() * 400 == pytest.approx(1.7, rel=0.05)
    assert synthetic.values("logit_scale", ()).item() > 0


def test_integers():
    drawn = synthetic.integers("ids", (2, 5000), 7)
    assert drawn.dtype == torch.int64
    assert sorted(set(drawn.reshape(-1).tolist())) == list(range(7))
    assert synthetic.integers("ids", (1000,), 1 << 40).max() < 1 << 31
    assert synthetic.integers("ids", (1000,), 1 << 31).max() > 1 << 30


def test_a_table_of_keys():
    table = {
        "embed.weight": TensorSpec("bfloat16", (5, 3)),
        "head.weight": TensorSpec("bfloat16", (5, 3)),
        "count": TensorSpec("int64", ()),
        "index": TensorSpec("int32", (2,)),
        "phase": TensorSpec("complex64", (4,)),
    }
    index = torch.tensor([1, 0], dtype=torch.int32)
    drawn = synthetic.state_dict(
        table, [("embed.weight", "head.weight")], {"index": index, "extra": {"a": 1}}
    )
    assert list(drawn) == list(table)
    assert drawn["head.weight"] is drawn["embed.weight"]
    assert torch.equal(drawn["embed.weight"], synthetic.values("embed.weight", (5, 3)))
    assert drawn["count"].item() == 0
    assert drawn["count"].dtype == torch.int64
    assert drawn["index"] is index
    assert drawn["phase"].dtype == torch.complex128


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("gain", [0.5, 1, 4])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(12, 9),
        lambda: nn.Linear(10, 10),
        lambda: nn.Conv2d(6, 7, 3),
        lambda: nn.ConvTranspose2d(8, 8, 3),
    ],
)
def test_a_spectral_norm_is_that_of_its_weight(norm, gain, build):
    layer = norm(build()).double().eval()
    layer.load_state_dict(synthetic.state_dict(layer.state_dict(), gain=gain))
    x = synthetic.signal("x", (4, 6, 5, 5) if isinstance(layer, nn.Conv2d) else (4, 8, 5, 5))
    x = x[:, :, 0, 0].repeat(1, 2)[:, : layer.in_features] if isinstance(layer, nn.Linear) else x
    with torch.no_grad():
        layer(x)  # the older form computes its weight as it is called
        true = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    assert 0.5 < true < 4, "the weight is divided by something near its norm"


def test_gain_is_that_of_the_weights():
    table = nn.BatchNorm1d(3).state_dict() | {"fc.weight": torch.empty(4, 3)}
    one, two = synthetic.state_dict(table), synthetic.state_dict(table, gain=4)
    assert [key for key in table if not torch.equal(one[key], two[key])] == ["fc.weight"]
    assert torch.equal(two["fc.weight"], 2 * one["fc.weight"])


def test_a_change_of_dtype_changes_no_value():
    half, whole = nn.Linear(3, 3).half().state_dict(), nn.Linear(3, 3).state_dict()
    one, other = synthetic.state_dict(half), synthetic.state_dict(whole)
    assert all(torch.equal(one[key], other[key]) for key in whole)


def test_inputs_keep_integers_and_structure():
    batch = (
        (torch.zeros(2, 3), torch.tensor([4, 5])),
        {"mask": torch.tensor([True]), "more": [torch.ones(2)]},
    )
    args, kwargs = synthetic.inputs(batch)
    assert torch.equal(args[0], synthetic.signal("input 1", (2, 3)))
    assert torch.equal(kwargs["more"][0], synthetic.signal("input 2", (2,)))
    assert args[1].tolist() == [4, 5]
    assert kwargs["mask"].tolist() == [True]
    assert batch[0][0].abs().max() == 0
