"""A suggestion is compared with all that was given."""

from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, lived
from torch import nn
from torch.nn.utils import parametrizations

from pytest_ckptcompat import (
    Recipe,
    allow,
    append,
    check,
    drop,
    fold_batch_norm,
    fold_weight_norm,
    select,
    tile,
)

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


class Shuffled(Plain):
    """Its outputs stand in another order, which depends on how many there are."""

    def forward(self, x):
        return super().forward(x).flip(-1)


def test_a_suggestion_that_changes_the_function_says_by_how_much(tmp_path):
    report = checked(lambda: Shuffled(7), Shuffled, tmp_path, (4, 5), source_model=Shuffled)
    assert report.suggestion == Recipe(tile("head.*", dim=0))
    assert report.remedy.notes[0].startswith("It does not keep the model's function: output")
    assert "it does not keep the model's function" in " ".join(str(report).split())


def test_the_old_model_tells_rows_of_anchors_from_others(tmp_path):
    report = checked(lambda: Anchors(4), Anchors, tmp_path, (2, 3, 8, 8), source_model=Anchors)
    assert report.suggestion == Recipe(tile("head.*", dim=0, blocks=3))
    assert report.remedy.notes[0].startswith("With it the outputs are those of source_model")


class Flattened(nn.Module):
    """Features are flattened place by place."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, channels, 3, padding=1), nn.Linear(channels * 16, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.a(x)).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("channels", [6, 8])
def test_the_old_model_tells_columns_place_by_place_from_others(tmp_path, channels):
    report = checked(lambda: Flattened(channels), Flattened, tmp_path, (2, 3, 4, 4), source_model=Flattened)
    assert report.suggestion == Recipe(tile("a.*", dim=0), append("fc.weight", dim=1, blocks=16))
    assert report.remedy.notes[0].startswith("With it the outputs are those of source_model")


class Text(nn.Module):
    def __init__(self, places: int = 8) -> None:
        super().__init__()
        self.embed, self.wpe, self.head = nn.Embedding(9, 4), nn.Embedding(places, 4), nn.Linear(4, 9)

    def forward(self, ids):
        return self.head(self.embed(ids) + self.wpe.weight[: ids.shape[1]])


def test_the_old_model_tells_a_longer_text_from_a_finer_one(tmp_path):
    report = checked(lambda: Text(12), Text, tmp_path, "2x8:int64<9", source_model=Text)
    assert report.suggestion == Recipe(append("wpe.weight", dim=0, init="mean"))


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrisation_is_folded(tmp_path, wrap):
    def old():
        return nn.Sequential(wrap(nn.Linear(5, 6)), nn.Tanh(), wrap(nn.Linear(6, 4)))

    def new():
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

    report = checked(new, old, tmp_path, (4, 5), source_model=old)
    assert report.suggestion == Recipe(fold_weight_norm("*.weight"))
    assert report.remedy.notes[0].startswith("With it the outputs are those of source_model")


def test_what_is_dropped_is_told(tmp_path):
    class Aux(Plain):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(6, 2)

    report = checked(Plain, Aux, tmp_path, (4, 5))
    assert report.remedy.notes == ("It drops trained weights: aux.*.",)


def test_rows_that_are_left_out_are_told(tmp_path):
    report = checked(lambda: Plain(2), Plain, tmp_path, (4, 5))
    assert report.remedy.notes == ("It leaves out trained rows of head.*.",)


class Detector(nn.Module):
    """Scores of each place and anchor, and boxes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Conv2d(3, ANCHORS * classes, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        scores = self.scores(x).unflatten(1, (ANCHORS, -1)).permute(0, 1, 3, 4, 2)
        return {"scores": scores.flatten(1, 3), "boxes": self.boxes(x)}


def test_outputs_that_were_not_compared_do_not_make_a_suggestion_right(tmp_path):
    report = checked(
        lambda: Detector(2), lambda: Detector(4), tmp_path, (2, 3, 4, 4), source_model=lambda: Detector(4)
    )
    assert report.suggestion == Recipe(select("scores.*", dim=0, index=[0, 1], blocks=3))
    assert report.remedy.notes[0].startswith("With it the outputs are those of source_model")


def test_an_output_that_went_is_said_not_to_be_compared(tmp_path):
    class Two(Plain):
        def __init__(self, *names):
            super().__init__()
            self.heads = nn.ModuleDict({name: nn.Linear(4, 2) for name in names})

        def forward(self, x):
            return {name: head(super(Two, self).forward(x)) for name, head in self.heads.items()}

    report = checked(
        lambda: Two("b"), lambda: Two("a", "b"), tmp_path, (4, 5), source_model=lambda: Two("a", "b")
    )
    assert report.suggestion == Recipe(drop("heads.a.*"))
    first, second = report.remedy.notes
    assert first.startswith("With it the outputs that were compared are kept")
    assert "without output['a']" in first
    assert second == "It drops trained weights: heads.a.*."


def test_a_smaller_vocabulary_keeps_its_words(tmp_path):
    class Lm(nn.Module):
        def __init__(self, words):
            super().__init__()
            self.embed, self.lm_head = nn.Embedding(words, 4), nn.Linear(4, words, bias=False)
            self.lm_head.weight = self.embed.weight

        def forward(self, ids):
            return self.lm_head(torch.tanh(self.embed(ids)))

    report = checked(lambda: Lm(6), lambda: Lm(12), tmp_path, "2x9:int64<12", source_model=lambda: Lm(12))
    assert report.suggestion == Recipe(select("embed.weight", dim=0, index=list(range(6))))
    assert "ids below 6" in report.remedy.notes[0]


def test_a_folded_norm_is_said_to_be_assumed_behind_its_layer(tmp_path):
    report = checked(
        lambda: nn.Sequential(nn.Linear(5, 4)),
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)),
        tmp_path,
        (4, 5),
    )
    assert report.suggestion == Recipe(fold_batch_norm("0", "1"))
    assert report.remedy.notes[0].startswith(
        "fold_batch_norm keeps the function if each norm directly follows"
    )


def test_nothing_is_looked_for_where_every_difference_is_waived(tmp_path):
    new = lambda: Tensors({"body.weight": (6, 5)})  # noqa: E731
    waivers = [allow("unexpected-key", "*", reason="dropped in v2")]
    path = tmp_path / "old.pth"
    torch.save(Tensors({"body.weight": (6, 5), "gone.weight": (2, 2)}).state_dict(), path)
    report = check(new, path, allow=waivers)
    assert report.ok
    assert report.remedy is None
    assert report.suggestion is None
