"""Writes a distributed checkpoint from two processes: ``python dcp_ranks.py FOLDER``.

Every tensor is made of ranges, so that a test can tell what belongs where.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

RANKS = 2


def whole() -> dict[str, torch.Tensor]:
    return {
        "rows": torch.arange(35.0).reshape(7, 5),
        "columns": torch.arange(24, dtype=torch.int64).reshape(4, 6),
        "replicated": torch.arange(3.0, dtype=torch.bfloat16),
        "few": torch.arange(5.0)[:1],
        "plain": torch.arange(6.0).reshape(2, 3),
    }


def write(rank: int, rendezvous: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    state = whole()
    placements = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate(), "few": Shard(0)}
    for key, placement in placements.items():
        state[key] = distribute_tensor(state[key], mesh, [placement])
    dcp.save({"model": state, "step": 3}, checkpoint_id=folder)
    dist.barrier()
    os._exit(0)  # with torch 2.6, destroy_process_group can wait for peers that are gone


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (str(Path(scratch) / "rendezvous"), sys.argv[1])
        multiprocessing.start_processes(write, arguments, nprocs=RANKS, start_method="spawn")
