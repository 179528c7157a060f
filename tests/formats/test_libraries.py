"""Checkpoints that other libraries write, where these happen to be installed: the table of docs/checkpoints.md, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_ckptcompat import check, open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")


def assert_gives(path: Path, module: nn.Module, key: str | None = None) -> None:
    """The table and the values are those of the module's own state dict."""
    ckpt = open_checkpoint(path, key)
    wanted = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    found = ckpt.state_dict()
    untied = {key for key in wanted if key not in found}  # safetensors keeps one name of tied tensors
    assert not set(found) - set(wanted)
    assert all(
        any(wanted[key] is wanted[other] or torch.equal(wanted[key], wanted[other]) for other in found)
        for key in untied
    )
    assert all(torch.equal(found[name].cpu(), wanted[name].cpu()) for name in found)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)))


def bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


def test_transformers(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "one")
    assert_gives(tmp_path / "one", model)
    assert check(bert, tmp_path / "one", device="none").ok
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert_gives(tmp_path / "shards", model)
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    assert_gives(tmp_path / "variant", model)


def test_transformers_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.arange(5) + row, "labels": torch.tensor(row % 2)}

    model = bert()
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(model, arguments, train_dataset=Rows()).train()
    folder = tmp_path / "checkpoint-2"
    assert {"model.safetensors", "optimizer.pt"} <= {each.name for each in folder.iterdir()}
    assert open_checkpoint(folder).state_dict_key == "model"
    assert check(bert, folder, device="none").ok
    assert check(bert, tmp_path, device="none").ok, "the folder above has one step"


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, _ = accelerator.prepare(*trained())
    accelerator.save_state(str(tmp_path / "state"))
    report = check(Tiny, tmp_path / "state", optimizer=torch.optim.AdamW, source_model=Tiny, device="cpu")
    assert report.ok, str(report)
    assert not [found for found in report.findings if found.rule == "optimizer-missing"]
    accelerator.save_state(str(tmp_path / "older"), safe_serialization=False)
    assert check(Tiny, tmp_path / "older", device="none").ok
    accelerator.save_model(model, str(tmp_path / "model"), max_shard_size="1KB")
    assert check(Tiny, tmp_path / "model", device="none").ok


def test_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Tiny(), peft.LoraConfig(target_modules=["body", "head"], r=2))
    model.save_pretrained(str(tmp_path / "adapter"))
    wanted = peft.get_peft_model_state_dict(model)
    ckpt = open_checkpoint(tmp_path / "adapter")
    assert {key: ckpt[key].shape for key in ckpt} == {
        key: tuple(value.shape) for key, value in wanted.items()
    }
    merged = model.merge_and_unload()
    torch.save(merged.state_dict(), tmp_path / "merged.pth")
    assert check(Tiny, tmp_path / "merged.pth", device="none").ok


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = Tiny()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.net(batch[0]).sum()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    module = Module()
    trainer.fit(module, rows)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert_gives(tmp_path / "last.ckpt", module)
    report = check(Module, tmp_path / "last.ckpt", optimizer=torch.optim.AdamW, device="cpu")
    assert report.ok, str(report)
    assert check(Module, tmp_path / "checkpoints", device="none").ok


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    def make() -> nn.Module:
        return timm.create_model("resnet10t", num_classes=3)  # type: ignore[no-any-return]

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        model,
        optimizer,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        model_ema=ModelEmaV3(model),
    )
    saver.save_checkpoint(0, metric=0.5)
    (path,) = tmp_path.glob("checkpoint-0.pth.tar")
    assert check(make, path, device="none", state_dict_key="state_dict").ok
    assert "'state_dict' (" in str(check(make, path, device="none")), (
        "the average of the weights fits as well"
    )


def test_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")

    def make() -> Any:
        return diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    model = make()
    for name, how in {
        "one": {},
        "variant": {"variant": "fp16"},
        "older": {"safe_serialization": False},
        "shards": {"max_shard_size": "20KB"},
        "shards of a variant": {"max_shard_size": "20KB", "variant": "fp16"},
    }.items():
        model.save_pretrained(tmp_path / name, **how)
        assert_gives(tmp_path / name, model)
        assert check(make, tmp_path / name, device="none").ok
    pipeline = diffusers.DDPMPipeline(model, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=r"a pipeline of diffusers.* name one of .*unet"):
        open_checkpoint(tmp_path / "pipeline")
    assert_gives(tmp_path / "pipeline" / "unet", model)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model = Tiny()
    save_model(model, str(tmp_path / "net.safetensors"))
    assert_gives(tmp_path / "net.safetensors", model)
