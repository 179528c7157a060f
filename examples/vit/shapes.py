"""Pictures of shapes, and the training: ``python shapes.py`` writes vit.pth within a minute."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from vit import ViT

STEPS = 600


class Pictures(NamedTuple):
    images: Tensor  # (n, channels, size, size), about in [-1, 1]
    labels: Tensor  # (n,), indices into vit.SHAPES


def draw(count: int, seed: int, size: int = 32, channels: int = 3) -> Pictures:
    """A bright shape of any colour somewhere on a dark noisy ground; channels beyond the third are as red."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(least: float, most: float, *shape: int) -> Tensor:
        return least + (most - least) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(3, (count,), generator=generator)
    radius = uniform(0.3, 0.5, 1, 1)
    centre = uniform(-0.4, 0.4, 2, 1, 1)
    axis = torch.linspace(-1, 1, size)
    x, y = (axis[None, None, :] - centre[:, 0]).abs(), (axis[None, :, None] - centre[:, 1]).abs()
    square = torch.maximum(x, y) < 0.85 * radius
    disc = x**2 + y**2 < radius**2
    cross = (torch.minimum(x, y) < 0.3 * radius) & (torch.maximum(x, y) < radius)
    inside = torch.stack([square, disc, cross])[labels, torch.arange(count)][:, None]
    colour = uniform(0.3, 1.0, 3, 1, 1)
    ground = uniform(-1.0, -0.6, 3, 1, 1) + 0.1 * torch.randn(count, 3, size, size, generator=generator)
    images = torch.where(inside, colour, ground)
    return Pictures(images[:, [0, 1, 2, *[0] * (channels - 3)]], labels)


@torch.no_grad()
def accuracy(model: ViT, pictures: Pictures) -> float:
    """The share of pictures that it names right."""
    return (model(pictures.images).argmax(-1) == pictures.labels).float().mean().item()


def train(model: ViT, steps: int, size: int = 32, channels: int = 3, lr: float = 2e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        images, labels = draw(64, step, size, channels)
        value = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1:4d}: loss {value.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    torch.manual_seed(0)
    model = ViT()
    train(model, STEPS)
    print(f"{accuracy(model, draw(1000, seed=-1)):.1%} of pictures named right")
    torch.save(model.state_dict(), Path(__file__).with_name("vit.pth"))


if __name__ == "__main__":
    main()
