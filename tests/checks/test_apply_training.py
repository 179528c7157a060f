"""What stands beside the weights in a checkpoint: averages, optimizers of other models, files of their own."""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from networks import Boxes, Words, settle
from torch import nn
from torch.optim.swa_utils import AveragedModel
from trainings import decay_by_rank, grown, training

from pytest_ckptcompat import Recipe, allow, append, check, drop, open_checkpoint, tile
from pytest_ckptcompat import copy as copied
from pytest_ckptcompat.checkpoint.checkpoint import outer_object
from pytest_ckptcompat.checkpoint.contents import read_contents
from pytest_ckptcompat.checks.apply import MisfitError, apply
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.recipes.operators.blocks import insert_block, stack
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

GROW = Recipe(tile("out2.*", dim=0))


def written(
    path: Path, content: Any, key: str | None = "model", **arguments: Any
) -> tuple[Any, tuple[str, ...]]:
    return grown(path, content, Boxes(14), GROW, key=key, **arguments)


# -- averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("ema", lambda model: model.state_dict()),
        ("swa_model", lambda model: AveragedModel(model).state_dict()),
        ("ema", lambda model: {"module": model.state_dict(), "decay": 0.999}),
        ("teacher", lambda model: {f"backbone.{key}": value for key, value in model.state_dict().items()}),
    ],
    ids=["plain", "averaged", "nested", "prefix"],
)
def test_an_average_is_grown_as_the_weights_are(tmp_path: Path, name: str, form: Any) -> None:
    model, average = settle(Boxes()), settle(Boxes(), 5)
    found, notes = written(tmp_path, {"model": model.state_dict(), name: copy.deepcopy(form(average))})
    expected = GROW.apply(average.state_dict(), Boxes(14).state_dict())
    inside = found[name].get("module", found[name])
    prefix = {"swa_model": "module.", "teacher": "backbone."}.get(name, "")
    assert {key for key in inside if key.startswith(prefix)} - {"n_averaged"} == {
        prefix + key for key in expected
    }
    assert all(same_bits(inside[prefix + key], value) for key, value in expected.items())
    assert (inside.get("n_averaged"), found[name].get("decay")) == (
        torch.tensor(0) if name == "swa_model" else None,
        0.999 if "module" in found[name] else None,
    )
    [note] = notes
    assert note.startswith(name)
    assert note.endswith("is grown too")


def test_an_average_as_a_list_of_parameters(tmp_path: Path) -> None:
    """As torch-ema saves it."""
    model = settle(Boxes())
    shadow = [each.detach() + 1 for each in model.parameters()]
    found, notes = written(
        tmp_path, {"model": model.state_dict(), "ema": {"decay": 0.9, "shadow_params": shadow}}
    )
    names = [name for name, _ in model.named_parameters()]
    for name, was, now in zip(names, shadow, found["ema"]["shadow_params"], strict=True):
        assert same_bits(now[: len(was)], was)
        assert now.shape == dict(Boxes(14).named_parameters())[name].shape
    assert notes == ("ema.shadow_params is grown too",)


def test_an_average_that_lacks_what_the_recipe_wants_is_left_out(tmp_path: Path) -> None:
    average = {key: value for key, value in settle(Boxes()).state_dict().items() if key != "out2.bias"}
    recipe = Recipe(tile("out2.weight", dim=0), tile("out2.bias", dim=0))
    content = {"model": settle(Boxes()).state_dict(), "ema": average}
    found, notes = grown(tmp_path, content, Boxes(14), recipe, key="model")
    assert "ema" not in found
    assert notes[0].startswith("ema is left out: it can't be grown as the weights are")


def test_what_the_recipe_drops_is_dropped_from_an_average_too(tmp_path: Path) -> None:
    old, new = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), nn.Sequential(nn.Linear(3, 2))
    content = {"model": old.state_dict(), "ema": copy.deepcopy(settle(old, 5).state_dict())}
    found, notes = grown(tmp_path, content, new, Recipe(drop("1.*")), key="model")
    new.load_state_dict(found["ema"])
    assert notes == ("ema is grown too",)


@pytest.mark.parametrize(
    ("recipe", "came"),
    [
        (insert_block("layers.1", at=2), (0, 1, 1)),
        (copied("layers.0.*", "layers.2.*"), (0, 1, 0)),
        (stack("layers"), (0, 1, 0, 1)),
    ],
    ids=["insert_block", "copy", "stack"],
)
def test_what_the_recipe_copies_is_copied_in_an_average_too(
    tmp_path: Path, recipe: Any, came: tuple[int, ...]
) -> None:
    def blocks(count: int) -> nn.ModuleDict:
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(count))})

    average, new = settle(blocks(2), 5), blocks(len(came))
    content = {"model": settle(blocks(2)).state_dict(), "ema": average.state_dict()}
    found, notes = grown(tmp_path, content, new, Recipe(recipe), key="model")
    new.load_state_dict(found["ema"])
    for layer, old in zip(new["layers"], came, strict=True):
        assert torch.equal(layer.weight, average["layers"][old].weight)
    assert notes == ("ema is grown too",)


# -- optimizers beside the one that is meant ---------------------------------------------------------------


def test_an_optimizer_of_another_model_stays_as_it_is(tmp_path: Path) -> None:
    other = training(nn.Linear(2, 3))
    content = training(settle(Boxes()))
    found, notes = written(
        tmp_path,
        {
            "model": content["model"],
            "critic": other["model"],
            "opt": content["optimizer"],
            "opt_critic": other["optimizer"],
        },
    )
    assert found["opt"]["state"][18]["exp_avg"].shape == (14,)
    assert all(
        same_bits(found["opt_critic"]["state"][number]["exp_avg"], slots["exp_avg"])
        for number, slots in other["optimizer"]["state"].items()
    )
    assert notes == (
        "opt is grown too",
        "opt_critic is kept as it was: the recipe changes nothing that it is about",
    )


def test_two_states_of_the_same_parameters_are_refused(tmp_path: Path) -> None:
    content = training(settle(Boxes()))
    twice = {"model": content["model"], "opt_a": content["optimizer"], "opt_b": content["optimizer"]}
    with pytest.raises(MisfitError, match="opt_a and opt_b both fit the parameters"):
        written(tmp_path, twice)
    assert not (tmp_path / "new.pth").exists()


def test_what_can_not_be_matched_is_refused_or_waived(tmp_path: Path) -> None:
    content = training(settle(Boxes()), decay_by_rank)
    with pytest.raises(MisfitError, match=r"14 \+ 5 parameters.*give optimizer= .*\.safetensors"):
        written(tmp_path, content)
    found, notes = written(tmp_path, content, allow=[allow("optimizer-error", reason="it starts anew")])
    assert "optimizer" not in found
    assert notes == ("optimizer is left out: which parameter each state belongs to can't be determined",)
    found, notes = written(tmp_path, content, optimizer=decay_by_rank)
    assert notes == ("optimizer is grown too",)
    resumed = decay_by_rank(Boxes(14).parameters())
    resumed.load_state_dict(found["optimizer"])


def test_tied_parameters_that_the_new_model_has_apart_both_get_the_state(tmp_path: Path) -> None:
    class Apart(Words):
        def __init__(self) -> None:
            super().__init__(15)
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())

    content = training(settle(Words()))
    model, recipe = Apart(), Recipe(append("embed.weight", dim=0, init="mean"))
    found, _ = grown(tmp_path, content, model, recipe, key="model")
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.load_state_dict(found["optimizer"])
    number = [name for name, _ in Words().named_parameters()].index("embed.weight")
    before = content["optimizer"]["state"][number]["exp_avg"]
    for each in (model.embed.weight, model.head.weight):
        assert same_bits(optimizer.state[each]["exp_avg"][: len(before)], before)


# -- a file of its own -------------------------------------------------------------------------------------


def test_the_state_beside_the_weights_is_found_and_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate and transformers' Trainer save it."""
    monkeypatch.chdir(tmp_path)
    content = training(settle(Boxes()))
    torch.save(content["model"], "model.pth")
    torch.save(content["optimizer"], "optimizer.bin")
    report = check(lambda: Boxes(14), "model.pth", recipe=GROW, optimizer=torch.optim.AdamW)
    assert report.ok
    assert [stage.status for stage in report.stages if stage.name == "optimizer"] == ["passed"]
    (tmp_path / "grow.toml").write_text(GROW.to_toml())
    command = ["apply", "model.pth", "networks:Grown", "--recipe", "grow.toml", "-o", "new.pth"]
    assert main(command) == 0
    assert not (tmp_path / "new.optimizer.pth").exists()
    assert main([*command, "--optimizer-state", "optimizer.bin"]) == 0
    optimizer = torch.optim.AdamW(Boxes(14).parameters())
    optimizer.load_state_dict(torch.load("new.optimizer.pth", weights_only=True))
    before = content["optimizer"]["state"][18]["exp_avg"]
    assert same_bits(list(optimizer.state.values())[18]["exp_avg"][:4], before)


def test_a_file_without_state_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "x": torch.ones(1)}, tmp_path / "none.bin")
    with pytest.raises(MisfitError, match=r"none\.bin holds no optimizer state"):
        written(
            tmp_path,
            settle(Boxes()).state_dict(),
            None,
            optimizer_state=outer_object(read_contents(tmp_path / "none.bin")),
        )


# -- distributed checkpoints -------------------------------------------------------------------------------


def test_a_folder_is_a_distributed_checkpoint(tmp_path: Path) -> None:
    content = training(settle(Boxes())) | {"epoch": 3, "note": ["a", None]}
    torch.save(content, tmp_path / "old.pth")
    ckpt = open_checkpoint(tmp_path / "old.pth", "model")
    told = apply(ckpt, Boxes(14), GROW, tmp_path / "new")
    assert told.nbytes == sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    names = [name for name, _ in Boxes(14).named_parameters()]
    shapes = {key: torch.empty_like(value) for key, value in Boxes(14).state_dict().items()}
    state = {name: {"exp_avg": torch.empty_like(each)} for name, each in Boxes(14).named_parameters()}
    found: Any = {"model": shapes, "optimizer": {"state": state}, "epoch": 0}
    dcp.load(found, checkpoint_id=tmp_path / "new")
    expected = GROW.apply(content["model"], Boxes(14).state_dict())
    assert all(same_bits(found["model"][key], value) for key, value in expected.items())
    for number, name in enumerate(names):
        was = content["optimizer"]["state"][number]["exp_avg"]
        assert same_bits(found["optimizer"]["state"][name]["exp_avg"][: len(was)], was)
    assert found["epoch"] == 3
    again = open_checkpoint(tmp_path / "new")
    assert {*again} == {*expected}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(settle(Boxes()).state_dict(), tmp_path / "old.pth")
    ckpt = open_checkpoint(tmp_path / "old.pth")
    apply(ckpt, Boxes(14), GROW, f"{tmp_path}/new/")
    with pytest.raises(ValueError, match="is not empty, and only --force"):
        apply(ckpt, Boxes(14), GROW, tmp_path / "new")
    before = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    monkeypatch.setattr("pytest_ckptcompat.checkpoint.dcp_writer._swap", lambda *folders: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        apply(ckpt, Boxes(14), GROW, tmp_path / "new", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "old.pth"]
    monkeypatch.undo()
    apply(ckpt, Boxes(14), GROW, tmp_path / "new", force=True)
    (tmp_path / "new" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"mine\.txt in it is not part of a distributed checkpoint"):
        apply(ckpt, Boxes(14), GROW, tmp_path / "new", force=True)


@pytest.mark.parametrize("out", ["new.pth", "new.safetensors", "new"])
def test_a_state_of_its_own_is_written_in_the_form_of_the_weights(tmp_path: Path, out: str) -> None:
    content = training(settle(Boxes()))
    torch.save(content["model"], tmp_path / "old.pth")
    torch.save(content["optimizer"], tmp_path / "optimizer.bin")
    state = outer_object(read_contents(tmp_path / "optimizer.bin"))
    told = apply(
        open_checkpoint(tmp_path / "old.pth"), Boxes(14), GROW, tmp_path / out, optimizer_state=state
    )
    name = {"new.pth": "new.optimizer.pth", "new.safetensors": "new.optimizer.pt", "new": "new.optimizer"}[
        out
    ]
    assert told.notes == (f"{tmp_path}/{name} is written beside it", "optimizer.bin is grown too")
    assert {*open_checkpoint(tmp_path / out)} == {*content["model"]}
    assert (tmp_path / name).is_dir() == (out == "new")


def test_what_is_left_out_of_a_state_of_its_own_is_told(tmp_path: Path) -> None:
    content = training(settle(Boxes()))
    beside = {"optimizer": content["optimizer"], "arguments": argparse.Namespace(lr=1)}
    torch.save(beside, tmp_path / "optimizer.bin")
    state = outer_object(read_contents(tmp_path / "optimizer.bin"))
    _, notes = written(tmp_path, content["model"], None, optimizer_state=state)
    assert notes == (
        f"{tmp_path}/new.optimizer.pth is written beside it",
        "optimizer is grown too",
        "optimizer.bin: arguments is left out: an object of a class",
    )
    assert {*torch.load(tmp_path / "new.optimizer.pth", weights_only=True)} == {"optimizer"}


def test_a_state_of_its_own_that_can_not_be_matched_leaves_nothing(tmp_path: Path) -> None:
    content = training(settle(Boxes()), decay_by_rank)
    torch.save(content["optimizer"], tmp_path / "optimizer.bin")
    state = outer_object(read_contents(tmp_path / "optimizer.bin"))
    with pytest.raises(MisfitError, match="which is which can't be determined"):
        written(tmp_path, content["model"], None, optimizer_state=state)
    assert {file.name for file in tmp_path.iterdir()} == {"old.pth", "optimizer.bin"}


@pytest.mark.parametrize(
    "state",
    [
        {"base_optimizer_state": {"exp_avg": [torch.ones(14, 8), torch.ones(4)]}},
        {"state": {}, "flat_groups": [torch.ones(51)]},
    ],
)
def test_an_optimizer_in_an_unknown_form_is_left_out(tmp_path: Path, state: Any) -> None:
    found, notes = written(tmp_path, {"model": settle(Boxes()).state_dict(), "optimizer": state, "epoch": 3})
    assert {*found} == {"model", "epoch"}
    assert notes == ("optimizer is left out: an optimizer's state in a form that is not known",)


def test_master_weights_are_grown_as_the_weights_are(tmp_path: Path) -> None:
    """As apex's FP16_Optimizer saves them."""
    content = training(settle(Boxes()))
    masters = [value.double() for value in (each.detach() for each in settle(Boxes()).parameters())]
    outer = {"optimizer_state_dict": content["optimizer"], "fp32_from_fp16": [masters]}
    found, notes = written(tmp_path, {"model": content["model"], "optimizer": outer})
    assert notes == (
        "optimizer.optimizer_state_dict is grown too",
        "optimizer.fp32_from_fp16.0 is grown too",
    )
    assert [tuple(each.shape) for each in found["optimizer"]["fp32_from_fp16"][0]] == [
        tuple(each.shape) for each in Boxes(14).parameters()
    ]


def test_other_tensors_of_the_shapes_of_changed_weights_are_told(tmp_path: Path) -> None:
    content = {
        "model": settle(Boxes()).state_dict(),
        "accumulated": {"head": torch.ones(4, 8)},
        "seen": torch.ones(3),
    }
    found, [note] = written(tmp_path, content)
    assert found["accumulated"]["head"].shape == (4, 8)
    assert note.startswith("accumulated is kept as it was: tensors in it have the shapes of weights")


def test_parameters_that_the_new_model_ties_have_one_state_and_the_other_is_told(tmp_path: Path) -> None:
    class Apart(Words):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())

    content = training(settle(Apart()))
    content["model"]["head.weight"] = content["model"]["embed.weight"].clone()
    with pytest.raises(MisfitError, match="which is which can't be determined"):
        grown(tmp_path, content, Words(), Recipe(), key="model")
    found, notes = grown(tmp_path, content, Words(), Recipe(), key="model", source_model=Apart())
    assert notes == (
        "optimizer is taken along, without the state of head.weight, left out "
        "(it is tied to embed.weight now, which has its own state)",
    )
    torch.optim.AdamW(Words().parameters()).load_state_dict(found["optimizer"])


def test_a_state_beside_that_was_not_named_is_told(tmp_path: Path) -> None:
    content = training(settle(Boxes()))
    torch.save(content["optimizer"], tmp_path / "optimizer.bin")
    _, notes = written(tmp_path, content["model"], None)
    assert notes == ("optimizer.bin beside it is not grown: name it with --optimizer-state",)
