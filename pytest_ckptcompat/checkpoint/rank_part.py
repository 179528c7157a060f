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

    Args:
        entries: of the state dict.
        path: of the checkpoint: its name may tell the rank.

    Raises:
        CheckpointError: the state dict is one rank's part. The message says which rank's, and what to do.
    """
    parts = [value for value in entries.values() if type(value) is not TensorSpec and _is_part(value)]
    if parts:
        kind = next(iter(_kind(each) for each in parts))
        many = (
            f"{len(parts)} of its {len(entries)} entries are"
            if len(parts) < len(entries)
            else "its tensors are"
        )
        raise CheckpointError(f"{_part(parts[0], path)} of a distributed model: {many} {kind}s. {_GATHER}")
    if flat := next((key for key in entries if "flat_param" in key and _is_flat(key, entries[key])), None):
        raise CheckpointError(
            f"{_part(None, path)} of a model under FSDP: {escape(flat)} is several parameters. {_GATHER}"
        )


def check_file(tree: object, path: str) -> None:
    """Refuse a file that says beside its state dict that it is one rank's part; see `check_whole`."""
    if isinstance(tree, dict):
        _check_shards(tree, path)
        _check_parallel(tree, path)
        _check_zero(tree, path)


def part_without_model(tree: object) -> str:
    """Say that a file without a model is a part of a DeepSpeed checkpoint; ``""`` if it is not."""
    if not isinstance(tree, dict):
        return ""
    if "module" in tree and not tree["module"] and any(name in tree for name in _OF_DEEPSPEED):
        where = (
            f"its parameters lie partitioned in the files of all ranks (ZeRO stage 3). {_ZERO_TO_FP32}"
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


def _check_shards(tree: dict[Any, object], path: str) -> None:
    """FairScale and torch_xla put ``shard_metadata`` beside the state dict of a rank."""
    metadata = tree.get("shard_metadata")
    if not isinstance(metadata, dict) or metadata.get("world_size") == 1:
        return
    raise CheckpointError(
        f"{_part(None, path, metadata.get('rank'), metadata.get('world_size'))} of a model under FSDP of "
        "FairScale or torch_xla (it has 'shard_metadata'). Put the parts of all ranks together with "
        "FullyShardedDataParallel.consolidate_shard_weights of FairScale, or with "
        "python -m torch_xla.distributed.fsdp.consolidate_sharded_ckpts, and open what that writes"
    )


def _check_parallel(tree: dict[Any, object], path: str) -> None:
    """Megatron and DeepSpeed note how many ranks share one model."""
    arguments = tree.get("args")
    noted: object = arguments.attributes if isinstance(arguments, Stub) else arguments
    sizes = [("mp_world_size", tree.get("mp_world_size"))]
    if isinstance(noted, dict):
        sizes += [(name, noted.get(name)) for name in _PARALLEL]
    shared = next((f"{name}={size}" for name, size in sizes if type(size) is int and size > 1), "")
    if shared:
        raise CheckpointError(
            f"{_part(None, path)} of a model that several ranks share ({shared}). Merge the parts of all "
            "ranks (tools/checkpoint/convert.py of Megatron-LM, ds_to_universal.py of DeepSpeed), and open "
            "what that writes"
        )


def _check_zero(tree: dict[Any, object], path: str) -> None:
    """Refuse a model file of DeepSpeed's ZeRO stage 3, which has empty parameters and their real sizes."""
    module = tree.get("module")
    held = module if isinstance(module, dict) else {}
    values = {key: held.get(key) for key in _shapes(tree)}
    empty = [key for key, spec in values.items() if not (isinstance(spec, TensorSpec) and spec.numel)]
    if held and empty:
        raise CheckpointError(
            f"{_part(None, path)} of a checkpoint of DeepSpeed's ZeRO stage 3: {len(empty)} parameters "
            f"have no values here, {escape(empty[0])} for one, and lie partitioned in other files. "
            f"{_ZERO_TO_FP32}"
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


def _is_flat(key: str, value: object) -> bool:
    return bool(_FLAT.fullmatch(key)) and isinstance(value, TensorSpec) and len(value.shape) == 1


def _is_part(value: object) -> bool:
    if isinstance(value, CompositeSpec):
        return value.kind in _TENSORS
    return (
        isinstance(value, Stub) and _kind(value) in _TENSORS and value.name.startswith("torch.distributed.")
    )


def _kind(part: object) -> str:
    if isinstance(part, CompositeSpec):
        return part.kind
    return part.name.rpartition(".")[2] if isinstance(part, Stub) else ""


def _part(part: object, path: str, rank: object = None, world: object = None) -> str:
    """Return ``it is the part of rank 1 of 2``, with as much as is known."""
    if isinstance(part, CompositeSpec):
        rank, world = part.parts
    if type(rank) is not int and (named := _IN_NAME.search(path.rpartition("/")[2])):
        rank = int(named[1])
    if type(rank) is not int:
        return "it is one rank's part"
    return f"it is the part of rank {rank}" + (f" of {world}" if type(world) is int else "")
