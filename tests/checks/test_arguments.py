import json
import re
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
        ({"model": None}, "model= is missing"),
        ({"input": (1,)}, "unknown argument input=: did you mean inputs=?"),
        ({"zzz": 1}, "unknown argument zzz=: known are model, ckpt"),
        ({"model": 3}, "model= wants a callable, an nn.Module or 'package.module:name', not int '3'"),
        ({"model": "onet.Net"}, "Use 'package.module:name'"),
        ({"ckpt": 3}, "ckpt= wants a path"),
        ({"ckpt": []}, "ckpt= wants a path"),
        ({"ckpt": [3]}, "ckpt= wants paths"),
        ({"recipe": 3}, "recipe= wants a Recipe or a path"),
        ({"inputs": 3}, "inputs: 3 is not a valid shape"),
        ({"inputs": "two"}, "inputs: 'two' is not a valid shape"),
        ({"state_dict_key": 3}, "state_dict_key= wants a string"),
        ({"protect": [3]}, "protect= wants a list of key patterns"),
        ({"allow": ["missing-key"]}, "allow= wants a list of allow"),
        ({"device": "gpu"}, "device='gpu' is not a device: use auto, cpu"),
        ({"device": "cuda:x"}, "is not a device"),
        ({"device": "cuda:²"}, "is not a device"),
        ({"device": "cpu:0"}, "is not a device"),
        ({"direction": "both"}, "direction= wants 'backward', 'forward' or 'full'"),
        ({"optimizer": 3}, "optimizer= wants a callable (parameters) -> Optimizer or its name"),
        ({"optimizer": "Adam"}, "optimizer='Adam': write 'torch.optim:Adam'"),
        ({"optimizer": "rmsprop"}, "optimizer='rmsprop': write 'torch.optim:RMSprop'"),
        ({"optimizer": "torch.optim.SGD"}, "optimizer='torch.optim.SGD': write 'torch.optim:SGD'"),
        ({"optimizer": "my own"}, "optimizer='my own': write 'torch.optim:AdamW'"),
        ({"optimizer": ""}, "optimizer='': write 'torch.optim:AdamW'"),
        ({"model": torch.nn.Linear(2, 2), "model_args": {"width": 4}}, "this model is built already"),
        ({"model_args": "hyper_parameters"}, "model_args= wants a dict of keyword arguments or 'ckpt:PATH'"),
        ({"model_args": "ckpt:"}, "model_args= wants a dict of keyword arguments or 'ckpt:PATH'"),
        ({"model_args": {1: 2}}, "model_args= wants a dict of keyword arguments or 'ckpt:PATH'"),
        ({"method": 3}, "method= wants the name of a method"),
        ({"method": "a b"}, "method= wants the name of a method"),
        ({"max_memory": "24 apples"}, "max_memory= wants a size such as '24GB' or '80GiB'"),
        ({"max_memory": 24}, "max_memory= wants a size"),
    ],
)
def test_what_is_wrong_is_named(arguments, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        CheckArguments.of(**{"model": model} | arguments)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("512MB", 512 * 10**6), ("1kB", 1000)]
)
def test_sizes(text, size):
    assert CheckArguments.of(model=model, max_memory=text).max_memory == size


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


def test_a_waiver_of_the_command_line():
    waiver = allow("unexpected-key", "aux.*", reason="dropped: see v2")
    assert Waiver.parse("unexpected-key:aux.*:dropped: see v2") == waiver
    for text in ("unexpected-key", "unexpected-key:aux.*", "nonsense:aux.*:why"):
        with pytest.raises(ValueError, match="allow"):
            Waiver.parse(text)
