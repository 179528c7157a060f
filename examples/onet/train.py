"""Trains NetV1 on synthetic faces and writes net.pth: ``python train.py``, some minutes on two cores.

The same machine, torch and number of threads give the same bytes.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from faces import Crops, draw
from onet import Net, NetV1
from torch import Tensor
from torch.nn import functional

BATCH = 64


class Score(NamedTuple):
    accuracy: float  # share of crops told right, faces and others
    iou: float  # mean overlap of true and predicted boxes, over the faces


def loss(net: Net, crops: Crops) -> Tensor:
    """Is it a face; and if it is, where (as many of the numbers as the network gives)."""
    confidence, places = net(crops.images)
    misplaced = (places - crops.places[:, : net.outputs]) ** 2 * crops.is_face
    recognition = functional.binary_cross_entropy(confidence, crops.is_face)
    return recognition + 10 * misplaced.sum() / (crops.is_face.sum() * net.outputs)


def train(net: Net, steps: int, seed: int = 0, lr: float = 2e-3) -> Net:
    """Adam on freshly drawn crops, no crop seen twice; the learning rate falls to zero along a cosine."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for step in range(steps):
        value = loss(net, draw(BATCH, seed=seed * 1_000_000 + step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1:4d}: loss {value.item():.3f}", flush=True)
    return net.eval()


@torch.no_grad()
def evaluate(net: Net, crops: Crops) -> Score:
    parts = [net(images) for images in crops.images.split(250)]  # a little at a time, for the memory's sake
    confidence, places = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
    right = (confidence > 0.5) == (crops.is_face > 0.5)
    faces = crops.is_face.flatten() > 0.5
    return Score(
        right.float().mean().item(), overlap(places[faces, :4], crops.places[faces, :4]).mean().item()
    )


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each pair of boxes x1 y1 x2 y2: (n, 4) and (n, 4) -> (n,)."""
    start = torch.maximum(boxes[:, :2], others[:, :2])
    end = torch.minimum(boxes[:, 2:], others[:, 2:])
    both = area(torch.cat([start, end], 1))
    return both / (area(boxes) + area(others) - both)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("net.pth"))
    options = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    net = train(NetV1(), options.steps, options.seed)
    torch.save(net.state_dict(), options.out)
    accuracy, iou = evaluate(net, draw(2000, seed=-1))  # seeds of training are never negative
    print(f"{options.out}: on 2000 new crops, accuracy {accuracy:.1%}, box IoU {iou:.2f}")


if __name__ == "__main__":
    main()
