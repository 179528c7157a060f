from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import OrderedDict, UserDict

import pytest
import torch

from pytest_ckptcompat.forward.inputs import Inputs


def described(spec):
    args, kwargs = Inputs.parse(spec).batch()
    tensors = {**dict(enumerate(args)), **kwargs}
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ((2, 3), {0: ((2, 3), "float32")}),
        ((), {0: ((), "float32")}),
        ((0, 3), {0: ((0, 3), "float32")}),
        ("2x3", {0: ((2, 3), "float32")}),
        ("7", {0: ((7,), "float32")}),
        (" 2x16 : int64 < 9 ", {0: ((2, 16), "int64")}),
        ("4:bool", {0: ((4,), "bool")}),
        ("4:bfloat16", {0: ((4,), "bfloat16")}),
        ("4:float8_e4m3fn", {0: ((4,), "float8_e4m3fn")}),
        ("4:complex64", {0: ((4,), "complex64")}),
        ("4:uint16<60000", {0: ((4,), "uint16")}),
        ("4:int64<9223372036854775807", {0: ((4,), "int64")}),
        ([(2, 3), "2:int32<5"], {0: ((2, 3), "float32"), 1: ((2,), "int32")}),
        ([[2, 3], [4]], {0: ((2, 3), "float32"), 1: ((4,), "float32")}),
        ([], {}),
        ({}, {}),
        ({"ids": "2x4:int64<9", "x": (2,)}, {"ids": ((2, 4), "int64"), "x": ((2,), "float32")}),
        (["2x3", "mask=2x3:bool"], {0: ((2, 3), "float32"), "mask": ((2, 3), "bool")}),
        ("ids=2x4:int64<9", {"ids": ((2, 4), "int64")}),
    ],
)
def test_what_may_be_declared(spec, expected):
    assert described(spec) == expected


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ([2, 3, 48, 48], "a list is several inputs; one shape is '2x3x48x48'"),
        (((2, 3), (4,)), "several inputs are a list"),
        (("2x3", "4"), "several inputs are a list"),
        ((2, -3), "a size can't be negative"),
        ((2, 3.0), "3.0 is not a size"),
        ((2, True), "True is not a size"),
        ("2*3", "'2*3' is not a valid shape; write sizes"),
        ("", "'' is not a valid shape"),
        ("2x", "'2x' is not a valid shape"),
        ("-1x3", "'-1x3' is not a valid shape"),
        ("2x3:float", "no dtype 'float'"),
        ("2x3:float4_e2m1fn_x2", "no dtype"),
        ("2x3:bits8", "no dtype"),
        ("2x3:float32<5", "only integers take a bound"),
        ("2x3:bool<2", "only integers take a bound"),
        ("2x3:int64<0", "between 1 and"),
        ("2x3:int8<129", "between 1 and 128"),
        ("2x3:uint8<257", "between 1 and 256"),
        (3, "3 is not a valid shape"),
        (None, "None is not a valid shape"),
        ({"a b": (2,)}, "'a b' is not the name of an argument"),
        ("a b=2", "'a b' is not the name of an argument"),
        ({"x": "y=2"}, "'y=2' is not a valid shape"),
        ({1: (2,)}, "1 is not the name of an argument"),
        ({None: (2,)}, "None is not the name of an argument"),
        (["x=2", "x=3"], "'x' is given twice"),
    ],
)
def test_what_may_not_is_refused_with_the_remedy(spec, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Inputs.parse(spec)


def test_values_are_seeded_and_bounded():
    inputs = Inputs.parse(["1000", "1000:int64<7", "1000:int64", "1000:bool", "1000:int8<128"])
    normal, bounded, pair, flags, small = inputs.batch(3)[0]
    assert abs(normal.mean()) < 0.2
    assert 0.8 < normal.std() < 1.2
    assert set(bounded.tolist()) == set(range(7))
    assert set(pair.tolist()) == {0, 1}
    assert 400 < flags.sum() < 600
    assert small.max() > 120
    for first, again, other in zip(inputs.batch(3)[0], inputs.batch(3)[0], inputs.batch(4)[0], strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_generators_are_left_as_they_were():
    make = lambda: (torch.randn(2), random.random())  # noqa: E731
    torch.manual_seed(5)
    random.seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    for inputs in (Inputs.parse("2x3"), Inputs.parse(make)):
        first = inputs.batch(1)[0]
        assert torch.equal(inputs.batch(1)[0][0], first[0])
        assert inputs.batch(1)[0][1:] == first[1:]
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_a_default_device_does_not_reach_the_values():
    with torch.device("meta"):
        (x,), _ = Inputs.parse("2x3").batch()
    assert x.device.type == "cpu"


class Encoding(UserDict):
    """What tokenizers give: a mapping with a ``to`` of its own."""

    def to(self, device):
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


@pytest.mark.parametrize(
    ("make", "args", "kwargs"),
    [
        (lambda: torch.ones(2), 1, []),
        (lambda: (torch.ones(2), 3, "text", None), 4, []),
        (lambda: (), 0, []),
        (lambda: ([torch.ones(2), torch.ones(3)],), 1, []),
        (lambda: {"x": torch.ones(2), "flag": True}, 0, ["x", "flag"]),
        (lambda: OrderedDict(x=torch.ones(2)), 0, ["x"]),
        (lambda: Encoding(x=torch.ones(2)), 0, ["x"]),
    ],
)
def test_callables(make, args, kwargs):
    positional, named = Inputs.parse(make).batch(device="meta")
    assert len(positional) == args
    assert list(named) == kwargs
    for value in [*positional, *named.values()]:
        for tensor in value if isinstance(value, list) else [value]:
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta


def quits():
    sys.exit("no data")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: [torch.ones(2)], "gave list: give a tensor, a tuple"),
        (lambda: None, "gave NoneType"),
        (lambda: {}["x"], "raised KeyError"),
        (quits, "sys.exit('no data')"),
    ],
)
def test_callables_that_are_no_use(make, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Inputs.parse(make).batch()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ((2, 3), "(2, 3)"),
        (["2x3", "4:int64<9"], "(2, 3), (4,) int64<9"),
        ({"mask": "4:bool"}, "mask=(4,) bool"),
        (quits, "quits()"),
        ([], "no arguments"),
    ],
)
def test_shown_in_reports(spec, text):
    assert str(Inputs.parse(spec)) == text


def test_parsing_imports_no_torch():
    code = (
        "import sys; from pytest_ckptcompat.forward.inputs import Inputs; Inputs.parse(['2x3:int64<5']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
