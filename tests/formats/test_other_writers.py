"""Files that torch.save did not write, and that hold the weights of a model all the same."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as dcp

from pytest_ckptcompat import CheckpointError, check, open_checkpoint
from pytest_ckptcompat.core.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


def assert_state(path: Path, wanted: dict[str, torch.Tensor]) -> None:
    ckpt = open_checkpoint(path)
    assert list(ckpt) == list(wanted)
    found = ckpt.state_dict()
    for key, value in wanted.items():
        assert ckpt[key].shape == tuple(value.shape), key
        assert torch.equal(found[key], value), key
        assert torch.equal(ckpt.tensor(key), value), key


# -- TorchScript -------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))
        self.register_buffer("b", torch.ones(2))
        self.register_buffer("t", torch.zeros(2), persistent=False)
        self.plain = torch.ones(4)  # an attribute, which is in no state dict

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w.sum() + self.b.sum() + self.plain.sum() + self.t.sum()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Inner()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)])
        self.d = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3)})
        self.shared = self.a
        self.lstm = nn.LSTM(3, 2)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.a(x) + self.shared(x)


SCRIPTS: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(Net()),
    "traced": lambda: torch.jit.trace(Net().eval(), torch.ones(2, 3)),
    "half": lambda: torch.jit.script(Net().half()),
    "one module": lambda: torch.jit.script(nn.Linear(2, 3)),
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_torchscript_gives_what_its_own_state_dict_gives(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(SCRIPTS[what](), path)
    wanted = torch.jit.load(path).state_dict()
    assert_state(path, wanted)
    assert "TorchScript" in open_checkpoint(path).unsafe


def test_torchscript_fits_the_model_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.jit.save(torch.jit.script(net), path)
    assert check(
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), path, inputs=(4, 3), device="cpu"
    ).ok
    assert not check(lambda: nn.Linear(3, 2), path).ok


def test_torchscript_without_parameters(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval())), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="a TorchScript archive without parameters and buffers"):
        open_checkpoint(tmp_path / "net.pt")


def test_the_code_of_torchscript_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(SCRIPTS["scripted"](), path)
    with zipfile.ZipFile(path) as old:
        members = {each: old.read(each) for each in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
        root = next(iter(members)).partition("/")[0]
        new.writestr(f"{root}/code/bomb.py", b"class A(Module):\n" + b"  x : int\n" * 8_000_000)
    with pytest.raises(CheckpointError, match=r"limit exceeded: its code has"):
        open_checkpoint(path)


# -- pickles of arrays -------------------------------------------------------------------------------------

ARRAYS = {
    "conv.weight": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "conv.bias": np.zeros(2, "f4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "ints": np.arange(5),
    "bools": np.array([True, False]),
    "halfs": np.ones(3, "f2"),
    "scalar": np.array(3.0, "f4"),
    "large": np.arange(3000, dtype="f8"),
    "bytes": np.arange(4, dtype="u1"),
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_of_arrays(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    path = tmp_path / "model_final.pkl"
    saved: Any = {"model": ARRAYS, "__author__": "a zoo", "matching_heuristics": True} if wrapped else ARRAYS
    path.write_bytes(pickle.dumps(saved, protocol=protocol))
    assert_state(path, {key: torch.from_numpy(value) for key, value in ARRAYS.items()})
    assert "plain pickle of NumPy arrays" in open_checkpoint(path).unsafe


def test_a_pickle_of_arrays_stays_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "r50.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(40_000_000, "f4"), "b": np.ones(3, "f4")}))
    ckpt = open_checkpoint(path)
    assert ckpt.bytes_read < 300_000
    assert torch.equal(ckpt.tensor("b"), torch.ones(3))


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Its strings are bytes: names are told from an array's values."""
    path = tmp_path / "R-50.pkl"
    data = np.array([1.5, -2.0], "<f4").tobytes()
    path.write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02t"
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08" + data + b"tbs."
    )
    assert_state(path, {"w": torch.tensor([1.5, -2.0])})


@pytest.mark.parametrize(
    "saved",
    [
        {"w": np.zeros(3, ">f4")},
        {"w": np.array(["a", None], object)},
        {"w": np.array(["abc"])},
        {"w": 3, "x": np.float64(3)},
        [1, 2, "numpy"],
    ],
)
def test_other_plain_pickles_are_named(tmp_path: Path, saved: Any) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(saved))
    with pytest.raises(CheckpointError, match=r"is a plain Python pickle, which torch.load does not read"):
        open_checkpoint(path)


def test_damaged_pickles_of_arrays_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    whole = pickle.dumps({"weight": np.arange(6.0), "bias": np.ones(2)})
    for length in range(2, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    for at in range(2, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 5]) + whole[at + 1 :])
        try:
            open_checkpoint(path).state_dict()
        except CheckpointError:
            continue


# -- zip archives of checkpoints ---------------------------------------------------------------------------


def stable_baselines(path: Path, **how: Any) -> dict[str, torch.Tensor]:
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    with zipfile.ZipFile(path, "w", **how) as archive:
        archive.writestr("data", json.dumps({"policy_class": "x"}))
        for name, state in (("policy", policy.state_dict()), ("policy.optimizer", optimizer.state_dict())):
            stream = io.BytesIO()
            torch.save(state, stream)
            archive.writestr(f"{name}.pth", stream.getvalue())
        stream = io.BytesIO()
        torch.save({}, stream)
        archive.writestr("pytorch_variables.pth", stream.getvalue())
        archive.writestr("_stable_baselines3_version", "2.3.0")
    return policy.state_dict()


def test_the_zip_of_stable_baselines(tmp_path: Path) -> None:
    path = tmp_path / "ppo.zip"
    assert_state(path, stable_baselines(path))
    report = check(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
        path,
        optimizer=torch.optim.Adam,
        device="cpu",
    )
    assert report.ok, str(report)
    assert not [found for found in report.findings if found.rule == "optimizer-missing"]


def test_a_zip_that_was_packed_again(tmp_path: Path) -> None:
    path = tmp_path / "ppo.zip"
    stable_baselines(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"policy\.pth is deflated in the zip archive: unpack it"):
        open_checkpoint(path)


# -- distributed safetensors -------------------------------------------------------------------------------


def parts(folder: Path, ranks: list[dict[str, tuple[torch.Tensor, list[int]]]]) -> Path:
    folder.mkdir()
    for rank, held in enumerate(ranks, 1):
        places = {key: {"saved_offsets": begin} for key, (_, begin) in held.items()}
        about = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
        tensors = {key: value.contiguous() for key, (value, _) in held.items()}
        save_file(tensors, folder / f"shard-{rank:05}-model-00001-of-00001.safetensors", metadata=about)
    return folder


WHOLE = {"weight": torch.arange(24.0).reshape(6, 4), "bias": torch.arange(6)}


def test_distributed_safetensors_are_put_together(tmp_path: Path) -> None:
    weight, bias = WHOLE["weight"], WHOLE["bias"]
    folder = parts(
        tmp_path / "hf",
        [
            {"weight": (weight[:3, :2], [0, 0]), "bias": (bias[:5], [0])},
            {"weight": (weight[3:, :2], [3, 0]), "bias": (bias[5:], [5])},
            {"weight": (weight[:, 2:], [0, 2])},
        ],
    )
    ckpt = open_checkpoint(folder)
    assert {key: ckpt[key].shape for key in ckpt} == {"weight": (6, 4), "bias": (6,)}
    if hasattr(dcp, "HuggingFaceStorageReader"):
        sizes = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        assert {key: ckpt[key].shape for key in ckpt} == {
            key: tuple(each.size) for key, each in sizes.items()
        }
    assert all(torch.equal(value, WHOLE[key]) for key, value in ckpt.state_dict().items())
    assert check(lambda: nn.Linear(4, 6), folder, inputs=(2, 4), device="cpu").ok is True
    for file in folder.iterdir():
        with pytest.raises(
            CheckpointError, match="one rank's part of a distributed checkpoint in safetensors"
        ):
            open_checkpoint(file)


@pytest.mark.parametrize(
    "ranks",
    [
        [{"w": (torch.ones(2), [0])}, {"w": (torch.ones(2), [3])}],
        [{"w": (torch.ones(2), [0])}, {"w": (torch.ones(2), [0])}],
        [{"w": (torch.ones(2), [0])}, {"w": (torch.ones(1, 2), [1, 0])}],
        [{"w": (torch.ones(2), [0])}, {"w": (torch.ones(2, dtype=torch.int32), [2])}],
        [{"w": (torch.ones(2), [0, 0])}],
        [{"w": (torch.ones(2), [0])}, {"w": (torch.ones(2), [1])}, {"w": (torch.ones(1), [4])}],
    ],
)
def test_parts_that_make_up_nothing(tmp_path: Path, ranks: Any) -> None:
    folder = parts(tmp_path / "hf", ranks)
    with pytest.raises(CheckpointError, match=r"missing or overlap|does not fit|numbers of dimensions"):
        open_checkpoint(folder)


def test_a_whole_file_of_such_a_writer(tmp_path: Path) -> None:
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        pytest.skip("this torch has no such writer")
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "hf"), fqn_to_index_mapping={"w": 1, "b": 2})
    dcp.save({"w": torch.ones(2, 3), "b": torch.zeros(3)}, storage_writer=writer)
    assert_state(tmp_path / "hf", {"w": torch.ones(2, 3), "b": torch.zeros(3)})


def test_limits_hold_for_payloads(tmp_path: Path) -> None:
    from pytest_ckptcompat.checkpoint.contents import read_contents

    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({str(n): np.ones(1) for n in range(2000)}))
    with pytest.raises(CheckpointError, match="limit exceeded"):
        read_contents(path, limits=Limits(tensors=100))
