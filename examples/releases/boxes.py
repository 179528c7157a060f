"""O-Net after three releases: a box, then three landmarks, then five."""

import torch
from torch import nn


class Net(nn.Module):
    """The network as it is now. What earlier releases had, `releases.toml` says; their code is gone."""

    outputs = 14  # x1 y1 x2 y2, then x y of: left eye, right eye, nose, left and right corner of the mouth

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*convolution(3, 32, 3, padding=1), *convolution(32, 32, 3, stride=2))
        self.conv2 = nn.Sequential(*convolution(32, 64, 3), *convolution(64, 64, 3, stride=2))
        self.conv3 = nn.Sequential(*convolution(64, 64, 3), *convolution(64, 64, 2, stride=2))
        self.conv4 = nn.Sequential(*convolution(64, 128, 2))
        self.fc = nn.Linear(3 * 3 * 128, 256)
        self.prelu = nn.PReLU()
        self.out1 = nn.Linear(256, 1)
        self.out2 = nn.Linear(256, self.outputs)

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops (n, 3, 48, 48) in [-1, 1] -> how sure it is a face (n, 1), and where it is (n, outputs)."""
        x = self.conv4(self.conv3(self.conv2(self.conv1(crops))))
        x = self.prelu(self.fc(x.flatten(1)))
        return torch.sigmoid(self.out1(x)), self.out2(x)


def convolution(channels: int, to: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(channels, to, kernel, stride, padding), nn.BatchNorm2d(to), nn.PReLU()]
