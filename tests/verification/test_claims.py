"""Where there are no values, every promise is named and none is said to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Grown, Words, settle
from operator_examples import EXAMPLES

from pytest_ckptcompat import Recipe, check, open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, write_lock
from pytest_ckptcompat.core.claim import NEEDED, Claim
from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.custom import custom
from pytest_ckptcompat.recipes.operators.rename import drop, rename
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.per_tensor import KeyWise

if TYPE_CHECKING:
    from pathlib import Path

    from operator_examples import Example
    from torch import nn

    from pytest_ckptcompat.recipes.plan import State
    from pytest_ckptcompat.report.report import Report


def doubled_head(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "out1.bias": state["out1.bias"] * 2}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def trained(model: nn.Module) -> dict[str, Any]:
    """A checkpoint with the state of an optimizer that has made one step."""
    optimizer = adam(model.named_parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return {"model": settle(model).state_dict(), "optimizer": optimizer.state_dict()}


IMAGES = (2, 3, 8, 8)
CASES = {
    "rows, with everything declared": (
        Boxes(), Grown, {"recipe": Recipe(tile("out2.*", dim=0)), "inputs": IMAGES, "source_model": Boxes,
                         "optimizer": adam, "protect": ["conv*"]},
    ),
    "rows alone": (Boxes(), Grown, {"recipe": Recipe(append("out2.*", dim=0, init="mean"))}),
    "names alone": (
        Boxes(), Boxes, {"recipe": Recipe(rename("out1.*", "old.*"), rename("old.*", "out1.*")), "inputs": IMAGES},
    ),
    "a function whose model is not known": (
        Boxes(), Boxes, {"recipe": Recipe(custom(doubled_head, touches=["out1.*"], keeps_function=False)), "source_model": Boxes, "inputs": IMAGES},
    ),
    "no inputs for the old model": (
        Words(), lambda: Words(15), {"recipe": Recipe(tile("embed.weight", dim=0), tile("head.weight", dim=0)), "source_model": Words},
    ),
    "an optimizer and no recipe": (Boxes(), Boxes, {"optimizer": adam}),
}  # fmt: skip


def reports(folder: Path, source: nn.Module, **case: Any) -> tuple[Report, Report]:
    """The same check of a checkpoint and of its lock."""
    path, lock = folder / "net.pth", folder / "net.ckpt.json"
    torch.save(trained(source), path)
    write_lock(str(lock), lock_of_checkpoint(open_checkpoint(path), str(lock)))
    case.setdefault("device", "cpu")
    by_file, by_lock = (check(ckpt=each, **case) for each in (path, lock))
    return by_file, by_lock


@pytest.mark.parametrize("name", CASES)
def test_a_lock_names_the_promises_that_its_checkpoint_keeps(tmp_path: Path, name: str) -> None:
    source, target, declared = CASES[name]
    by_file, by_lock = reports(tmp_path, source, model=target, **declared)
    assert by_file.ok, str(by_file)
    assert by_lock.ok, str(by_lock)
    assert [promise.name for promise in by_lock.promises] == [promise.name for promise in by_file.promises]
    assert {promise.status for promise in by_lock.promises} == {"unchecked"}
    assert [promise.detail for promise in by_lock.promises] == [
        NEEDED if promise.status in ("kept", "changed") else promise.detail for promise in by_file.promises
    ]
    stage = next(stage for stage in by_lock.stages if stage.name == "verify")
    assert stage.detail == f"a lock file has no values: {len(by_lock.promises)} promises not checked"


def test_so_does_a_check_of_headers_alone(tmp_path: Path) -> None:
    source, target, declared = CASES["rows alone"]
    path = tmp_path / "net.pth"
    torch.save(source.state_dict(), path)
    report = check(target, path, device="none", **declared)
    assert "append" in report.promises[2].name
    assert {promise.status for promise in report.promises} == {"unchecked"}


def test_where_nothing_is_promised_nothing_is_listed(tmp_path: Path) -> None:
    _, report = reports(tmp_path, Boxes(), model=Boxes, inputs=IMAGES)
    assert report.promises == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name[:60])
def test_every_operator_names_without_values_what_it_proves_with_them(example: Example) -> None:
    def claims(state: State) -> list[Claim]:
        after = example.operator.apply(state, example.target)
        return [
            each for each in example.operator.prove(state, after, example.target) if isinstance(each, Claim)
        ]

    named = [claim.unproved() for claim in claims(example.meta())]
    assert named == [Promise(claim.name, "unchecked", NEEDED) for claim in claims(example.state())]


@dataclass(frozen=True, repr=False)
class negate(KeyWise[bool]):  # noqa: N801
    """An operator of somebody else's, who knows nothing of locks."""

    def change(self, key: str, state: State, target: State) -> bool:
        return True

    def make(self, key: str, change: bool, tensor: torch.Tensor) -> torch.Tensor:
        return -tensor

    def prove(self, before: State, after: State, target: State) -> list[Promise]:
        kept = all(bool((before[key] == -after[key]).all()) for key in self.matched(self.key, before))
        return [Promise(f"{self}: the other sign", "kept" if kept else "broken")]


def test_an_operator_that_looks_at_values_by_itself_is_listed_by_its_name(tmp_path: Path) -> None:
    by_file, by_lock = reports(tmp_path, Boxes(), model=Boxes, recipe=Recipe(negate("out1.bias")))
    assert by_file.ok
    assert 'negate("out1.bias"): the other sign' in [promise.name for promise in by_file.promises]
    assert Promise('negate("out1.bias")', "unchecked", NEEDED) in by_lock.promises


def test_a_recipe_that_drops_all_it_names_still_names_the_rest(tmp_path: Path) -> None:
    model = Boxes()
    model.register_buffer("aux", torch.ones(2))
    by_file, by_lock = reports(tmp_path, model, model=Boxes, recipe=Recipe(drop("aux")))
    assert [each.name for each in by_lock.promises] == [each.name for each in by_file.promises]
