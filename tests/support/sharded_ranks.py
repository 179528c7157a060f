"""Four ranks that save, gate, grow and resume a model that shards itself: ``python sharded_ranks.py FOLDER``.

It is sharded by ``fully_shard``, by tensor parallelism, and by both. Every rank asserts; the first one writes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pytest_ckptcompat import Recipe, check, open_checkpoint, tile
from pytest_ckptcompat.checks.apply import apply

GROW = Recipe(tile("fc2.*", dim=0))
RANKS = 4


class Net(nn.Module):
    def __init__(self, out: int = 6) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu())


def sharded(kind: str, out: int) -> nn.Module:
    """The network as a training script shards it, over all ranks that there are."""
    torch.manual_seed(0)
    model, ranks = Net(out), dist.get_world_size()
    if kind == "fsdp":
        return fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    shape = (ranks,) if kind == "tensor" else (2, ranks // 2)
    names = ("tensor",) if kind == "tensor" else ("data", "tensor")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
    parallelize_module(model, mesh["tensor"], plan)
    return fully_shard(model, mesh=mesh["data"]) if kind == "both" else model


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(4, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    return {name: slots["exp_avg"] for name, slots in whole["state"].items()}


def run(kind: str, folder: Path) -> None:
    model = sharded(kind, 6)
    optimizer = torch.optim.AdamW(model.parameters())
    stepped(model, optimizer)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": state}, checkpoint_id=folder / "old")
    old = moments(model, optimizer)

    def gated(out: int, path: str, **arguments: Any) -> Any:
        return check(
            lambda: sharded(kind, out), folder / path, inputs=(2, 8), optimizer=torch.optim.AdamW, **arguments
        )

    for out, arguments in ((6, {}), (12, {"recipe": GROW})):
        report = gated(out, "old", **arguments)
        assert report.ok, str(report)
        stages = {stage.name: stage.status for stage in report.stages}
        assert {stages[name] for name in ("load", "verify", "forward", "optimizer")} == {"passed"}, str(
            report
        )
    report = gated(12, "old")
    assert [key for key, *_ in report.mismatched] == ["fc2.weight", "fc2.bias"], str(report)

    if dist.get_rank() == 0:
        apply(open_checkpoint(folder / "old"), Net(12), GROW, folder / "new")
    dist.barrier()
    assert gated(12, "new").ok
    new = sharded(kind, 12)
    resumed = torch.optim.AdamW(new.parameters())
    weights, state = get_state_dict(new, resumed)
    found = {"model": weights, "optim": state}
    dcp.load(found, checkpoint_id=folder / "new")
    set_state_dict(new, resumed, model_state_dict=found["model"], optim_state_dict=found["optim"])
    for name, whole in moments(new, resumed).items():
        assert torch.equal(whole[: len(old[name])], old[name]), name
    stepped(new, resumed)


def rank(number: int, rendezvous: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=RANKS)
    for kind in ("fsdp", "tensor", "both"):
        run(kind, Path(folder) / kind)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (str(Path(scratch) / "rendezvous"), sys.argv[1])
        multiprocessing.start_processes(rank, arguments, nprocs=RANKS, start_method="fork")
