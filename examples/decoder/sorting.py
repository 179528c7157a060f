"""What the decoder is taught, and how: ``python sorting.py`` writes sorter.pth within a minute."""

from pathlib import Path

import torch
from decoder import LENGTH, SYMBOLS, Decoder
from torch import Tensor
from torch.nn import functional

STEPS = 800


def draw(count: int, seed: int) -> Tensor:
    """Lines ``52914>12459`` of token ids (count, 2 * LENGTH + 1)."""
    generator = torch.Generator().manual_seed(seed)
    symbols = torch.randint(10, (count, LENGTH), generator=generator)
    arrow = torch.full((count, 1), SYMBOLS.index(">"))
    return torch.cat([symbols, arrow, symbols.sort(dim=1).values], dim=1)


def loss(model: Decoder, lines: Tensor) -> Tensor:
    """Of the sorted half, each symbol from those before it; in nats."""
    logits = model(lines[:, :-1])[:, LENGTH:]
    return functional.cross_entropy(logits.flatten(0, 1), lines[:, LENGTH + 1 :].flatten())


@torch.no_grad()
def accuracy(model: Decoder, lines: Tensor) -> float:
    """The share of symbols that it gets right."""
    guessed = model(lines[:, :-1])[:, LENGTH:].argmax(-1)
    return (guessed == lines[:, LENGTH + 1 :]).float().mean().item()


def train(model: Decoder, optimizer: torch.optim.Optimizer, steps: int, batch: int = 64) -> None:
    model.train()
    for step in range(steps):
        value = loss(model, draw(batch, seed=step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 200 == 199:
            print(f"step {step + 1:4d}: loss {value.item():.3f}", flush=True)
    model.eval()


def optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-3)


def main() -> None:
    torch.manual_seed(0)
    model = Decoder()
    adam = optimizer(model.parameters())
    train(model, adam, STEPS)
    print(f"{accuracy(model, draw(2000, seed=-1)):.1%} of symbols right")
    path = Path(__file__).with_name("sorter.pth")
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict(), "step": STEPS}, path)


if __name__ == "__main__":
    main()
