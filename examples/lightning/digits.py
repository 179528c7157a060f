"""A LightningModule; `python digits.py` lets a Trainer write digits.ckpt."""

from pathlib import Path

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CHECKPOINT = Path(__file__).parent / "digits.ckpt"


class Digits(lightning.LightningModule):
    def __init__(self, hidden=16, classes=10):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, images):
        return self.head(self.body(images))

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(path=CHECKPOINT):
    """One epoch on noise: a real Trainer's file, with hyper_parameters, loops and the optimizer's state."""
    lightning.seed_everything(0)
    data = TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(Digits(), DataLoader(data, batch_size=16))
    trainer.save_checkpoint(path)


if __name__ == "__main__":
    train()
