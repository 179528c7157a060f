from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from equality import assert_same, assert_same_state
from torch import nn

from pytest_ckptcompat import CheckpointError, TensorSpec, open_checkpoint
from pytest_ckptcompat.checkpoint.checkpoint import checkpoint
from pytest_ckptcompat.checkpoint.contents import read_contents
from pytest_ckptcompat.core.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pth"


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


MODEL, OPTIMIZER = trained()
STATE = OrderedDict(a=torch.ones(2), b=torch.zeros(3, 1))
OTHER = OrderedDict(c=torch.ones(5))
WEIGHTS = OrderedDict(weight=torch.ones(2), bias=torch.zeros(3, 1))

# -- the state dict inside ---------------------------------------------------------------------------------

FOUND = {
    "itself": (STATE, ""),
    "state_dict": ({"state_dict": STATE, "epoch": 3}, "state_dict"),
    "model_state_dict": ({"model_state_dict": STATE, "loss": 0.1}, "model_state_dict"),
    "model": ({"model": STATE, "args": {"lr": 0.1}}, "model"),
    "module": ({"module": STATE}, "module"),
    "net": ({"net": STATE, "acc": 90.1}, "net"),
    "ema": ({"ema": STATE, "updates": 1000}, "ema"),
    "model_state": ({"model_state": STATE}, "model_state"),
    "two levels": ({"model": {"state_dict": STATE}}, "model.state_dict"),
    "three levels": ({"checkpoint": {"best": {"model": STATE}}}, "checkpoint.best.model"),
    "beside a tensor": ({"state_dict": STATE, "best": torch.tensor(0.9)}, "state_dict"),
    "one of its own name": ({"generator": STATE, "epoch": 3}, "generator"),
    "in a list": ([STATE, {"lr": 0.1}], "0"),
    "shared by two names": ({"model": STATE, "module": STATE}, "model"),
    "the shallower one": ({"state_dict": STATE, "extra": {"model": OTHER}}, "state_dict"),
    "the usual name": ({"teacher": OTHER, "state_dict": STATE}, "state_dict"),
    "keys with dots": ({"v1.0": {"model": STATE}}, "v1.0.model"),
    "none that looks like one": ({"model": None, "state_dict": STATE}, "state_dict"),
    "beside a lone tensor": ({"g_ema": WEIGHTS, "latent_avg": torch.zeros(4)}, "g_ema"),
    "beside several lone tensors": (
        {"mean": torch.ones(3), "std": torch.ones(3), "my_net": WEIGHTS},
        "my_net",
    ),
    "beside a random state": ({"net_g": WEIGHTS, "rng": [{"torch_rng_state": torch.zeros(5)}]}, "net_g"),
    "beside statistics": ({"stats": {"mean": torch.zeros(3)}, "my_net": WEIGHTS}, "my_net"),
    "a usual name that holds no model": ({"params": {"lr": torch.ones(1)}, "my_net": WEIGHTS}, "my_net"),
    "named like an optimizer": ({"optimized_model": STATE, "epoch": 3}, "optimized_model"),
    "named like a scheduler": ({"scheduler_net": STATE}, "scheduler_net"),
    "named like a scaler": ({"upscaler": STATE, "scaler": {"scale": torch.ones(1)}}, "upscaler"),
    "beside an optimizer without groups": ({"my_net": STATE, "optimizer": {"w": torch.ones(2)}}, "my_net"),
    "beside several optimizers": (
        {
            "g": STATE,
            "optimizer_g": {"w": torch.ones(1)},
            "optim_d_state_dict": {"v": torch.ones(1)},
            "d_opt": OTHER,
        },
        "g",
    ),
    "of a training": (
        {
            "model": MODEL.state_dict(),
            "optimizer": OPTIMIZER.state_dict(),
            "opt": OPTIMIZER.state_dict(),
            "scheduler": torch.optim.lr_scheduler.StepLR(OPTIMIZER, 3).state_dict(),
            "grad_scaler": {"scale": torch.ones(1)},
        },
        "model",
    ),
    "of Lightning": (
        {
            "epoch": 4,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": MODEL.state_dict(prefix="net."),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [OPTIMIZER.state_dict()],
            "lr_schedulers": [],
            "hyper_parameters": OrderedDict(lr=0.1, device=torch.device("cpu")),
        },
        "state_dict",
    ),
    "itself, with extra state": (OrderedDict(STATE, _extra_state={"amax": torch.ones(3)}), ""),
    "itself, with another object": (
        OrderedDict({"fc.weight": torch.ones(1), "aux": {"x": torch.ones(3)}}),
        "",
    ),
}


@pytest.mark.parametrize("layout", FOUND)
def test_the_state_dict_is_found_and_its_path_leads_there(path: Path, layout: str) -> None:
    saved, key = FOUND[layout]
    torch.save(saved, path)
    ckpt = open_checkpoint(path)
    assert ckpt.state_dict_key == key
    assert_same_state(ckpt, inside(saved, key))
    assert_same_state(open_checkpoint(path, key), inside(saved, key))


def inside(saved: Any, key: str) -> Any:
    """The part of what was saved that a path of names without dots leads to."""
    for name in filter(None, ("v1.0", "model") if key.startswith("v1.0") else key.split(".")):
        saved = saved[int(name) if isinstance(saved, list) else name]
    return saved


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"model": STATE, "ema": OTHER}, ("'model'", "'ema'")),
        ({"generator": STATE, "discriminator": OTHER}, ("'generator'", "'discriminator'")),
        ({"model": {"encoder": STATE, "decoder": OTHER}}, ("'model.encoder'", "'model.decoder'")),
        ({"encoder": STATE, "decoder": {"layers": OTHER}}, ("'encoder'", "'decoder'")),
        ({"a": {"b": WEIGHTS}, "c": OrderedDict(WEIGHTS)}, ("'a'", "'c'")),
        ({"model": {"module": STATE}, "ema": OTHER}, ("'model'", "'ema'")),
        ({"fc.weight": torch.ones(1), "twin": WEIGHTS}, ("''", "'twin'")),
        ({"net": STATE, "swa_net": OrderedDict(STATE), "swa_n": 3}, ("'net'", "'swa_net'")),
        ({"model": nn.Linear(2, 2), "best": nn.Linear(2, 2)}, ("'model'", "'best'")),
    ],
)
def test_two_that_are_equally_good_are_an_error_that_lists_both(
    path: Path, saved: Any, names: tuple[str, str]
) -> None:
    torch.save(saved, path)
    with pytest.raises(
        CheckpointError,
        match=r"2 state dicts .* Say which with state_dict_key= \(on the command line --key\)$",
    ) as error:
        open_checkpoint(path)
    assert all(name in str(error.value) for name in names)
    for name in names:
        assert open_checkpoint(path, name.strip("'"))


NONE = {
    "a tensor": (torch.ones(2), "a single tensor"),
    "no tensor": ({"epoch": 3, "args": {"lr": 0.1}}, "no state dict.*'epoch' \\(an int\\).*--key"),
    "an optimizer": (OPTIMIZER.state_dict(), "no state dict"),
    "an empty dict": ({}, "no state dict"),
    "a number": (3, "no state dict"),
    "a list of tensors": ([torch.ones(1)], "no state dict"),
    "numbers as keys": ({0: torch.ones(1)}, "no state dict"),
    "a number as a key": (
        {"a": torch.ones(1), 3: torch.ones(1)},
        "a key that is not a string, but of type int",
    ),
    "tuples as keys": (
        {("a", "b"): torch.ones(1), "w": torch.ones(1)},
        "a key that is not a string, but of type tuple",
    ),
    "too deep": (
        {"a": {"b": {"c": {"model": WEIGHTS}}}},
        "at most 3 levels deep.*'a.b.c.model' lies deeper.*--key",
    ),
}


@pytest.mark.parametrize("what", NONE)
def test_without_a_state_dict_the_error_says_what_is_there(path: Path, what: str) -> None:
    saved, message = NONE[what]
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_a_key_that_leads_nowhere_is_an_error_that_lists_what_is_there(path: Path) -> None:
    torch.save({"model": {"body": STATE, "n": 1}, "other": {"m": 2}}, path)
    with pytest.raises(
        CheckpointError, match=r"'model' has no such part; it has 'body' \(a dict of 2\), 'n'"
    ):
        open_checkpoint(path, "model.bdy")
    with pytest.raises(CheckpointError, match=r"the checkpoint has no such part; it has 'model'"):
        open_checkpoint(path, "modle")
    with pytest.raises(CheckpointError, match="not a state dict"):
        open_checkpoint(path, "model.n")
    with pytest.raises(CheckpointError, match="is a tensor"):
        open_checkpoint(path, "model.body.a")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        open_checkpoint(path, "other")


def test_parts_are_joined_by_dots_where_they_are_asked_for_together(path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    parts = {"encoder": net.state_dict(), "decoder": {"layers": net.state_dict()}}
    torch.save({"model": parts, "optimizer": {"encoder": {"weight": torch.ones(9)}}, "step": 3}, path)
    both = nn.ModuleDict({"encoder": net, "decoder": nn.ModuleDict({"layers": net})})
    ckpt = open_checkpoint(path, "model")
    assert {key: spec.shape for key, spec in ckpt.items()} == {
        k: v.shape for k, v in both.state_dict().items()
    }
    assert ckpt.metadata is not None
    assert ckpt.metadata["encoder.1"] == {"version": 2}  # as torch notes of a batch norm
    assert set(open_checkpoint(path, "")) == {f"model.{key}" for key in ckpt}, "of the optimizer nothing"
    both.load_state_dict(ckpt.state_dict())


def test_a_key_may_end_among_the_keys_of_a_state_dict(path: Path) -> None:
    net = nn.ModuleDict(
        {"backbone": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 1)}
    )
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, path)
    ckpt = open_checkpoint(path, "state_dict.backbone")
    assert_same_state(ckpt, net["backbone"].state_dict())
    net["backbone"].load_state_dict(ckpt.state_dict())
    assert list(open_checkpoint(path, "state_dict.backbone.1")) == list(net["backbone"][1].state_dict())  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"'state_dict' has no such part"):
        open_checkpoint(path, "state_dict.back")


def test_a_key_may_lead_through_lists_numbers_and_objects(path: Path) -> None:
    torch.save({"runs": [{7: {"best.net": Holder(STATE)}}]}, path)
    assert_same_state(open_checkpoint(path, "runs.0.7.best.net.weights"), STATE)


class Holder:
    def __init__(self, weights: Any) -> None:
        self.weights = weights


# -- what is in it -----------------------------------------------------------------------------------------


def test_it_is_a_mapping(path: Path) -> None:
    torch.save(STATE, path)
    ckpt = open_checkpoint(path)
    assert list(ckpt) == ["a", "b"]
    assert "a" in ckpt
    assert "c" not in ckpt
    assert len(ckpt) == 2
    assert isinstance(ckpt["b"], TensorSpec)
    assert (ckpt["b"].shape, ckpt["b"].dtype, ckpt["b"].nbytes) == ((3, 1), "float32", 12)
    with pytest.raises(KeyError):
        ckpt["c"]
    assert repr(ckpt) == "<Checkpoint net.pth: torch-zip, 2 tensors>"


def test_what_is_no_tensor_keeps_its_place(path: Path) -> None:
    state = OrderedDict(a=torch.ones(1), extra={"n": 1}, b=torch.ones(2), none=None)
    torch.save(state, path)
    ckpt = open_checkpoint(path)
    assert list(ckpt) == ["a", "b"]
    assert ckpt.objects == {"extra": {"n": 1}, "none": None}
    assert list(ckpt.state_dict()) == list(ckpt.meta()) == list(ckpt.stored()) == ["a", "extra", "b", "none"]
    assert ckpt.state_dict()["extra"] == {"n": 1}


def test_extra_state_that_holds_tensors_is_no_wrapper(path: Path) -> None:
    torch.save({"w": torch.ones(1), "_extra_state": {"params": {"scale": torch.ones(1)}}}, path)
    ckpt = open_checkpoint(path)
    assert list(ckpt) == ["w"]
    assert_same(ckpt.materialise(ckpt.objects["_extra_state"]["params"]["scale"]), torch.ones(1))  # type: ignore[index]


def test_ties(path: Path) -> None:
    weight = torch.randn(4, 4)
    torch.save(
        {"in": weight, "t": weight.t(), "out": weight, "part": weight[:2], "twin": weight.clone()}, path
    )
    ckpt = open_checkpoint(path)
    assert ckpt.ties == [("in", "out")]
    assert ckpt.nbytes == 64 + 64 + 32 + 64


def test_optimizer_state_is_read_on_demand(path: Path) -> None:
    torch.save({"state_dict": MODEL.state_dict(), "optimizer_states": [OPTIMIZER.state_dict()]}, path)
    ckpt = open_checkpoint(path)
    slots = ckpt.wrapper["optimizer_states"][0]["state"][0]  # type: ignore[index]
    assert_same(ckpt.materialise(slots["exp_avg"]), OPTIMIZER.state_dict()["state"][0]["exp_avg"])
    assert ckpt.materialise(slots["step"]).item() == 1


def test_a_header_is_read_once_for_several_state_dicts(path: Path) -> None:
    torch.save({"model": STATE, "ema": OTHER}, path)
    contents = read_contents(path)
    read = contents.files.bytes_read
    assert list(checkpoint(contents, "model")) == ["a", "b"]
    assert list(checkpoint(contents, "ema")) == ["c"]
    assert contents.files.bytes_read == read


def test_no_tensor_byte_is_read_for_the_header(path: Path) -> None:
    torch.save({str(n): torch.ones(1_000_000) for n in range(4)}, path)
    ckpt = open_checkpoint(path)
    header = ckpt.bytes_read
    assert header < 10_000
    ckpt.meta()
    stored = ckpt.stored()
    assert ckpt.bytes_read == header
    stored["2"].sum()
    assert ckpt.bytes_read == header + 4_000_000


# -- caps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        ("tensors", 2),
        ("key_bytes", 3),
        ("dims", 1),
        ("zip_entries", 4),
        ("pickle_bytes", 100),
        ("pickle_opcodes", 20),
    ],
)
def test_caps_are_named_with_how_to_raise_them(path: Path, cap: str, value: int) -> None:
    torch.save({"aaaa": torch.ones(1, 1), "b": torch.ones(1), "c": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=rf"limit exceeded: .*limit {cap}={value}\).*--limit {cap}="):
        open_checkpoint(path, limits=Limits.parse("--limit", [f"{cap}={value}"]))
    assert (
        len(
            open_checkpoint(
                path, limits=Limits.parse("--limit", [f" {cap} = 1_000_000 ", "pickle_memory=9999999"])
            )
        )
        == 3
    )


@pytest.mark.parametrize(
    "line", ["tensors", "tensors=", "tensors=x", "tensors=0", "tensors=-1", "tensor=5", "=5"]
)
def test_limits_are_checked(line: str) -> None:
    with pytest.raises(ValueError, match="limit"):
        Limits.parse("--limit", [line])


def test_modules_that_multiply_are_capped(path: Path) -> None:
    """Each holds the one before twice: 2^40 names, and not one of them a tensor."""
    module: nn.Module = nn.ReLU()
    for _ in range(40):
        module = nn.ModuleList([module, module])
    torch.save(nn.ModuleList([nn.Linear(1, 1), module]), path)
    with pytest.raises(CheckpointError, match="limit exceeded: it holds too many modules"):
        open_checkpoint(path, limits=Limits.parse("--limit", ["tensors=1000"]))


# -- arrays, and classes that were pickled by value ----------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_are_named_with_their_conversion(path: Path, wrapped: bool, protocol: int) -> None:
    arrays = {"weight": np.zeros((2, 3)), "bias": np.zeros(2)}
    torch.save({"model": arrays, "step": 3} if wrapped else arrays, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"NumPy arrays, such as .*weight.*torch\.from_numpy") as error:
        open_checkpoint(path)
    assert "Stub" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("by", ["cloudpickle", "dill"])
def test_a_whole_module_whose_class_was_pickled_by_value(path: Path, zipped: bool, by: str) -> None:
    module = pytest.importorskip(by)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(  # a class of __main__, which these picklers write with its code
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 2)\n"
        "        self.norm = nn.BatchNorm1d(2)\n",
        space,
    )
    net = space["Net"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(net, path, pickle_module=module, _use_new_zipfile_serialization=zipped)
    found = open_checkpoint(path).state_dict()
    assert list(found) == list(net.state_dict())
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_a_key_reaches_parts_between_tensors(path: Path) -> None:
    torch.save({"model": {"head.weight": torch.ones(2), "body": {"deep": {"l.weight": torch.ones(3)}}}}, path)
    with pytest.raises(CheckpointError, match=r"'model' \(2 tensors\), 'model.body"):
        open_checkpoint(path)
    assert {key: spec.shape for key, spec in open_checkpoint(path, "model").items()} == {
        "head.weight": (2,),
        "body.deep.l.weight": (3,),
    }


def test_a_traced_module_that_was_pickled_whole(path: Path) -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    torch.save(traced, path)
    found = open_checkpoint(path).state_dict()
    assert list(found) == list(traced.state_dict())
    assert all(torch.equal(found[key], value) for key, value in traced.state_dict().items())
