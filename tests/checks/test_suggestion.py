"""A suggestion is held against all that was given."""

from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, lived
from torch import nn

from pytest_ckptcompat import Recipe, allow, check, tile

ANCHORS = 3


class Anchors(nn.Module):
    """A detector whose rows are anchor by anchor."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, ANCHORS * (5 + classes), 1)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x))).unflatten(1, (ANCHORS, -1)).permute(0, 1, 3, 4, 2)


class Plain(nn.Module):
    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def checked(new, old, tmp_path, inputs, **arguments):
    path = tmp_path / "old.pth"
    torch.save(lived(old()).state_dict(), path)
    return check(new, path, inputs=inputs, device=arguments.pop("device", "cpu"), **arguments)


def test_a_suggestion_that_keeps_the_function_is_said_to(tmp_path):
    report = checked(lambda: Plain(7), Plain, tmp_path, (4, 5), source_model=Plain)
    assert report.suggestion == Recipe(tile("head.*", dim=0))
    (note,) = report.remedy.notes
    assert note.startswith("With it the outputs are those of source_model: max")


def test_without_the_old_model_nothing_is_said_of_the_function(tmp_path):
    report = checked(lambda: Plain(7), Plain, tmp_path, (4, 5))
    assert report.suggestion == Recipe(tile("head.*", dim=0))
    assert report.remedy.notes == ()


@pytest.mark.parametrize("device", ["none", "rehearse"])
def test_where_no_values_are_read_nothing_is_said_of_the_function(tmp_path, device):
    report = checked(lambda: Plain(7), Plain, tmp_path, (4, 5), source_model=Plain, device=device)
    assert report.suggestion is not None
    assert report.remedy.notes == ()


def test_a_suggestion_that_changes_the_function_says_by_how_much(tmp_path):
    report = checked(lambda: Anchors(4), Anchors, tmp_path, (2, 3, 8, 8), source_model=Anchors)
    if report.suggestion == Recipe(tile("head.*", dim=0)):
        assert "does not keep the model's function: output: max" in report.remedy.notes[0]


def test_what_is_dropped_is_told(tmp_path):
    class Aux(Plain):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(6, 2)

    report = checked(Plain, Aux, tmp_path, (4, 5))
    assert report.remedy.notes == ("It drops trained weights: aux.*.",)


def test_nothing_is_looked_for_where_every_difference_is_waived(tmp_path):
    new = lambda: Tensors({"body.weight": (6, 5)})  # noqa: E731
    waivers = [allow("unexpected-key", "*", reason="dropped in v2")]
    path = tmp_path / "old.pth"
    torch.save(Tensors({"body.weight": (6, 5), "gone.weight": (2, 2)}).state_dict(), path)
    report = check(new, path, allow=waivers)
    assert report.ok
    assert report.remedy is None
    assert report.suggestion is None
