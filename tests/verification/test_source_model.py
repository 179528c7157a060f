"""A source_model that is not the model of the old checkpoint is told from the header, and what differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Boxes
from torch import nn

from pytest_ckptcompat import Recipe, check, tile
from pytest_ckptcompat.verification.source_model import SourceError, loaded, misfit

GROW = Recipe(tile("out2.*", dim=0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_what_the_checkpoint_was_made_for_fits() -> None:
    for model in (Boxes(), Tied(), nn.Sequential(nn.LazyLinear(3))):
        assert misfit(model, model.state_dict()) == ""


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_prefix_of_every_key_and_what_goes_beyond_the_model_are_no_harm() -> None:
    wrapped = nn.DataParallel(Boxes()).state_dict()
    assert misfit(Boxes(), wrapped) == ""
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for more in (torch.zeros(2), nested):
        assert misfit(Boxes(), Boxes().state_dict() | {"aux.weight": more}) == ""


def test_a_tied_name_that_was_not_saved_is_no_harm() -> None:
    state = Tied().state_dict()
    del state["head.weight"]
    assert misfit(Tied(), state) == ""
    assert torch.equal(loaded(Tied, state).head.weight, state["embed.weight"])
    del state["embed.weight"]
    assert "embed.weight is missing" in misfit(Tied(), state)


def test_everything_that_differs_is_told_in_one_pass_and_what_to_do() -> None:
    state = Boxes().state_dict()
    del state["out1.bias"]
    assert misfit(Boxes(14), state) == (
        "source_model does not load the old checkpoint (2 mismatched, 1 missing): give the model that the "
        "checkpoint was saved from, or leave source_model out; out2.weight is (4, 8) f32, in source_model "
        "(14, 8) f32; out2.bias is (4,) f32, in source_model (14,) f32; out1.bias is missing, in source_model "
        "(1,) f32"
    )


def test_a_thousand_layers_are_one_line() -> None:
    with torch.device("meta"):
        old = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(1000)))
        new = nn.Sequential(*(nn.Linear(3, 3) for _ in range(1000)))
    said = misfit(new, old.state_dict())
    assert "(1000 mismatched, 1000 missing)" in said
    assert "{0-999}.weight ×1,000 is (2, 2) f32, in source_model (3, 3) f32" in said
    assert len(said) < 400


@pytest.mark.parametrize("device", ["cpu", "none"])
def test_a_report_says_it_before_values_are_read(device: str, tmp_path: Any) -> None:
    torch.save(Boxes().state_dict(), tmp_path / "net.pth")
    report = check(
        lambda: Boxes(14), tmp_path / "net.pth", recipe=GROW, source_model=lambda: Boxes(14), device=device
    )
    [found] = report.findings
    assert found.rule == "source-model-error"
    assert found.message.startswith(
        "source_model does not load the old checkpoint (2 mismatched, 0 missing): give"
    )
    assert "Error(s) in loading" not in str(report)
    stages = {stage.name: (stage.status, stage.detail) for stage in report.stages}
    assert stages["compare"][0] == "passed"
    assert stages["load"] == ("skipped", "an error was found before it")


def test_one_that_cannot_be_built_is_said_once(tmp_path: Any) -> None:
    torch.save(Boxes().state_dict(), tmp_path / "net.pth")
    report = check(lambda: Boxes(14), tmp_path / "net.pth", recipe=GROW, source_model="nowhere:Net")
    assert [(each.rule, each.message.partition(" in ")[0]) for each in report.findings] == [
        (
            "source-model-error",
            "source_model can't be built: nowhere:Net: there is no module 'nowhere'",
        )
    ]


def test_an_own_loader_that_wants_values_is_asked_with_values() -> None:
    class Strict(nn.Linear):
        def _load_from_state_dict(self, state: Any, *rest: Any) -> None:
            if not state["weight"].is_meta and float(state["weight"].sum()) != 0:
                raise ValueError("only zeros")
            super()._load_from_state_dict(state, *rest)

    with pytest.raises(
        SourceError, match="source_model does not load the old checkpoint: ValueError: only zeros"
    ):
        loaded(lambda: Strict(2, 2), nn.Linear(2, 2).state_dict())
