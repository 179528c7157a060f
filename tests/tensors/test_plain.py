from __future__ import annotations

import json
from collections import namedtuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from pytest_ckptcompat.tensors.plain import decoded, digest, encoded, packed, unpacked


def test_a_nest_comes_back():
    batch = (
        (torch.tensor([[3, 4]], dtype=torch.int32), [torch.tensor(True), None], "text"),
        {"a": (1, 2.5), "b": {"c": torch.zeros(0, 3, dtype=torch.int64)}},
    )
    back = unpacked(json.loads(json.dumps(packed(batch))))
    assert torch.equal(back[0][0], batch[0][0])
    assert back[0][0].dtype == torch.int32
    assert back[0][1][0].item() is True
    assert back[0][1][1] is None
    assert back[1]["a"] == (1, 2.5)
    assert back[1]["b"]["c"].shape == (0, 3)


def test_real_numbers_are_a_shape():
    one, other = packed(torch.randn(2, 3).half()), packed(torch.randn(2, 3).half())
    assert one == other
    assert unpacked(one).dtype == torch.float16
    assert unpacked(one).shape == (2, 3)


def test_digests_tell_batches_apart():
    batches = [
        torch.zeros(2),
        torch.zeros(3),
        torch.zeros(2).half(),
        torch.tensor([1]),
        torch.tensor([2]),
        (torch.zeros(2),),
    ]
    assert len({digest(packed(each)) for each in batches}) == len(batches)


Pair = namedtuple("Pair", "a b")  # noqa: PYI024


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (pack_sequence([torch.zeros(2)]), "an object of type PackedSequence"),
        (Pair(1, 2), "an object of type Pair"),
        ({1: 2}, "an object of type dict"),
        (object(), "an object of type object"),
        (torch.zeros(2).to_sparse(), "a tensor of layout sparse_coo"),
    ],
)
def test_what_no_other_process_can_be_given(value, told):
    with pytest.raises(ValueError, match=told):
        packed([value])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.int16])
def test_integers_are_kept_to_the_bit(dtype):
    tensor = (torch.arange(24) % 7).to(dtype).reshape(2, 3, 4).transpose(0, 2)
    assert torch.equal(decoded(encoded(tensor), dtype, list(tensor.shape)), tensor)


@pytest.mark.parametrize(
    "text", ["", 'not base 85 "', encoded(torch.zeros(5)), encoded(torch.zeros(1 << 20))]
)
def test_damaged_integers_are_refused(text):
    with pytest.raises(ValueError, match="4 elements of int64"):
        decoded(text, torch.int64, [4])
