"""Whose state is whose where a model has its parameters in another order than the one that was trained.

The oracle is the old model's own optimizer: the moments that it holds for a parameter are that parameter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pytest_ckptcompat import Recipe, check, drop, open_checkpoint, rename, tile
from pytest_ckptcompat.checks.apply import MisfitError, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_ckptcompat.report.report import Report

    Moments = Mapping[str, torch.Tensor]


class Net(nn.Module):
    """Layers of these names in this order, all but the last of one shape."""

    layers: tuple[str, ...] = ("a", "b", "out")
    bias = True
    outputs = 2

    def __init__(self) -> None:
        super().__init__()
        for name in self.layers:
            outputs = self.outputs if name == "out" else 4
            self.add_module(name, nn.Linear(4, outputs, bias=self.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(layer(x).pow(2).mean() * (n + 1) for n, layer in enumerate(self.children()))  # type: ignore[return-value]


class Reordered(Net):
    layers = ("b", "a", "out")


class Renamed(Net):
    layers = ("second", "first", "out")


class Backwards(Net):
    """Writes its keys in another order than the one in which it has its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(Backwards._turn)

    @staticmethod
    def _turn(module: nn.Module, state: Any, prefix: str, metadata: Any) -> None:
        for key in list(state)[::-1]:
            state.move_to_end(key)


class BackwardsReordered(Backwards):
    layers = ("b", "a", "out")


RENAMES = Recipe(rename("a.*", "first.*"), rename("b.*", "second.*"))


def trained(model: nn.Module, factory: Any = torch.optim.Adam) -> tuple[dict[str, Any], Moments]:
    """A checkpoint after two steps, and the moments of every parameter by its name."""
    torch.manual_seed(0)
    optimizer = factory(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).backward()
        optimizer.step()
    moments = {name: optimizer.state[each]["exp_avg"] for name, each in model.named_parameters()}
    assert len({each.sum().item() for each in moments.values()}) == len(moments)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, moments


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def checked(
    model: Any, path: str, factory: Any = torch.optim.Adam, **arguments: Any
) -> tuple[Report, Moments]:
    """The report, and the moments with which the check took its step, by the new name."""
    made: list[tuple[dict[str, Any], torch.optim.Optimizer]] = []

    def recorded(named: Any) -> torch.optim.Optimizer:
        named = list(named)
        made.append((dict(named), factory(named)))
        return made[-1][1]

    report = check(model, path, optimizer=recorded, **arguments)
    named, optimizer = made[-1]
    moments = {
        name: (optimizer.state[each]["exp_avg"] - 0.1 * each.grad) / 0.9
        for name, each in named.items()
        if "exp_avg" in optimizer.state.get(each, {})
    }
    return report, moments


def resumed(model: nn.Module, content: Any) -> Moments:
    """The moments that each parameter gets from torch's own load_state_dict."""
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(content["optimizer"])
    return {name: optimizer.state[each]["exp_avg"] for name, each in model.named_parameters()}


def same(one: Moments, other: Moments) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=1e-7) for name in one
    )


def renamed(moments: Moments) -> Moments:
    names = {"a": "first", "b": "second", "out": "out"}
    return {names[(parts := name.split("."))[0]] + "." + parts[1]: each for name, each in moments.items()}


def unchecked(report: Report) -> str:
    """Why the state's owners can't be determined; the report says so once, as an error."""
    [promise] = [each for each in report.promises if each.name.startswith("optimizer")]
    assert (promise.status, promise.detail) == (
        "unchecked",
        "which parameter each state belongs to can't be determined",
    )
    [found] = report.findings
    assert (found.rule, found.severity) == ("optimizer-error", "error")
    return found.message


@pytest.mark.parametrize("source", [None, Net], ids=["alone", "source"])
@pytest.mark.parametrize(
    ("model", "recipe", "named"),
    [(Reordered, None, dict), (Renamed, RENAMES, renamed)],
    ids=["moved", "renamed"],
)
def test_state_stays_with_its_parameter_and_position_would_mix_it_up(
    tmp_path: Path, model: Any, recipe: Recipe | None, named: Callable[[Moments], Moments], source: Any
) -> None:
    content, moments = trained(Net())
    path = saved(tmp_path / "old.pth", content)
    report, used = checked(model, path, recipe=recipe, source_model=source)
    assert same(used, named(moments))
    assert report.ok
    by_position = resumed(model(), content)
    mixed = [name for name, each in named(moments).items() if not torch.equal(by_position[name], each)]
    [found] = report.findings
    assert (found.rule, found.severity) == ("optimizer-error", "warn")
    assert found.key in mixed
    assert f"would give {len(mixed)} parameters the state of another of the same shape" in found.message


@pytest.mark.parametrize(
    ("recipe", "outputs"), [(Recipe(), 2), (Recipe(tile("out.*", dim=0)), 3)], ids=["as-is", "grown"]
)
def test_what_is_written_resumes_by_position(tmp_path: Path, recipe: Recipe, outputs: int) -> None:
    content, moments = trained(Net())

    class New(Reordered):
        pass

    New.outputs = outputs
    path = tmp_path / "new.pth"
    written = apply(open_checkpoint(saved(tmp_path / "old.pth", content)), New(), recipe, path)
    assert written.notes == (f"optimizer is {'grown too' if outputs > 2 else 'taken along'}",)
    loaded = torch.load(path, weights_only=True)
    after = resumed(New(), loaded)
    assert same({name: each[: len(moments[name])] for name, each in after.items()}, moments)
    assert list(loaded["model"]) == list(New().state_dict())
    report, used = checked(New, str(path))
    assert same(used, after)
    assert not report.findings
    apply(open_checkpoint(str(path)), New(), Recipe(), tmp_path / "again.pth")
    assert same(resumed(New(), torch.load(tmp_path / "again.pth", weights_only=True)), after)


# -- files and models whose order shows nothing ------------------------------------------------------------


def with_sorted_keys(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "model": {key: content["model"][key] for key in sorted(content["model"])}}


class Weights(Net):
    bias = False


class WeightsReordered(Reordered):
    bias = False


@pytest.mark.parametrize(("old", "new"), [(Net, Reordered), (Weights, WeightsReordered)])
def test_sorted_keys_are_no_witness(tmp_path: Path, old: Any, new: Any) -> None:
    content, moments = trained(old())
    path = saved(tmp_path / "sorted.pth", with_sorted_keys(content))
    reason = unchecked(checked(new, path)[0])
    assert "whether a place is that of b.weight or a.weight can't be determined" in reason
    assert "give source_model=" in reason
    with pytest.raises(MisfitError, match=r"place is that of b\.weight or a\.weight can't be determined"):
        apply(open_checkpoint(path), new(), Recipe(), tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()
    written = apply(open_checkpoint(path), new(), Recipe(), tmp_path / "new.pth", source_model=old())
    assert written.notes == ("optimizer is taken along",)
    assert same(resumed(new(), torch.load(tmp_path / "new.pth", weights_only=True)), moments)
    report, used = checked(new, path, source_model=old)
    assert report.ok
    assert same(used, moments)


class One(Net):
    layers = ("out",)


class WithHelper(Net):
    layers = ("a", "helper", "b", "out")


@pytest.mark.parametrize(
    ("old", "new", "recipe", "change"),
    [
        (Net, Net, None, dict),
        (One, One, None, with_sorted_keys),  # its shapes settle what the keys leave open
        (Backwards, Backwards, None, dict),
        (WithHelper, Reordered, Recipe(drop("helper.*")), dict),
    ],
    ids=["as it was", "sorted", "backwards", "a layer less"],
)
@pytest.mark.parametrize("with_source", [False, True], ids=["alone", "source"])
def test_where_no_place_could_be_mistaken_position_is_no_worry(
    tmp_path: Path, old: Any, new: Any, recipe: Recipe | None, change: Any, with_source: bool
) -> None:
    """Parameters that the new model dropped had places, too."""
    content, moments = trained(old())
    path = saved(tmp_path / "old.pth", change(content))
    report, used = checked(new, path, recipe=recipe, source_model=old if with_source else None)
    assert same(used, {name: each for name, each in moments.items() if not name.startswith("helper")})
    assert not report.findings
    if new is old:
        assert same(resumed(new(), content), moments)


def test_keys_that_happen_to_be_sorted_are_as_the_model_wrote_them(tmp_path: Path) -> None:
    content, moments = trained(Weights())
    assert list(content["model"]) == sorted(content["model"])
    report, used = checked(WeightsReordered, saved(tmp_path / "old.pth", content))
    assert report.ok
    assert same(used, moments)


def test_a_model_that_writes_its_keys_otherwise_is_known_by_the_new_one(tmp_path: Path) -> None:
    content, moments = trained(Backwards())
    path = saved(tmp_path / "old.pth", content)
    assert next(iter(content["model"])) == "out.bias"
    unchecked(checked(BackwardsReordered, path)[0])
    report, used = checked(BackwardsReordered, path, source_model=Backwards)
    assert report.ok
    assert same(used, moments)


def test_a_source_model_that_the_file_contradicts_settles_nothing(tmp_path: Path) -> None:
    content, _ = trained(Net())
    reason = unchecked(checked(Reordered, saved(tmp_path / "old.pth", content), source_model=Reordered)[0])
    assert "source_model has its keys in another order than the file" in reason


# -- groups, ties, what was dropped ------------------------------------------------------------------------


def no_decay_of_b(named: Any) -> torch.optim.Optimizer:
    plain = [each for name, each in named if name.startswith(("b.", "second."))]
    known = set(map(id, plain))
    rest = [each for _, each in named if id(each) not in known]
    return torch.optim.AdamW([{"params": rest}, {"params": plain, "weight_decay": 0.0}])


@pytest.mark.parametrize("source", [None, Net], ids=["alone", "source"])
def test_groups_by_name_are_followed_through_renames(tmp_path: Path, source: Any) -> None:
    model = Net()
    content, moments = trained(model, lambda _: no_decay_of_b(list(model.named_parameters())))
    path = saved(tmp_path / "old.pth", content)
    report, used = checked(Renamed, path, no_decay_of_b, recipe=RENAMES, source_model=source)
    assert not report.findings  # within each group, nothing has moved
    assert same(used, renamed(moments))


class Tied(nn.Module):
    layers: tuple[str, ...] = ("embed", "body", "head")

    def __init__(self) -> None:
        super().__init__()
        for name in self.layers:
            self.add_module(name, nn.Linear(4, 4, bias=False))
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(x))).pow(2).mean()


class TiedReordered(Tied):
    layers = ("head", "body", "embed")


class TiedLast(Tied):
    layers = ("body", "embed", "head")


@pytest.mark.parametrize("source", [None, Tied], ids=["alone", "source"])
@pytest.mark.parametrize(("new", "mixed"), [(TiedReordered, 0), (TiedLast, 2)])
def test_a_tied_parameter_has_one_place(tmp_path: Path, new: Any, mixed: int, source: Any) -> None:
    content, moments = trained(Tied())
    report, used = checked(new, saved(tmp_path / "old.pth", content), source_model=source)
    first = new.layers[0] if new is TiedReordered else "embed"
    assert same(used, {f"{first}.weight": moments["embed.weight"], "body.weight": moments["body.weight"]})
    assert len(report.findings) == bool(mixed)
    assert all(f"would give {mixed} parameters" in found.message for found in report.findings)
