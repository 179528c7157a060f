"""Recognise checkpoints that one rank of a distributed training wrote, with only a part of the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Stub

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")
_IN_NAME = re.compile(r"rank_?(\d+)")
_TENSORS = ("DTensor", "ShardedTensor")

_OF_ZERO = ("zero_stage", "partition_count", "ds_version")
_OF_DEEPSPEED = ("ds_version", "ds_config", "dp_world_size", "param_shapes")
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size")

_GATHER = (
    "Gather the whole state dict before saving: torch.distributed.checkpoint.state_dict.get_model_state_dict("
    "model, options=StateDictOptions(full_state_dict=True)); or save with torch.distributed.checkpoint, and "
    "open its folder"
)
_ZERO_TO_FP32 = (
    "Run 'python zero_to_fp32.py . OUTPUT' in the folder of the checkpoint, which DeepSpeed puts there, and "
    "open what it writes; or train with stage3_gather_16bit_weights_on_model_save"
)


def check_whole(entries: Mapping[str, object], path: str) -> None:
    """Refuse a state dict that is one rank's part of a model.

    Raises:
        CheckpointError: the state dict is one rank's part. The message says which rank's, and what to do.
    """
    parts = [value for value in entries.values() if type(value) is not TensorSpec and _kind(value)]
    if parts:
        of_all = f"{len(parts)} of its {len(entries)} entries are"
        many = of_all if len(parts) < len(entries) else "its tensors are"
        rank = parts[0].parts if isinstance(parts[0], CompositeSpec) else ()
        raise CheckpointError(
            f"{_part(path, *rank)} of a distributed model: {many} {_kind(parts[0])}s. {_GATHER}"
        )
    for key, value in entries.items():
        if "flat_param" in key and _FLAT.fullmatch(key) and len(getattr(value, "shape", ())) == 1:
            raise CheckpointError(
                f"{_part(path)} of a model under FSDP: {escape(key)} is several parameters. {_GATHER}"
            )


def check_file(tree: object, path: str) -> None:
    """Refuse a file that says beside its state dict that it is one rank's part; see `check_whole`."""
    if not isinstance(tree, dict):
        return
    metadata = tree.get("shard_metadata")
    if isinstance(metadata, dict) and metadata.get("world_size") != 1:
        raise CheckpointError(
            f"{_part(path, metadata.get('rank'), metadata.get('world_size'))} of a model under FSDP of "
            "FairScale or torch_xla (it has 'shard_metadata'). Put the parts of all ranks together with "
            "FullyShardedDataParallel.consolidate_shard_weights of FairScale, or with "
            "python -m torch_xla.distributed.fsdp.consolidate_sharded_ckpts, and open what that writes"
        )
    arguments = tree.get("args")  # of Megatron
    noted = arguments.attributes if isinstance(arguments, Stub) else arguments
    sizes = {"mp_world_size": tree.get("mp_world_size")}  # of DeepSpeed
    if isinstance(noted, dict):
        sizes |= {name: noted.get(name) for name in _PARALLEL}
    for name, size in sizes.items():
        if type(size) is int and size > 1:
            raise CheckpointError(
                f"{_part(path)} of a model that several ranks share ({name}={size}). Merge the parts of all "
                "ranks (tools/checkpoint/convert.py of Megatron-LM, ds_to_universal.py of DeepSpeed), and "
                "open what that writes"
            )
    module = tree.get("module")
    held = module if isinstance(module, dict) else {}
    values = {key: held.get(key) for key in _shapes(tree)}
    empty = [key for key, spec in values.items() if not (isinstance(spec, TensorSpec) and spec.numel)]
    if held and empty:
        raise CheckpointError(
            f"{_part(path)} of a checkpoint of DeepSpeed's ZeRO stage 3: {len(empty)} parameters "
            f"have no values here, {escape(empty[0])} for one: they are partitioned across other files. "
            f"{_ZERO_TO_FP32}"
        )


def part_without_model(tree: object) -> str:
    """Return how a file without a model is part of a DeepSpeed checkpoint, or ``""``."""
    if not isinstance(tree, dict):
        return ""
    if "module" in tree and not tree["module"] and any(name in tree for name in _OF_DEEPSPEED):
        where = (
            f"its parameters are partitioned across the files of all ranks (ZeRO stage 3). {_ZERO_TO_FP32}"
            if _shapes(tree)
            else "with pipeline parallelism each layer has a file layer_*-model_states.pt beside it. Convert "
            "them with ds_to_universal.py of DeepSpeed, or name one of them"
        )
        return f"it is a file of a DeepSpeed checkpoint, without the model: {where}"
    state = tree.get("optimizer_state_dict")
    names = [*state, *tree] if isinstance(state, dict) else []
    if not any(name in _OF_ZERO for name in names if isinstance(name, str)):
        return ""
    return (
        "it is one rank's part of the optimizer's state of a DeepSpeed checkpoint (ZeRO), without the model: "
        f"open the folder, or its file that ends with model_states.pt. For stage 3: {_ZERO_TO_FP32}"
    )


def _shapes(tree: dict[Any, object]) -> list[str]:
    """Return the names of the parameters whose sizes DeepSpeed notes, without empty ones."""
    groups: list[object] = []
    for name in ("param_shapes", "frozen_param_shapes"):
        noted = tree.get(name)
        groups += noted if isinstance(noted, (list, tuple)) else [noted]
    return [
        key
        for group in groups
        if isinstance(group, dict)
        for key, shape in group.items()
        if isinstance(key, str) and isinstance(shape, tuple) and 0 not in shape
    ]


def _kind(value: object) -> str:
    """Return the name of a distributed tensor's class, or ``""``."""
    kind = ""
    if isinstance(value, CompositeSpec):
        kind = value.kind
    elif isinstance(value, Stub) and value.name.startswith("torch.distributed."):
        kind = value.name.rpartition(".")[2]
    return kind if kind in _TENSORS else ""


def _part(path: str, rank: object = None, world: object = None) -> str:
    """Return ``it is the part of rank 1 of 2``, with as much as is known."""
    if type(rank) is not int and (named := _IN_NAME.search(path.rpartition("/")[2])):
        rank = int(named[1])
    if type(rank) is not int:
        return "it is one rank's part"
    return f"it is the part of rank {rank}" + (f" of {world}" if type(world) is int else "")
