from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pytest_ckptcompat import Recipe, check, tile

pytestmark = pytest.mark.filterwarnings("ignore")

ON_CPU = pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="its fully_shard runs on cards alone"
)
RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GROW = Recipe(tile("fc2.*", dim=0))


class Net(nn.Module):
    def __init__(self, out: int = 6) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu())


def over_all_ranks(out: int) -> nn.Module:
    """As under torchrun, on cards."""
    dist.init_process_group("nccl")
    return fully_shard(Net(out), mesh=init_device_mesh("cuda", (dist.get_world_size(),)))


def over_a_mesh(out: int) -> nn.Module:
    """Over more ranks than are simulated at first."""
    mesh = init_device_mesh("cuda", (4, 8), mesh_dim_names=("data", "tensor"))
    model = Net(out)
    parallelize_module(model, mesh["tensor"], {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


def as_on_a_card(out: int) -> nn.Module:
    """As scripts begin that are started by torchrun alone."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if dist.get_world_size() != 4:
        raise ValueError(f"world_size should be 4, is {dist.get_world_size()}")
    return fully_shard(Net(out))


def flattened(out: int) -> nn.Module:
    model = Net(out)
    model.fc1 = FullyShardedDataParallel(model.fc1)
    return FullyShardedDataParallel(model, use_orig_params=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(Net().state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.parametrize("build", [over_all_ranks, over_a_mesh, as_on_a_card, flattened])
@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "none"},
        {"device": "rehearse", "inputs": (2, 8)},
        {"inputs": (2, 8), "optimizer": optim.AdamW},
    ],
    ids=["none", "rehearse", "values"],
)
def test_without_its_ranks_shapes_are_judged_and_the_rest_is_said(
    path: Path, build: Any, arguments: dict[str, Any]
) -> None:
    before = {name: os.environ.get(name) for name in RANK}
    report = check(lambda: build(12), path, **arguments)
    assert [key for key, *_ in report.mismatched] == ["fc2.weight", "fc2.bias"]
    report = check(lambda: build(12), path, recipe=GROW, **arguments)
    assert report.ok
    [load] = [stage for stage in report.stages if stage.name == "load"]
    assert load.status == "skipped"
    if "device" not in arguments:
        assert load.detail == "not loaded: the model shards itself; start with torchrun"
        assert {promise.status for promise in report.promises} == {"unchecked"}
    assert not dist.is_initialized()
    assert {name: os.environ.get(name) for name in RANK} == before


@pytest.fixture
def one_rank() -> Any:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@ON_CPU
def test_where_its_ranks_are_values_are_loaded_proved_and_stepped(tmp_path: Path, one_rank: Any) -> None:
    model = Net()
    optimizer = optim.AdamW(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "net.pth")
    report = check(
        lambda: fully_shard(Net(12), mesh=one_rank),
        tmp_path / "net.pth",
        recipe=GROW,
        inputs=(2, 8),
        optimizer=optim.AdamW,
    )
    assert report.ok, str(report)
    stages = {stage.name: stage.status for stage in report.stages}
    assert {stages[name] for name in ("load", "verify", "forward", "optimizer")} == {"passed"}
    assert {promise.status for promise in report.promises} == {"kept"}


def test_the_model_of_a_commit_is_not_compared_with_it(path: Path, one_rank: Any) -> None:
    report = check(
        lambda: fully_shard(Net(), mesh=one_rank), path, inputs=(2, 8), source_model="git:HEAD", device="cpu"
    )
    assert report.ok, str(report)
    told = {promise.name: (promise.status, promise.detail) for promise in report.promises}
    assert told["function kept"] == ("unchecked", "the model shards itself")


class Odd:
    """An object that weights_only would refuse."""


@ON_CPU
@pytest.mark.parametrize(
    ("state", "taken"), [({"steps": 3}, [{"steps": 3}]), (Odd(), [])], ids=["plain", "odd"]
)
def test_extra_state_reaches_the_model_if_it_was_read(
    tmp_path: Path, one_rank: Any, state: Any, taken: list[Any]
) -> None:
    given = []

    class Stateful(Net):
        def get_extra_state(self) -> Any:
            return state

        def set_extra_state(self, state: Any) -> None:
            given.append(state)

    torch.save(Stateful().state_dict(), tmp_path / "net.pth")
    report = check(lambda: fully_shard(Stateful(), mesh=one_rank), tmp_path / "net.pth", inputs=(2, 8))
    assert report.ok, str(report)
    assert ("extra-state-unread" in {found.rule for found in report.findings}) == (not taken)
    assert given == taken


def test_a_model_that_was_sharded_before_is_left_as_it_is(path: Path, one_rank: Any) -> None:
    model = fully_shard(Net(), mesh=one_rank)
    before = model.fc1.weight.full_tensor().clone()
    report = check(model, path, inputs=(2, 8))
    assert report.ok
    assert "can't be copied" in next(stage.detail for stage in report.stages if stage.name == "load")
    assert torch.equal(model.fc1.weight.full_tensor(), before)


def test_one_that_can_not_be_built_says_why(path: Path) -> None:
    def broken() -> nn.Module:
        raise ValueError("no process group for you")

    report = check(broken, path, device="none")
    [found] = report.findings
    assert (found.rule, "no process group for you" in found.message) == ("model-error", True)


@ON_CPU
def test_ranks_save_gate_grow_and_resume(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "sharded_ranks.py"
    ran = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-3000:]
