"""The memory of a rehearsed pass, against torch's own tracker on the same fake tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from pytest_ckptcompat.forward.fake_cuda import Card
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.outcome import within
from pytest_ckptcompat.forward.peak_memory import PeakMemory
from pytest_ckptcompat.forward.rehearsal import rehearse


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.norm(self.a(x))))


class Attention(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def tracked(model: nn.Module, inputs: Inputs) -> int:
    card = Card("cuda:0")
    copied = card.copy(model).eval()
    with torch.no_grad(), card:
        args, kwargs = card.batch(*inputs.batch(0))
        tracker = MemTracker()
        tracker.track_external(copied, *args)
        with tracker:
            outputs = copied(*args, **kwargs)
        snapshot = tracker.get_tracker_snapshot("peak")
    assert outputs is not None
    return {str(device): kinds["Total"] for device, kinds in snapshot.items()}["cuda:0"]


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), Block(16), Block(16)), "4x3x32x32"),
        (lambda: nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 8)), "7x256"),
        (lambda: nn.LSTM(8, 16, 2), "5x3x8"),
        (lambda: nn.Embedding(100, 3), "2x7:int64<100"),
    ],
)  # fmt: skip
def test_it_is_what_torchs_tracker_counts(build, inputs):
    inputs = Inputs.parse(inputs)
    outcome = rehearse(build(), inputs)
    assert outcome.status == "rehearsed"
    assert outcome.peak_bytes == tracked(build(), inputs)


def test_attention_counts_as_the_fused_kernel():
    batch, words, width = 2, 512, 64
    outcome = rehearse(Attention(width), Inputs.parse((batch, words, width)))
    scores = batch * 4 * words * words * 4
    assert outcome.peak_bytes < scores
    assert tracked(Attention(width), Inputs.parse((batch, words, width))) > scores
    held = math.prod((batch, words, width)) * 4
    assert outcome.peak_bytes > 5 * held  # x, the three of qkv, and the output


def test_what_is_dropped_no_longer_counts():
    card, memory = Card("cuda:0"), PeakMemory()
    with card, memory:
        for _ in range(5):
            torch.empty(1000, device="cuda:0")
    assert memory.peak == 4096


def test_the_weights_are_told_and_tied_ones_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    assert "peak 265 kB (weights 262 kB)" in rehearse(Tied(), Inputs.parse((1, 256))).detail


@pytest.mark.parametrize(("most", "status"), [(None, "rehearsed"), (10**9, "rehearsed"), (1000, "failed")])
def test_a_limit(most, status):
    outcome = within(rehearse(nn.Linear(64, 64), Inputs.parse((2, 64))), most)
    assert outcome.status == status
    assert [found.rule for found in outcome.findings] == (["forward-memory"] if status == "failed" else [])
