"""Values that can't be read are one reading error, whichever stage wanted them: never the model's fault."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn, optim

from pytest_ckptcompat import CheckpointError, Recipe, check, tile
from pytest_ckptcompat.checkpoint.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Net(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 3), nn.Linear(3, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def grown() -> Net:
    return Net(6)


class Looking(Net):
    """Its own loader looks at values, and raises an error of its own where it can't."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        try:
            if state_dict["first.bias"].sum() > 1e9:
                raise ValueError("too large")
        except CheckpointError as error:
            raise RuntimeError("it is not a checkpoint of mine") from error
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Net()
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


WAYS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (Net, {}),
    "grown": (grown, {"recipe": Recipe(tile("last.*", dim=0)), "source_model": Net, "optimizer": optim.Adam}),
    "looking": (Looking, {"optimizer": optim.Adam}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_read_may_fail(saved: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the second, ... of all reads of a check fails: always one finding, and the model is not blamed."""
    model, arguments = WAYS[way]
    storages = Values._storages
    ended: set[str] = set()
    for failing in itertools.count(1):
        reads = 0

        def failing_once(*given: Any, failing: int = failing) -> Any:
            nonlocal reads
            reads += 1
            if reads == failing:
                given[0]._contents.files.failure = CheckpointError("net.pth: it broke off")
                raise CheckpointError("net.pth: it broke off")
            return storages(*given)

        monkeypatch.setattr(Values, "_storages", failing_once)
        report = check(model, saved, inputs=(2, 8), device="cpu", **arguments)
        if reads < failing:
            assert report.ok, report.verdict
            break
        assert [(found.rule, found.message) for found in report.findings] == [
            ("no-checkpoint", "net.pth: it broke off")
        ]
        (failed,) = (stage for stage in report.stages if stage.status == "failed")
        assert failed.detail == "no-checkpoint"
        ended.add(failed.name)
    assert (
        ended
        == {
            "plain": {"load"},
            "grown": {"load", "optimizer"},
            "looking": {"compare", "load", "optimizer"},
        }[way]
    )


def test_a_later_check_of_the_same_file_is_not_blamed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_ckptcompat import open_checkpoint

    ckpt = open_checkpoint(saved)
    ckpt.contents.files.failure = CheckpointError("it broke off, some time ago")
    assert check(Net, ckpt, inputs=(2, 8), device="cpu").ok
