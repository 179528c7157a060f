from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from pytest_ckptcompat.tensors.nested import mapped, moved, tensors


class Pair(NamedTuple):
    first: torch.Tensor
    second: object


@dataclass
class Output:
    logits: torch.Tensor
    extra: dict = field(default_factory=dict)
    kind: str = "output"


class Model(OrderedDict):
    """Like the outputs of transformers: a dict whose items are attributes too."""

    def __post_init__(self):
        raise AssertionError("not called by OrderedDict(...)")


def paths(value):
    return [path for path, _ in tensors(value)]


def test_paths_are_those_one_would_write():
    t = torch.ones(1)
    value = {"a": [t, (t + 1, None)], "b": Pair(t + 2, Output(t + 3, {"k": {t + 4}}))}
    assert paths(value) == [
        "['a'][0]",
        "['a'][1][0]",
        "['b'].first",
        "['b'].second.logits",
        "['b'].second.extra['k']{}",
    ]
    assert paths(t) == [""]


def test_objects_of_other_libraries_are_looked_into():
    assert paths(torch.distributions.Normal(torch.zeros(2), torch.ones(2))) == [".loc", ".scale"]
    assert paths(UserDict(x=torch.ones(1))) == ["['x']"]
    assert paths(nn.Linear(2, 2)) == []
    assert paths([torch.float32, int, len, 3, "text", b"bytes", None]) == []


def test_cycles_end_and_a_tensor_may_be_met_twice():
    t = torch.ones(1)
    value = [t, t]
    value.append(value)
    assert paths(value) == ["[0]", "[1]"]


def test_a_structure_that_makes_objects_as_one_looks():
    class Fresh:
        @property
        def __dict__(self):
            return {"x": torch.ones(1), "more": (torch.ones(2),)}

    assert paths([Fresh(), Fresh()]) == ["[0].x", "[0].more[0]", "[1].x", "[1].more[0]"]


def test_mapped_rebuilds_containers_of_the_same_kind():
    t = torch.zeros(2)
    value = {"a": (t, [t]), "b": Pair(t, 3), "c": Output(t), "d": Model(x=t), "e": "kept"}
    result = mapped(value, lambda tensor: tensor + 1)
    assert result["a"][0].sum() == 2
    assert isinstance(result["a"], tuple)
    assert type(result["b"]) is Pair
    assert result["b"].second == 3
    assert result["c"].logits.sum() == 2
    assert type(result["d"]) is Model
    assert result["d"]["x"].sum() == 2
    assert result["e"] == "kept"
    assert value["a"][0].sum() == 0


def test_lengths_of_packed_sequences_stay_on_the_cpu():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    there = moved(packed, "meta")
    assert there.data.is_meta
    assert there.batch_sizes.device.type == "cpu"
    assert paths(packed)[:2] == [".data", ".batch_sizes"]


def test_moved_uses_a_to_of_its_own():
    class Batch:
        def __init__(self):
            self.x = torch.ones(2)

        def to(self, device):
            other = Batch()
            other.x = self.x.to(device)
            return other

    (batch, [inner]) = moved((Batch(), [Batch()]), "meta")
    assert batch.x.is_meta
    assert inner.x.is_meta
