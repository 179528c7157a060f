"""What single ranks of a distributed training save, made in one process by a process group that does nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def dtensors(world: int, **local: torch.Tensor) -> dict[str, Any]:
    """The local parts as DTensors that are sharded along their first dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (world,))
    return {key: DTensor.from_local(value, mesh, [Shard(0)], run_check=False) for key, value in local.items()}


def sharded_tensor(rank: int, world: int, local: torch.Tensor) -> Any:
    """A `ShardedTensor`, as FSDP's sharded state dicts had them before DTensor."""
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
    from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
    from torch.distributed._shard.sharding_spec import ShardMetadata

    rows, *rest = local.shape
    places = [
        ShardMetadata([n * rows, *[0] * len(rest)], [rows, *rest], f"rank:{n}/cpu") for n in range(world)
    ]
    about = ShardedTensorMetadata(places, torch.Size([rows * world, *rest]))
    return ShardedTensor._init_from_local_shards_and_global_metadata([Shard(local, places[rank])], about)
