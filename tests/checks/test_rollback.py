"""Old code on new checkpoints: what a rollback needs."""

import pytest
import torch
from networks import Boxes, Grown
from torch import nn

from pytest_ckptcompat import Recipe, check, strip_prefix, tile

GROW = Recipe(tile("out2.*", dim=0))


class Lenient(Boxes):
    """A released model whose own loader takes the wider head in."""

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(self._narrow)

    @staticmethod
    def _narrow(module, state_dict, prefix, *rest):
        for leaf in ("weight", "bias"):
            key = f"{prefix}out2.{leaf}"
            if key in state_dict:
                state_dict[key] = state_dict[key][:4]


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Boxes().state_dict(), "net.pth")
    return "net.pth"


def rules(report):
    return [(found.rule, found.key, found.checkpoint, found.model) for found in report.errors]


def test_a_change_that_can_be_rolled_back(net):
    reports = {
        direction: check(Boxes, net, direction=direction) for direction in ("backward", "forward", "full")
    }
    assert all(report.ok for report in reports.values())
    assert {direction: report.verdict for direction, report in reports.items()} == {
        "backward": "net.pth fits networks.Boxes: 28 of 28 keys match",
        "forward": "net.pth: the released model can load checkpoints of today's networks.Boxes",
        "full": "net.pth fits networks.Boxes: 28 of 28 keys match, "
        "and the released model can load today's checkpoints",
    }


def test_the_verdict_says_that_it_is_the_rollback_that_fails(net):
    verdict = check(Grown, net, direction="forward").verdict
    counts = "2 mismatched, 0 missing, 0 unexpected"
    cant = "the released model can't load checkpoints of today's networks.Grown"
    assert verdict == f"net.pth: {cant}: {counts}"
    grown = check(Grown, net, direction="full", recipe=GROW)
    assert grown.verdict == f"net.pth fits networks.Grown, but {cant}: {counts}"


def test_a_grown_head_fails_a_rollback_though_the_recipe_loads(net):
    assert check(Grown, net, recipe=GROW).ok
    for direction in ("forward", "full"):
        assert rules(check(Grown, net, recipe=GROW, direction=direction)) == [
            ("rollback-mismatch", "out2.weight", "(4, 8) f32", "(14, 8) f32"),
            ("rollback-mismatch", "out2.bias", "(4,) f32", "(14,) f32"),
        ]


@pytest.mark.parametrize("source", [None, nn.Linear])
def test_missing_and_unexpected_are_seen_from_the_released_model(source, tmp_path):
    released, today = nn.Linear(2, 2), nn.ModuleDict({"fc": nn.Linear(2, 2)})
    torch.save(released.state_dict(), tmp_path / "net.pth")
    given = {} if source is None else {"source_model": lambda: nn.Linear(2, 2)}
    report = check(lambda: today, tmp_path / "net.pth", direction="forward", **given)
    assert {(rule, key) for rule, key, _, _ in rules(report)} == {
        ("rollback-missing", "weight"),
        ("rollback-missing", "bias"),
        ("rollback-unexpected", "fc.weight"),
        ("rollback-unexpected", "fc.bias"),
    }


def test_the_released_models_own_loader_judges_where_it_is_at_hand(net):
    assert not check(Grown, net, direction="forward").ok
    assert check(Grown, net, direction="forward", source_model=Lenient).ok


@pytest.mark.parametrize("judge", [None, "its own loader"])
def test_the_columns_are_the_released_model_and_todays(net, judge):
    """Whoever judges: the released side stands under ``checkpoint``."""

    class Changed(Grown):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(2, 3, bias=False)
            self.out2.bias = None

    report = check(Changed, net, direction="forward", source_model=judge and Boxes)
    assert sorted(rules(report)) == [
        ("rollback-mismatch", "out2.weight", "(4, 8) f32", "(14, 8) f32"),
        ("rollback-missing", "out2.bias", "(4,) f32", ""),
        ("rollback-unexpected", "extra.weight", "", "(3, 2) f32"),
    ]


@pytest.mark.parametrize("direction", ["forward", "full"])
def test_a_lazy_module_takes_any_shape(tmp_path, direction):
    def lazy():
        return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))

    run = lazy()
    run(torch.ones(1, 2))
    torch.save(run.state_dict(), tmp_path / "net.pth")
    report = check(lazy, tmp_path / "net.pth", direction=direction)
    assert report.ok, str(report)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_the_prefix_of_a_wrapper_in_training_is_not_a_difference(net, prefix):
    torch.save({f"{prefix}{key}": value for key, value in Boxes().state_dict().items()}, "wrapped.pth")
    recipe = Recipe(strip_prefix(prefix))
    assert check(Boxes, "wrapped.pth", recipe=recipe, direction="full").ok
    assert not check(Grown, "wrapped.pth", recipe=recipe, direction="forward").ok
