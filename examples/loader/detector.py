"""A detector, and the function by which its users load it."""

from pathlib import Path

import torch
from torch import nn

CHECKPOINT = Path(__file__).parent / "detector.pth"


class Detector(nn.Module):
    """A backbone with running statistics, and a head of boxes."""

    def __init__(self, boxes: int = 4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, boxes)

    def forward(self, images):
        return self.head(self.backbone(images).mean((2, 3)))


def load_detector(path: str) -> Detector:
    """Load the checkpoint of a training run, which saved a model wrapped by DistributedDataParallel."""
    state_dict = torch.load(path, weights_only=True)["state_dict"]
    model = Detector()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state_dict.items()})
    return model.eval()


def load_detector_before(path: str) -> Detector:
    """The same with the classic bug: no key has the right name, and ``strict=False`` is silent about it."""
    model = Detector()
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=False)
    return model.eval()
