"""Folders as other libraries write them: the weights are found, or the choice is listed."""

from __future__ import annotations

import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pytest_ckptcompat import CheckpointError, check, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


STATE = net().state_dict()
SHAPES = {key: tuple(value.shape) for key, value in STATE.items()}


def optimizer_state() -> Any:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def put(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".safetensors":
            save_file(
                {key: value.contiguous() for key, value in content.items()}, path, metadata={"format": "pt"}
            )
        else:
            torch.save(content, path)
    return folder


TRAINER = {"optimizer.pt": optimizer_state(), "scheduler.pt": {"last_epoch": 1}, "rng_state.pth": {"cpu": torch.get_rng_state()},
           "trainer_state.json": "{}", "training_args.bin": {"lr": 1e-3}, "scaler.pt": {"scale": 1.0}}  # fmt: skip
DEEPSPEED = {"module": STATE, "param_shapes": [], "ds_version": "0.16.0"}
HALVES = (
    {key: value for key, value in STATE.items() if key.startswith("0")},
    {key: value for key, value in STATE.items() if key.startswith("1")},
)


def index(*names: str) -> str:
    return json.dumps(
        {"metadata": {}, "weight_map": {k: n for n, part in zip(names, HALVES, strict=True) for k in part}}
    )


def sharded(index_name: str, first: str, second: str) -> dict[str, Any]:
    return {first: HALVES[0], second: HALVES[1], index_name: index(first, second)}


FOLDERS: dict[str, dict[str, Any]] = {
    "save_pretrained": {"model.safetensors": STATE, "config.json": "{}", "README.md": "# a model"},
    "save_pretrained, older": {"pytorch_model.bin": STATE, "config.json": "{}"},
    "both of them": {"pytorch_model.bin": {"x": torch.ones(1)}, "model.safetensors": STATE},
    "an adapter of PEFT": {"adapter_model.safetensors": STATE, "adapter_config.json": "{}"},
    "an adapter, older": {"adapter_model.bin": STATE, "adapter_config.json": "{}"},
    "diffusers": {"diffusion_pytorch_model.safetensors": STATE, "config.json": "{}"},
    "a variant alone": {"model.fp16.safetensors": STATE},
    "a variant beside": {"model.fp16.safetensors": {"x": torch.ones(1)}, "model.safetensors": STATE},
    "the checkpoint of a Trainer": {"model.safetensors": STATE, "config.json": "{}", **TRAINER},
    "the checkpoint of a Trainer, older": {"pytorch_model.bin": STATE, **TRAINER},
    "accelerate": {"model.safetensors": STATE, "optimizer.bin": optimizer_state(), "scheduler.bin": {"last_epoch": 1},
                   "sampler.bin": {"x": 1}, "random_states_0.pkl": pickle.dumps({"step": 1})},
    "accelerate under FSDP": {"pytorch_model_fsdp.bin": STATE, "optimizer.bin": optimizer_state()},
    "DeepSpeed": {"latest": "global_step10", "zero_to_fp32.py": "#", "global_step10/mp_rank_00_model_states.pt": DEEPSPEED,
                  "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": {"x": torch.ones(3)}}},
    "DeepSpeed, a step": {"mp_rank_00_model_states.pt": DEEPSPEED, "zero_pp_rank_0_mp_rank_00_optim_states.pt": {"x": 1}},
    "accelerate under DeepSpeed": {"pytorch_model/latest": "step_3", "pytorch_model/step_3/mp_rank_00_model_states.pt": DEEPSPEED,
                                   "random_states_0.pkl": b"x"},
    "a Trainer under DeepSpeed": {"model.safetensors": STATE, "latest": "global_step5", "global_step5/x.txt": "x"},
    "Megatron": {"latest_checkpointed_iteration.txt": "10\n", "iter_0000010/mp_rank_00/model_optim_rng.pt": {"model": STATE}},
    "Megatron, an iteration": {"mp_rank_00/model_optim_rng.pt": {"model": STATE}},
    "one part of Llama": {"consolidated.00.pth": STATE, "params.json": "{}"},
    "Mistral": {"consolidated.safetensors": STATE, "params.json": "{}"},
    "an index": sharded("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "an index of a variant": sharded("model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors",
                                     "model.fp16-00002-of-00002.safetensors"),
    "an index of a variant, as diffusers": sharded("diffusion_pytorch_model.bin.index.fp16.json", "a.bin", "b.bin"),
    "an index of a variant, in front": sharded("model.fp16.safetensors.index.json", "a.safetensors", "b.safetensors"),
    "an index of another name": sharded("net.safetensors.index.json", "a.safetensors", "b.safetensors"),
    "shards without an index": {"model-00001-of-00002.safetensors": HALVES[0], "model-00002-of-00002.safetensors": HALVES[1]},
    "one file of any name": {"best.ckpt": {"state_dict": STATE}, "hparams.yaml": "x", "optimizer.pt": optimizer_state()},
    "SpeechBrain": {"model.ckpt": STATE, "optimizer.ckpt": optimizer_state(), "CKPT.yaml": "x"},
    "the last step": {"checkpoint-10/model.safetensors": STATE, "config.json": "{}"},
    "a training with diffusers": {"unet/diffusion_pytorch_model.safetensors": STATE, "optimizer.bin": optimizer_state(),
                                  "scheduler.bin": {"last_epoch": 1}, "LICENSE": "text", "logs/x": "x"},
    "a project of accelerate": {"checkpoints/checkpoint_3/model.safetensors": STATE},
    "a name with a line break": {"net\n.pth": STATE},
}  # fmt: skip


@pytest.mark.parametrize("what", FOLDERS)
def test_the_weights_are_found(tmp_path: Path, what: str) -> None:
    folder = put(tmp_path / "ckpt", FOLDERS[what])
    for path in (str(folder), f"{folder}/", folder):
        ckpt = open_checkpoint(path)
        assert {key: ckpt[key].shape for key in ckpt} == SHAPES
    report = check(net, folder)
    assert report.ok, str(report)
    assert all(torch.equal(value, STATE[key]) for key, value in ckpt.state_dict().items())


@pytest.mark.parametrize(
    "what",
    [
        "the checkpoint of a Trainer",
        "the checkpoint of a Trainer, older",
        "accelerate",
        "accelerate under FSDP",
        "SpeechBrain",
    ],
)
def test_the_state_of_the_optimizer_is_found_beside(tmp_path: Path, what: str) -> None:
    folder = put(tmp_path / "ckpt", FOLDERS[what])
    report = check(net, folder, optimizer=torch.optim.AdamW, source_model=net, device="cpu")
    assert report.ok, str(report)
    (stage,) = [stage for stage in report.stages if stage.name == "optimizer"]
    assert stage.status == "passed", str(report)
    assert not [found for found in report.findings if found.rule == "optimizer-missing"]


def test_only_an_optimizer_with_a_trainer_s_name_is_read_with_the_weights(tmp_path: Path) -> None:
    for what, key in (("accelerate", "model"), ("SpeechBrain", "")):
        assert open_checkpoint(put(tmp_path / what, FOLDERS[what])).state_dict_key == key


def test_an_optimizer_that_can_not_be_read_leaves_the_weights(tmp_path: Path) -> None:
    folder = put(tmp_path / "ckpt", {"model.safetensors": STATE, "optimizer.pt": b"not a checkpoint at all"})
    report = check(net, folder)
    assert report.ok
    assert "optimizer.pt was not read" in str(report)


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "several models of accelerate": (
        {"model.safetensors": STATE, "model_1.safetensors": STATE},
        r"2 checkpoints: model\.safetensors, model_1\.safetensors\. Name one",
    ),
    "an adapter beside a model": (
        {"model.safetensors": STATE, "adapter_model.safetensors": STATE},
        r"2 checkpoints: .*adapter_model\.safetensors.* Name one",
    ),
    "two variants": (
        {"model.fp16.safetensors": STATE, "model.bf16.safetensors": STATE},
        r"model\.bf16\.safetensors, model\.fp16\.safetensors",
    ),
    "parts of Llama": (
        {f"consolidated.0{n}.pth": {"w": torch.ones(2)} for n in range(3)},
        r"3 model-parallel parts of one model.*consolidated\.00\.pth.*convert_llama_weights_to_hf",
    ),
    "tensor-parallel parts of DeepSpeed": (
        {f"mp_rank_0{n}_model_states.pt": DEEPSPEED for n in range(2)},
        r"2 tensor-parallel parts of a DeepSpeed checkpoint: mp_rank_00_model_states\.pt",
    ),
    "ZeRO stage 3": (
        {f"zero_pp_rank_{n}_mp_rank_00_model_states.pt": {"module": {}} for n in range(2)},
        r"ZeRO stage 3: .*zero_to_fp32\.py",
    ),
    "ZeRO stage 3, from above": (
        {"latest": "s1", "s1/zero_pp_rank_0_mp_rank_00_model_states.pt": {"module": {}}},
        r"ZeRO stage 3: .*zero_to_fp32\.py",
    ),
    "a pipeline of DeepSpeed": (
        {f"layer_0{n}-model_00-model_states.pt": STATE for n in range(2)},
        r"layers of a DeepSpeed pipeline.*ds_to_universal",
    ),
    "ranks of Megatron": (
        {f"mp_rank_0{n}/model_optim_rng.pt": {"model": STATE} for n in range(2)},
        r"2 model-parallel parts of a Megatron checkpoint: mp_rank_00, mp_rank_01",
    ),
    "a pipeline of diffusers": (
        {
            "model_index.json": "{}",
            "unet/diffusion_pytorch_model.safetensors": STATE,
            "vae/model.fp16.safetensors": STATE,
            "scheduler/scheduler_config.json": "{}",
        },
        r"a pipeline of diffusers, with a folder for each model: name one of unet, vae$",
    ),
    "several steps": (
        {f"checkpoint-{n}/model.safetensors": STATE for n in (5, 10)},
        r"2 checkpoints: checkpoint-10, checkpoint-5\. Name one",
    ),
    "several steps of accelerate's project": (
        {f"checkpoints/checkpoint_{n}/model.safetensors": STATE for n in (0, 1)},
        r"checkpoints: it holds 2 checkpoints: checkpoint_1, checkpoint_0\. Name one",
    ),
    "several models of a training with diffusers": (
        {f"{n}/diffusion_pytorch_model.safetensors": STATE for n in ("unet", "unet_ema")},
        r"2 checkpoints: unet, unet_ema\. Name one",
    ),
    "several files": ({"a.pth": STATE, "b.pth": STATE}, r"2 checkpoints: a\.pth, b\.pth\. Name one"),
    "a shard that is missing": (
        {"model-00001-of-00003.safetensors": HALVES[0], "model-00003-of-00003.safetensors": HALVES[1]},
        r"2 of 3 shards, and no index of them: .*Copy the rest",
    ),
    "shards that are none": (
        {"model-00001-of-00002.safetensors": STATE, "model-00002-of-00002.safetensors": STATE},
        r"\w+ is in model-00001-of-00002\.safetensors and in model-00002-of-00002\.safetensors",
    ),
    "a pointer that leads nowhere": ({"latest": "../../etc"}, r"holds no checkpoint: it has latest\."),
    "a pointer that is not a text": ({"latest": b"\xff\xfe", "x": "x"}, r"holds no checkpoint"),
    "a SavedModel": ({"saved_model.pb": b"x", "variables/a": "x"}, r"a TensorFlow SavedModel: .*from_tf"),
    "Orbax": (
        {"_CHECKPOINT_METADATA": "{}", "manifest.ocdbt": "x"},
        r"an Orbax checkpoint of JAX: .*from_flax",
    ),
    "a Core ML package": ({"Manifest.json": "{}", "Data/x": "x"}, r"a Core ML model"),
    "an OpenVINO model": ({"openvino_model.xml": "x", "config.json": "{}"}, r"an OpenVINO model"),
    "ONNX": ({"model.onnx": b"x", "config.json": "{}"}, r"an ONNX model"),
}


@pytest.mark.parametrize("what", CHOICES)
def test_the_choice_is_listed(tmp_path: Path, what: str) -> None:
    files, message = CHOICES[what]
    folder = put(tmp_path / "ckpt", files)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(folder)
    assert str(folder) in str(raised.value)


def test_an_index_that_lacks_a_key(tmp_path: Path) -> None:
    """Who loads shard by shard loads it all the same."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    short = json.loads(index(*names))
    del short["weight_map"]["0.bias"]
    folder = put(
        tmp_path,
        {names[0]: HALVES[0], names[1]: HALVES[1], "model.safetensors.index.json": json.dumps(short)},
    )
    report = check(net, folder)
    assert report.ok, str(report)
    assert "the index lacks 0.bias, which model-00001-of-00002.safetensors has" in " ".join(
        str(report).split()
    )


def test_a_key_in_two_shards_of_an_index(tmp_path: Path) -> None:
    """Who loads shard by shard may load either."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = {names[0]: HALVES[0], names[1]: {**HALVES[1], "0.bias": torch.ones(2)}}
    folder = put(tmp_path, {**files, "model.safetensors.index.json": index(*names)})
    report = check(net, folder)
    assert f"0.bias, of which the index names another shard, {names[1]} has too" in report.stages[0].detail


@pytest.mark.parametrize(
    ("files", "named", "remark"),
    [
        (FOLDERS["an index"], "model-00001-of-00002.safetensors", "shard 1 of 2: name its folder for all of them"),
        ({f"consolidated.0{n}.pth": STATE for n in range(2)}, "consolidated.00.pth", "one of several model-parallel parts"),
        ({f"consolidated.0{n}.pth": STATE for n in range(2)}, "consolidated.01.pth", "one of several model-parallel parts"),
        (FOLDERS["one part of Llama"], "consolidated.00.pth", ""),
        ({"net-00001-of-00001.safetensors": STATE}, "net-00001-of-00001.safetensors", ""),
    ],
)  # fmt: skip
def test_a_file_that_is_one_of_several_is_said_to_be(
    tmp_path: Path, files: dict[str, Any], named: str, remark: str
) -> None:
    report = check(net, put(tmp_path, files) / named, device="none")
    detail = report.stages[0].detail
    assert detail.endswith(remark)
    assert ("one of" in detail or "shard 1" in detail) == bool(remark)


def test_a_folder_whose_name_is_a_part_of_a_word_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "ck", CHOICES["several files"][0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^ck: it holds 2 checkpoints"):
        open_checkpoint("ck")


def test_an_unpacked_archive(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"state_dict": STATE, "epoch": 3}, path)
    zipfile.ZipFile(path).extractall(tmp_path / "here")
    (inner,) = (tmp_path / "here").iterdir()
    ckpt = open_checkpoint(inner)
    assert {key: ckpt[key].shape for key in ckpt} == SHAPES
    assert all(torch.equal(value, STATE[key]) for key, value in ckpt.state_dict().items())
    assert check(net, inner).ok
    (inner / "data" / "0").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="storage 0 has 1 bytes, and needs 24"):
        open_checkpoint(inner)


def test_a_path_of_bytes(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pth")
    path: Any = str(tmp_path / "net.pth").encode()
    assert list(open_checkpoint(path)) == list(STATE)
    assert check(net, path).ok
