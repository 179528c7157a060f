"""The origin story's network, its faces, and what was trained on them."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[2] / "examples" / "onet"
MODULES = ("onet", "faces", "train", "study")


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example's modules, imported as its user does, and gone again: other tests edit copies of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        modules = {name: importlib.import_module(name) for name in MODULES}
        yield SimpleNamespace(**modules)
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(example: Any) -> nn.Module:
    net = example.onet.NetV1()
    net.load_state_dict(torch.load(HERE / "net.pth", weights_only=True), strict=True)
    return net.eval()


def test_the_network_has_the_layers_of_the_story(example: Any) -> None:
    net = example.onet.Net()
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [
        (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])
        for conv in convolutions
    ] == [
        (3, 32, 3, 1, 1), (32, 32, 3, 2, 0),
        (32, 64, 3, 1, 0), (64, 64, 3, 2, 0),
        (64, 64, 3, 1, 0), (64, 64, 2, 2, 0),
        (64, 128, 2, 1, 0),
    ]  # fmt: skip
    for stage in (net.conv1, net.conv2, net.conv3, net.conv4):
        kinds = [type(module) for module in stage]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.PReLU] * (len(kinds) // 3)
    assert (net.fc.in_features, net.fc.out_features) == (3 * 3 * 128, 256)
    assert len(net.state_dict()) == 63


def test_the_new_network_differs_in_the_last_layer_alone(example: Any) -> None:
    old = {key: tuple(value.shape) for key, value in example.onet.NetV1().state_dict().items()}
    new = {key: tuple(value.shape) for key, value in example.onet.Net().state_dict().items()}
    assert list(old) == list(new)
    assert {key: (old[key], new[key]) for key in old if old[key] != new[key]} == {
        "out2.weight": ((4, 256), (14, 256)),
        "out2.bias": ((4,), (14,)),
    }


def test_the_network_gives_a_confidence_and_places(example: Any) -> None:
    confidence, places = example.onet.Net().eval()(torch.randn(2, 3, 48, 48) * 100)
    assert confidence.shape == (2, 1)
    assert places.shape == (2, 14)
    assert bool(((confidence >= 0) & (confidence <= 1)).all())


def test_the_checkpoint_is_a_small_plain_state_dict(example: Any) -> None:
    path = HERE / "net.pth"
    assert path.stat().st_size < 2_000_000
    state_dict = torch.load(path, weights_only=True)
    assert list(state_dict) == list(example.onet.NetV1().state_dict())
    assert {value.dtype for value in state_dict.values()} == {torch.float32, torch.int64}


def test_what_was_trained_recognises_faces_it_has_never_seen(example: Any, trained: nn.Module) -> None:
    score = example.train.evaluate(trained, example.faces.draw(500, seed=-20))
    assert score.accuracy > 0.94
    assert score.iou > 0.8


def test_an_untrained_network_scores_as_chance_does(example: Any) -> None:
    torch.manual_seed(0)
    score = example.train.evaluate(example.onet.NetV1().eval(), example.faces.draw(100, seed=-20))
    assert score.accuracy < 0.7
    assert score.iou < 0.3


def test_training_is_reproducible_and_lowers_the_loss(
    example: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example.train, "BATCH", 8)
    crops = example.faces.draw(64, seed=-3)
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        net = example.onet.NetV1()
        before = example.train.loss(net.eval(), crops).item()
        runs.append(example.train.train(net, steps=12, seed=5).state_dict())
    assert example.train.loss(net, crops).item() < 0.8 * before
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_the_same_seed_draws_the_same_crops(example: Any) -> None:
    first, again, other = (example.faces.draw(6, seed) for seed in (11, 11, 12))
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_crops_are_images_and_about_half_of_them_faces(example: Any) -> None:
    images, is_face, places = example.faces.draw(400, seed=2)
    assert images.shape == (400, 3, 48, 48)
    levels = (images + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert -1 <= images.min() < images.max() <= 1
    assert 0.4 < is_face.mean() < 0.6
    assert bool((places[is_face.flatten() == 0] == 0).all())


def test_landmarks_lie_in_the_box_as_in_a_face(example: Any) -> None:
    crops = example.faces.draw(400, seed=3)
    places = crops.places[crops.is_face.flatten() == 1]
    start, end, points = places[:, None, :2], places[:, None, 2:4], places[:, 4:].view(-1, 5, 2)
    assert bool(((points > start) & (points < end)).all())
    left_eye, right_eye, _, left_corner, right_corner = points.unbind(1)
    assert bool((left_eye[:, 0] < right_eye[:, 0]).all())
    assert bool((left_corner[:, 0] < right_corner[:, 0]).all())
    assert bool((left_eye[:, 1] < left_corner[:, 1]).all())
    assert bool((right_eye[:, 1] < right_corner[:, 1]).all())


def test_the_box_is_what_the_head_covers(example: Any) -> None:
    size = torch.ones(1, 1, 1, 1)
    head = example.faces.Frame(size * 0.5, size * 0.55, size * 0.2, size * 0.35, size * 0.5)
    rows, columns = (head.ellipse(0, 0, 1, 1)[0, 0] > 0.5).nonzero().unbind(1)
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 48
    torch.testing.assert_close(seen, head.box()[0], atol=1.0 / 48, rtol=0)
    row, column = divmod(head.ellipse(0.3, -0.4, 0.1, 0.1)[0, 0].argmax().item(), 48)
    drawn = torch.tensor([column + 0.5, row + 0.5]) / 48
    placed = head.place(size * 0.3, size * -0.4)[0]
    torch.testing.assert_close(drawn, placed, atol=1.5 / 48, rtol=0)


def test_overlap_of_boxes(example: Any) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 0, 0]])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3], [0, 0, 1, 1]])
    torch.testing.assert_close(example.train.overlap(boxes, others), torch.tensor([1, 1 / 3, 0, 0]))


@pytest.fixture
def user(project: pytest.Pytester) -> pytest.Pytester:
    """A user's copy of the example."""
    for name in ("onet.py", "test_onet.py", "net.pth"):
        shutil.copy(HERE / name, project.path)
    return project


def test_the_example_passes_and_says_what_was_verified_and_where_it_ran(user: pytest.Pytester) -> None:
    result = user.runpytest("--ckpt=net.pth", "--ckpt-device=auto")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*net.pth fits onet.Net with the recipe: 63 of 63 keys match",
            "*verified: untouched, *old rows*kept*",
            "*function kept",
            "*forward: passed on c*(2, 1), (2, 14)",
        ]
    )


def test_the_example_without_its_recipe_fails_and_asks_for_it(user: pytest.Pytester) -> None:
    test = user.path / "test_onet.py"
    before = test.read_text(encoding="utf-8")
    lines = before.splitlines(keepends=True)
    test.write_text("".join(line for line in lines if "recipe=" not in line), encoding="utf-8")
    result = user.runpytest("--ckpt=net.pth")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "net.pth does not fit onet.Net: 2 mismatched, 0 missing, 0 unexpected (61 of 63 keys match)",
            "shape-mismatch  out2.weight  (4, 256) f32  (14, 256) f32",
            "shape-mismatch  out2.bias    (4,) f32      (14,) f32",
            '    Recipe(tile("out2.[*]", dim=0))',
        ]
    )
    assert (
        'GROW_OUT2 = Recipe(tile("out2.*", dim=0))' in before
    )  # what the report asks for is what was taken out


def test_the_study_holds_every_start_and_no_run_twice(example: Any) -> None:
    study = json.loads(example.study.RESULTS.read_text(encoding="utf-8"))
    assert study["steps"] == list(example.study.MEASURED_AT)
    found = sorted((run["seed"], run["start"], run["optimizer"]) for run in study["runs"])
    assert len(set(found)) == len(found)
    assert found == sorted(product(example.study.SEEDS, example.study.STARTS, example.study.OPTIMIZERS))
    assert all(
        len(run[group]) == len(study["steps"]) for run in study["runs"] for group in example.study.GROUPS
    )


def test_the_study_tells_means_spreads_and_what_diverged(example: Any) -> None:
    rows = [line.split(" | ") for line in example.study.table().splitlines()]
    assert len(rows) == 2 + len(example.study.STARTS) * len(example.study.OPTIMIZERS)
    study = json.loads(example.study.RESULTS.read_text(encoding="utf-8"))
    ends = [run["all"][-1] for run in study["runs"] if (run["start"], run["optimizer"]) == ("tile", "Adam")]
    (row,) = [row for row in rows if row[0] == "| tile" and row[1] == "Adam"]
    ends = torch.tensor(ends)
    assert row[3] == f"{ends.mean():.2f} ± {ends.std():.2f}"
    (row,) = [row for row in rows if row[0] == "| randn" and row[1] == "SGD"]
    assert row[3] == "diverged (3 of 3)"


def test_the_study_measures_r2(example: Any) -> None:
    crops = example.study.only_faces(example.faces.draw(40, seed=6))
    told = dict(zip(crops.images.flatten(1).sum(1).tolist(), crops.places, strict=True))

    class Oracle(nn.Module):
        def __init__(self, blur: float) -> None:
            super().__init__()
            self.blur = blur

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            places = torch.stack([told[total] for total in images.flatten(1).sum(1).tolist()])
            return places[:, :1], places + self.blur * (crops.places.mean(0) - places)

    assert set(example.study.measure(Oracle(0), crops).values()) == {1.0}
    assert set(example.study.measure(Oracle(1), crops)) == {"all", "box", "landmarks"}
    assert list(example.study.measure(Oracle(1), crops).values()) == pytest.approx([0, 0, 0], abs=1e-5)
    assert list(example.study.measure(Oracle(0.5), crops).values()) == pytest.approx([0.75] * 3, abs=1e-5)


@pytest.mark.parametrize("start", ["tile", "zeros", "mean", "kaiming", "randn"])
def test_a_warm_start_takes_all_from_the_checkpoint_but_the_new_rows(example: Any, start: str) -> None:
    net, old = (
        example.study.begin(start, seed=1).state_dict(),
        torch.load(HERE / "net.pth", weights_only=True),
    )
    for key, value in old.items():
        torch.testing.assert_close(
            net[key][: len(value)] if "out2" in key else net[key], value, rtol=0, atol=0
        )
    again, other = (example.study.begin(start, seed).out2.weight for seed in (1, 2))
    assert torch.equal(again, net["out2.weight"])
    assert torch.equal(other, again) == (start in ("tile", "zeros", "mean"))


def test_the_study_found_what_the_readme_says(example: Any) -> None:
    study = json.loads(example.study.RESULTS.read_text(encoding="utf-8"))
    runs = {(run["optimizer"], run["start"], run["seed"]): run for run in study["runs"]}
    for seed in example.study.SEEDS:
        ends = {(optimizer, start): runs[optimizer, start, seed]["all"][-1] for optimizer, start, _ in runs}
        assert ends["SGD", "randn"] is None  # diverged
        assert ends["Adam", "randn"] < -10
        assert ends["SGD", "tile"] > ends["SGD", "scratch"] + 0.4
        assert ends["Adam", "tile"] > ends["Adam", "scratch"] + 0.2
        worst = {
            start: min(runs["SGD", start, seed]["box"]) for start in ("tile", "zeros", "mean", "kaiming")
        }
        assert worst["mean"] > worst["tile"] > worst["zeros"] > worst["kaiming"]
