"""What one rank of a distributed training wrote by itself: a part of the model, told from the whole."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import CompositeSpec, TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Stub

if TYPE_CHECKING:
    from collections.abc import Mapping

_FLAT = re.compile(r"(.*\.)?(_flat_param|flat_param_\d+)")
_IN_NAME = re.compile(r"rank_?(\d+)")
_TENSORS = ("DTensor", "ShardedTensor")

_OF_ZERO = ("zero_stage", "partition_count", "ds_version")

_GATHER = (
    "Gather the whole state dict before saving: torch.distributed.checkpoint.state_dict.get_model_state_dict("
    "model, options=StateDictOptions(full_state_dict=True)); or save with torch.distributed.checkpoint, and "
    "open its folder"
)
_ZERO_TO_FP32 = (
    "Run 'python zero_to_fp32.py . OUTPUT' in the folder of the checkpoint, which DeepSpeed puts there, and "
    "open what it writes; or train with stage3_gather_16bit_weights_on_model_save"
)


def check_whole(entries: Mapping[str, object], tree: object, path: str) -> None:
    """Refuse a state dict that holds one rank's part of a model.

    Args:
        entries: of the state dict.
        tree: the checkpoint's outer object.
        path: of the checkpoint: its name may tell the rank.

    Raises:
        CheckpointError: it does: of what kind, which rank's, and what to open or to call instead.
    """
    parts = [value for value in entries.values() if type(value) is not TensorSpec and _is_part(value)]
    if parts:
        kind = next(iter(_kind(each) for each in parts))
        many = (
            f"{len(parts)} of its {len(entries)} entries are"
            if len(parts) < len(entries)
            else "its tensors are"
        )
        raise CheckpointError(f"{_whose(parts[0], path)} of a distributed model: {many} {kind}s. {_GATHER}")
    if flat := next((key for key in entries if "flat_param" in key and _FLAT.fullmatch(key)), None):
        raise CheckpointError(
            f"{_whose(None, path)} of a model under FSDP: {escape(flat)} is several parameters. {_GATHER}"
        )
    _check_zero(entries, tree, path)


def part_of_optimizer(tree: object) -> str:
    """Say that a file without a model is one rank's part of an optimizer under ZeRO; ``""`` if it is not."""
    if not isinstance(tree, dict):
        return ""
    state = tree.get("optimizer_state_dict")
    names = [*state, *tree] if isinstance(state, dict) else []
    if not any(name in _OF_ZERO for name in names if isinstance(name, str)):
        return ""
    return (
        "it is one rank's part of the optimizer's state of a DeepSpeed checkpoint (ZeRO), without the model: "
        f"open the folder, or its file that ends with model_states.pt. For stage 3: {_ZERO_TO_FP32}"
    )


def _check_zero(entries: Mapping[str, object], tree: object, path: str) -> None:
    """ZeRO stage 3 of DeepSpeed leaves parameters empty in the model's file, and notes their sizes there."""
    groups = tree.get("param_shapes") if isinstance(tree, dict) else None
    shapes = {
        key: shape
        for group in (groups if isinstance(groups, (list, tuple)) else [groups])
        if isinstance(group, dict)
        for key, shape in group.items()
        if isinstance(key, str) and isinstance(shape, tuple)
    }
    empty = [
        key
        for key, spec in entries.items()
        if isinstance(spec, TensorSpec) and not spec.numel and 0 not in shapes.get(key, (0,))
    ]
    if empty:
        raise CheckpointError(
            f"{_whose(None, path)} of a checkpoint of DeepSpeed's ZeRO stage 3: {len(empty)} parameters "
            f"have no values here, {escape(empty[0])} for one, and lie partitioned in other files. "
            f"{_ZERO_TO_FP32}"
        )


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


def _whose(part: object, path: str) -> str:
    """``it is the part of rank 1 of 2``."""
    rank, world = part.parts if isinstance(part, CompositeSpec) else (None, None)
    if rank is None and (named := _IN_NAME.search(path.rpartition("/")[2])):
        rank = int(named[1])
    if rank is None:
        return "it is one rank's part"
    return f"it is the part of rank {rank}" + (f" of {world}" if world else "")
