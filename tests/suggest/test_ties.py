from __future__ import annotations

import torch
from torch import nn

from pytest_ckptcompat import Recipe, append, check, copy
from pytest_ckptcompat.suggest.ties import untied


class Lm(nn.Module):
    def __init__(self, tied, words=6):
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 4), nn.Linear(4, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids).tanh())


def saved(model, path, *without):
    torch.save({key: value for key, value in model.state_dict().items() if key not in without}, path)
    return path


def test_a_tied_name_that_was_not_saved_is_copied_for_a_model_that_unties_it(tmp_path):
    path = saved(Lm(True), tmp_path / "old.pth", "head.weight")
    arguments = {"inputs": "2x3:int64<6", "device": "cpu"}
    report = check(lambda: Lm(False), path, source_model=lambda: Lm(True), **arguments)
    assert report.suggestion == Recipe(copy("embed.weight", "head.weight"))
    assert check(lambda: Lm(False), path, recipe=report.suggestion, **arguments).ok
    assert check(lambda: Lm(False), path, **arguments).suggestion is None, "nothing shows that they were one"


def test_names_that_were_two_tensors_are_not_copied():
    state = Lm(False).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if key != "head.weight"}
    assert list(untied(shapes, {"head.weight"}, state)) == []
    assert list(untied(shapes, {"head.weight"}, Lm(True).state_dict())) == [("embed.weight", "head.weight")]


def test_that_a_model_ties_what_the_checkpoint_has_apart_is_told(tmp_path):
    path = saved(Lm(False), tmp_path / "old.pth")
    report = check(lambda: Lm(True, 8), path, device="none")
    assert report.suggestion == Recipe(
        append("embed.weight", dim=0, init="mean"), append("head.weight", dim=0, init="mean")
    )
    (note,) = report.remedy.notes
    assert note.startswith("The model ties head.weight to embed.weight, and the checkpoint has them apart")
    assert check(lambda: Lm(True, 8), saved(Lm(True), path), device="none").remedy.notes == ()
