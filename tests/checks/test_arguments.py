import json
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

import pytest_ckptcompat
from pytest_ckptcompat import check
from pytest_ckptcompat.checks.arguments import ARGUMENTS, Arguments, CheckArguments, marker_help
from pytest_ckptcompat.checks.toml_schema import toml_schema
from pytest_ckptcompat.checks.waivers import Waiver, allow


def model():
    raise AssertionError("a case builds nothing")


def test_what_is_given_is_kept():
    waiver = allow("missing-key", reason="r")
    case = CheckArguments.of(
        model=model, ckpt=Path("a/net.pth"), inputs=(2, 3), protect="conv*", allow=waiver, device="cuda:1"
    )
    assert case == CheckArguments(
        model, ("a/net.pth",), inputs=(2, 3), protect=("conv*",), allow=(waiver,), device="cuda:1"
    )


def test_none_is_the_default():
    assert CheckArguments.of(model="onet:Net", ckpt=None, recipe=None, device=None) == CheckArguments(
        "onet:Net"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "model= is missing"),
        ({"model": model, "input": (1,)}, "unknown argument input=: did you mean inputs=?"),
        ({"model": model, "zzz": 1}, "unknown argument zzz=: known are model, ckpt"),
        ({"model": 3}, "model= wants a callable, an nn.Module or 'package.module:name', not int '3'"),
        ({"model": "onet.Net"}, "Use 'package.module:name'"),
        ({"model": model, "ckpt": 3}, "ckpt= wants a path"),
        ({"model": model, "ckpt": []}, "ckpt= wants a path"),
        ({"model": model, "ckpt": [3]}, "ckpt= wants paths"),
        ({"model": model, "recipe": 3}, "recipe= wants a Recipe or a path"),
        ({"model": model, "inputs": 3}, "inputs: 3 is not a valid shape"),
        ({"model": model, "inputs": "two"}, "inputs: 'two' is not a valid shape"),
        ({"model": model, "state_dict_key": 3}, "state_dict_key= wants a string"),
        ({"model": model, "protect": [3]}, "protect= wants a list of key patterns"),
        ({"model": model, "allow": ["missing-key"]}, "allow= wants a list of allow"),
        ({"model": model, "device": "gpu"}, "device='gpu' is not a device: use auto, cpu"),
        ({"model": model, "device": "cuda:x"}, "is not a device"),
        ({"model": model, "device": "cpu:0"}, "is not a device"),
        (
            {"model": model, "optimizer": 3},
            "optimizer= wants a callable (parameters) -> Optimizer or its name",
        ),
        ({"model": model, "optimizer": "Adam"}, "optimizer='Adam': write 'torch.optim:Adam'"),
        ({"model": model, "optimizer": "rmsprop"}, "optimizer='rmsprop': write 'torch.optim:RMSprop'"),
        (
            {"model": model, "optimizer": "torch.optim.SGD"},
            "optimizer='torch.optim.SGD': write 'torch.optim:SGD'",
        ),
        ({"model": model, "optimizer": "my own"}, "optimizer='my own': write 'torch.optim:AdamW'"),
        ({"model": model, "optimizer": ""}, "optimizer='': write 'torch.optim:AdamW'"),
    ],
)
def test_what_is_wrong_is_named(arguments, text):
    with pytest.raises(ValueError, match=r".") as error:
        CheckArguments.of(**arguments)
    assert text in str(error.value)


@pytest.mark.parametrize("optimizer", ["torch.optim:SGD", SGD])
def test_an_optimizer_is_given_by_name_or_as_it_is(tmp_path, optimizer):
    linear = torch.nn.Linear(2, 2)
    trained = SGD(linear.parameters(), momentum=0.9)
    torch.save({"model": linear.state_dict(), "optimizer": trained.state_dict()}, tmp_path / "net.pth")
    report = check(lambda: torch.nn.Linear(2, 2), tmp_path / "net.pth", optimizer=optimizer)
    assert [promise.detail for promise in report.promises if promise.name == "optimizer step"] == [
        "one step of SGD, all finite"
    ]


def test_the_optimizers_that_are_hinted_at_are_torchs():
    here = {name.lower(): name for name, each in vars(torch.optim).items() if isinstance(each, type)}
    for name in here.keys() - {"optimizer"}:
        with pytest.raises(ValueError, match=f"write 'torch.optim:{here[name]}'"):
            CheckArguments.of(model=model, optimizer=name)


def test_callers_and_command_take_what_the_table_declares():
    """A row of the table is all that an argument needs; the types that callers see can't be made from it."""
    assert set(Arguments.__annotations__) == ARGUMENTS.keys() - {"model", "ckpt"}
    assert all(name in check.__doc__ for name in ARGUMENTS)


def test_the_schema_for_editors_is_made_from_the_table():
    file = Path(pytest_ckptcompat.__file__).parent / "ckptcompat.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == toml_schema()


def test_the_markers_help_tells_every_argument():
    text = marker_help("ckpt_compat")
    assert text.startswith("ckpt_compat(*, model=None, ckpt=None, recipe=None, ")
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == list(ARGUMENTS)


@pytest.mark.parametrize("text", ["unexpected-key", "unexpected-key:aux.*", "nonsense:aux.*:why"])
def test_a_waiver_of_the_command_line_that_is_none(text):
    with pytest.raises(ValueError, match="allow"):
        Waiver.parse(text)


def test_a_waiver_of_the_command_line():
    assert Waiver.parse("unexpected-key:aux.*:dropped: see v2") == allow(
        "unexpected-key", "aux.*", reason="dropped: see v2"
    )
