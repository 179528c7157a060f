"""Of several state dicts in a file, the one that fits the model is checked, and the report says so."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_ckptcompat import Recipe, check, open_checkpoint, tile

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_ckptcompat.report.report import Report


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def both() -> nn.Module:
    return nn.ModuleDict({"encoder": small(), "decoder": nn.ModuleDict({"layers": large()})})


S, L = small().state_dict(), large().state_dict()
OTHER = OrderedDict({"head.weight": torch.ones(7, 7)})

FILES: dict[str, tuple[Any, Any, str]] = {
    "generator and discriminator": ({"generator": S, "discriminator": L}, large, "'discriminator'"),
    "usual names": ({"model": S, "ema": L}, large, "'ema'"),
    "one usual name": ({"model": S, "backup": L}, large, "'backup'"),
    "parts of unequal depth": ({"encoder": S, "decoder": {"layers": L}}, large, "'decoder.layers'"),
    "all parts": ({"encoder": S, "decoder": {"layers": L}, "epoch": 3}, both, "''"),
    "all parts, wrapped": ({"model": {"encoder": S, "decoder": {"layers": L}}}, both, "'model'"),
    "in a list": ({"models": [S, L]}, large, "'models.1'"),
    "beside a lone tensor": ({"ema": S, "g": L, "latent_avg": torch.ones(3)}, large, "'g'"),
    "deep": ({"a": {"b": {"c": {"d": {"net": L}}}}, "model": S}, large, "'a.b.c.d.net'"),
}


@pytest.mark.parametrize("what", FILES)
def test_the_one_that_fits(tmp_path: Path, what: str) -> None:
    saved, model, key = FILES[what]
    torch.save(saved, tmp_path / "net.pth")
    report = check(model, tmp_path / "net.pth", device="none")
    assert report.ok, str(report)
    assert f"state dict {key}, the only one that fits" in opened(report)


def opened(report: Report) -> str:
    return next(stage.detail for stage in report.stages if stage.name == "open")


def test_what_is_taken_without_a_model_stays_where_it_fits(tmp_path: Path) -> None:
    torch.save({"model": S, "old": {**S}}, tmp_path / "net.pth")
    report = check(small, tmp_path / "net.pth", device="none")
    assert report.ok
    assert "state dict" not in opened(report)


def test_two_that_fit_are_an_error_that_lists_both(tmp_path: Path) -> None:
    torch.save({"model": S, "ema": {**S}, "other": L}, tmp_path / "net.pth")
    report = check(small, tmp_path / "net.pth", device="none")
    assert not report.ok
    assert "'model' (7 tensors), 'ema' (7 tensors)" in report.findings[0].message


def test_a_key_is_law(tmp_path: Path) -> None:
    torch.save({"model": S, "ema": L}, tmp_path / "net.pth")
    assert not check(large, tmp_path / "net.pth", state_dict_key="model", device="none").ok
    assert not check(large, open_checkpoint(tmp_path / "net.pth", "model"), device="none").ok


def test_the_recipe_is_applied_before_they_are_compared(tmp_path: Path) -> None:
    def grown() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6))

    torch.save({"model": S, "ema": L}, tmp_path / "net.pth")
    report = check(grown, tmp_path / "net.pth", recipe=Recipe(tile("2.*", dim=0)), device="none")
    assert report.ok, str(report)
    assert "'ema'" in opened(report)


def test_where_none_fits_the_only_one_with_keys_of_the_model_is_judged(tmp_path: Path) -> None:
    """It says more than that there are two."""
    torch.save({"net_a": OTHER, "net_b": L}, tmp_path / "net.pth")
    report = check(lambda: nn.Sequential(nn.Linear(5, 9)), tmp_path / "net.pth", device="none")
    assert [key for key, _, _ in report.mismatched] == ["0.weight", "0.bias"]
    assert "the only one with keys of the model" in opened(report)


def test_where_several_share_keys_they_are_listed(tmp_path: Path) -> None:
    torch.save({"net_a": S, "net_b": L}, tmp_path / "net.pth")
    report = check(lambda: nn.Sequential(nn.Linear(5, 9)), tmp_path / "net.pth", device="none")
    assert [found.rule for found in report.findings] == ["no-checkpoint"]
    assert "'net_a' (7 tensors), 'net_b' (4 tensors)" in report.findings[0].message
