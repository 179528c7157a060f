"""A file of one rank is never judged as if it were the model."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rank_files import dtensors, rank_of, sharded_tensor
from torch import nn

from pytest_ckptcompat import CheckpointError, check, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


RANK_IS_KEPT = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 10)
"""Whether a mesh is pickled with the rank that wrote it; older ones were not."""


def local(world: int) -> dict[str, torch.Tensor]:
    """A rank's part of ``nn.Linear(4, 6)``."""
    return {"weight": torch.zeros(6 // world, 4), "bias": torch.zeros(6 // world)}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    report = check(lambda: nn.Linear(4, 6), str(path), device="none")
    assert not report.ok
    assert str(raised.value) in report.findings[0].message
    return str(raised.value)


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_dtensors(tmp_path: Path, rank: int, world: int, wrapped: bool) -> None:
    """torch refuses to load them into a plain model; their shapes are those of the whole model."""
    path = tmp_path / "part.pt"
    with rank_of(rank, world):
        state: Any = dtensors(world, **local(world))
        with pytest.raises(RuntimeError, match="DTensor"):
            nn.Linear(4, 6).load_state_dict(state)
        torch.save({"model": state, "step": 3} if wrapped else state, path)
    told = refusal(path)
    assert "of a distributed model: its tensors are DTensors" in told
    if RANK_IS_KEPT:
        assert f"the part of rank {rank} of {world}" in told
    assert "full_state_dict=True" in told


def test_one_dtensor_among_tensors(tmp_path: Path) -> None:
    path = tmp_path / "part.pt"
    with rank_of(0, 2):
        torch.save({"weight": torch.zeros(6, 4), **dtensors(2, bias=torch.zeros(3))}, path)
    assert "1 of its 2 entries are DTensors" in refusal(path)


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_tensors(tmp_path: Path, rank: int) -> None:
    path = tmp_path / "part.pt"
    with rank_of(rank, 2), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"weight": sharded_tensor(rank, 2, torch.zeros(3, 4)), "bias": torch.zeros(6)}, path)
    assert f"the part of rank {rank} of a distributed model" in refusal(path)


def test_dtensors_of_the_optimizer_are_no_part_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    with rank_of(0, 2):
        state = dtensors(2, exp_avg=torch.zeros(3, 4))
        torch.save(
            {"model": nn.Linear(4, 6).state_dict(), "optim": {"state": {0: state}, "param_groups": []}}, path
        )
    assert check(lambda: nn.Linear(4, 6), str(path), device="none").ok


@pytest.mark.parametrize(
    "key", ["_flat_param", "flat_param", "_fpw_module.flat_param", "_fsdp_wrapped_module.layer.flat_param_0"]
)
def test_flattened_parameters(tmp_path: Path, key: str) -> None:
    path = tmp_path / "model_rank_3.pt"
    torch.save({key: torch.zeros(30)}, path)
    told = refusal(path)
    assert "the part of rank 3 of a model under FSDP" in told
    assert key in told


@pytest.mark.parametrize("grouped", [False, True])
def test_zero_stage_3(tmp_path: Path, grouped: bool) -> None:
    """DeepSpeed's file of the model has no values; the shapes that it should have stand beside them."""
    path = tmp_path / "zero_pp_rank_1_mp_rank_00_model_states.pt"
    whole = nn.Linear(4, 6).state_dict()
    shapes = {key: value.shape for key, value in whole.items()}
    file = {"module": {key: torch.zeros(0) for key in whole}, "param_shapes": [shapes] if grouped else shapes}
    torch.save({**file, "ds_version": "0.16.0"}, path)
    told = refusal(path)
    assert "ZeRO stage 3: 2 parameters have no values here, weight for one" in told
    assert "zero_to_fp32.py" in told


@pytest.mark.parametrize(
    "beside",
    [
        {"frozen_param_shapes": {"weight": torch.Size((6, 4))}, "param_shapes": [{}]},
        {"param_shapes": [{"other": torch.Size((6, 4))}], "buffer_names": ["weight"]},
    ],
)
def test_zero_stage_3_of_frozen_and_of_missing_parameters(tmp_path: Path, beside: dict[str, Any]) -> None:
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    frozen = {"frozen_param_fragments": {"weight": torch.zeros(12)}}
    torch.save({"module": {"weight": torch.zeros(0)}, "ds_version": "0.16.0", **beside, **frozen}, path)
    assert "ZeRO stage 3: 1 parameters have no values here" in refusal(path)


@pytest.mark.parametrize("module", [None, {}])
@pytest.mark.parametrize(
    ("shapes", "words"), [([], "layer_*-model_states.pt"), ([{"w": torch.Size((2,))}], "ZeRO stage 3")]
)
def test_files_of_deepspeed_without_a_model(tmp_path: Path, module: Any, shapes: Any, words: str) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": module, "param_shapes": shapes, "ds_version": "0.16.0"}, path)
    assert words in refusal(path)


@pytest.mark.parametrize("size", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
def test_model_parallel_parts_of_megatron(tmp_path: Path, size: str) -> None:
    """Their norms have the shapes of the whole model, so a small model would seem to fit."""
    path = tmp_path / "model_optim_rng.pt"
    state = nn.Linear(4, 6).state_dict()
    torch.save({"model": state, "args": argparse.Namespace(**{size: 2}), "iteration": 7}, path)
    assert f"a model that several ranks share ({size}=2)" in refusal(path)
    torch.save({"model": state, "args": argparse.Namespace(**{size: 1}), "iteration": 7}, path)
    assert check(lambda: nn.Linear(4, 6), path, device="none").ok


def test_model_parallel_parts_of_deepspeed(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_01_model_states.pt"
    torch.save({"module": nn.Linear(4, 6).state_dict(), "mp_world_size": 2}, path)
    assert "the part of rank 1 of a model that several ranks share (mp_world_size=2)" in refusal(path)


@pytest.mark.parametrize("metadata", [{"world_size": 2, "rank": 1, "shard_info": {}}, {"param_metadata": []}])
def test_parts_with_shard_metadata(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = tmp_path / "rank-1-of-2.pth"
    torch.save({"model": {"_fsdp_shard.weight": torch.zeros(12)}, "shard_metadata": metadata}, path)
    assert "of a model under FSDP of FairScale or torch_xla" in refusal(path)


def test_the_optimizer_of_one_rank(tmp_path: Path) -> None:
    path = tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    state = {"zero_stage": 2, "partition_count": 2, "single_partition_of_fp32_groups": [torch.zeros(9)]}
    torch.save({"optimizer_state_dict": state, "ds_version": "0.16.0"}, path)
    told = refusal(path)
    assert "one rank's part of the optimizer's state of a DeepSpeed checkpoint (ZeRO)" in told
    assert "model_states.pt" in told


def test_zero_below_stage_3_is_the_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    whole = nn.Linear(4, 6).state_dict()
    shapes = {key: value.shape for key, value in whole.items()}
    torch.save({"module": whole, "param_shapes": [shapes], "ds_version": "0.16.0"}, path)
    assert check(lambda: nn.Linear(4, 6), str(path), device="none").ok


def test_parameters_without_elements_are_not_partitioned(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(
        {"module": {"empty": torch.zeros(0, 3)}, "param_shapes": [{"empty": torch.Size((0, 3))}]}, path
    )
    assert open_checkpoint(path)["empty"].shape == (0, 3)
