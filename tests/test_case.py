from pathlib import Path

import pytest

from pytest_ckptcompat.case import Case
from pytest_ckptcompat.waivers import allow


def model():
    raise AssertionError("a case builds nothing")


def test_what_is_given_is_kept():
    waiver = allow("missing-key", reason="r")
    case = Case.of(
        model=model, ckpt=Path("a/net.pth"), inputs=(2, 3), protect="conv*", allow=waiver, device="cuda:1"
    )
    assert case == Case(
        model, ("a/net.pth",), inputs=(2, 3), protect=("conv*",), allow=(waiver,), device="cuda:1"
    )


def test_none_is_the_default():
    assert Case.of(model="onet:Net", ckpt=None, recipe=None, device=None) == Case("onet:Net")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "model= is missing"),
        ({"model": model, "input": (1,)}, "unknown argument input=: did you mean inputs=?"),
        ({"model": model, "zzz": 1}, "unknown argument zzz=: known are model, ckpt"),
        ({"model": 3}, "model= wants a callable, an nn.Module or 'package.module:name', not int '3'"),
        ({"model": "onet.Net"}, "write 'package.module:name'"),
        ({"model": model, "ckpt": 3}, "ckpt= wants a path"),
        ({"model": model, "ckpt": []}, "ckpt= wants a path"),
        ({"model": model, "ckpt": [3]}, "ckpt= wants paths"),
        ({"model": model, "recipe": 3}, "recipe= wants a Recipe or a path"),
        ({"model": model, "inputs": 3}, "inputs: 3 is no shape"),
        ({"model": model, "inputs": "two"}, "inputs: 'two' is no shape"),
        ({"model": model, "state_dict_key": 3}, "state_dict_key= wants a string"),
        ({"model": model, "protect": [3]}, "protect= wants a list of key patterns"),
        ({"model": model, "allow": ["missing-key"]}, "allow= wants a list of allow"),
        ({"model": model, "device": "gpu"}, "device='gpu' is no device: auto, cpu"),
        ({"model": model, "device": "cuda:x"}, "is no device"),
        ({"model": model, "device": "cpu:0"}, "is no device"),
        ({"model": model, "optimizer": "adam"}, "optimizer= wants a callable"),
    ],
)
def test_what_is_wrong_is_named(arguments, text):
    with pytest.raises(ValueError, match=r".") as error:
        Case.of(**arguments)
    assert text in str(error.value)
