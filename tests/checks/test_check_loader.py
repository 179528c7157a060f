"""The loader under test: right ones are green, wrong ones are red with the keys, and nothing is a false alarm."""

from __future__ import annotations

import functools
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import settle
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pytest_ckptcompat import (
    Recipe,
    Release,
    Releases,
    allow,
    append,
    check,
    concat,
    fold_batch_norm,
    fold_weight_norm,
    load,
    tile,
)
from pytest_ckptcompat.checks.check import STAGES
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.verification.loader_faults import RANDOM, UNCHANGED

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat import Report

WIDTH = 12


class Net(nn.Module):
    """Convolution with running statistics, attention with separate projections, a head, positions."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH), nn.PReLU())
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, outputs)
        self.register_buffer("position_ids", torch.arange(7)[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head(x)


class Fused(Net):
    """The same with one projection."""

    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).transpose(1, 2)
        return self.head(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


def trained(make: Callable[[], nn.Module] = Net, seed: int = 1) -> OrderedDict[str, Any]:
    """What training leaves, with position ids as they are."""
    state = settle(make(), seed).state_dict()
    state["position_ids"] = torch.arange(7)[None]
    return OrderedDict((key, value.clone()) for key, value in state.items())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same trained model as its users find it."""
    state = trained()
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "ddp.pth")
    torch.save({"model": state, "ema": trained(seed=2)}, tmp_path / "ema.pth")
    torch.save(trained(Fused), tmp_path / "fused.pth")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "plain.safetensors")
    kernels = {
        key: value.t().contiguous() if value.dim() == 2 and "weight" in key else value
        for key, value in state.items()
    }
    torch.save(kernels, tmp_path / "kernels.pth")
    return tmp_path


def read(path: str) -> Any:
    return torch.load(path, weights_only=True)


def loaded(state: dict[str, Any], make: Callable[[], nn.Module] = Net, strict: bool = True) -> nn.Module:
    model = make()
    model.load_state_dict(state, strict=strict)
    return model


def loading(
    edit: Callable[[Any], Any], make: Callable[[], nn.Module] = Net, strict: bool = True
) -> Callable[[str], nn.Module]:
    """A loading function that edits what it read."""
    return lambda path: loaded(edit(read(path)), make, strict)


def stripped(held: Any) -> dict[str, Any]:
    return {key.removeprefix("module."): value for key, value in held["state_dict"].items()}


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def turned(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.t() if value.dim() == 2 and "weight" in key else value for key, value in state.items()}


def fused(state: dict[str, Any]) -> dict[str, Any]:
    for leaf in ("weight", "bias"):
        state[f"qkv.{leaf}"] = torch.cat([state.pop(f"{part}.{leaf}") for part in "qkv"])
    return state


def split(state: dict[str, Any]) -> dict[str, Any]:
    for leaf in ("weight", "bias"):
        for part, rows in zip("qkv", state.pop(f"qkv.{leaf}").chunk(3), strict=True):
            state[f"{part}.{leaf}"] = rows
    return state


def swapped(state: dict[str, Any]) -> dict[str, Any]:
    for leaf in ("weight", "bias"):
        state[f"q.{leaf}"], state[f"k.{leaf}"] = state[f"k.{leaf}"], state[f"q.{leaf}"]
    return state


# -- right ones ------------------------------------------------------------------------------------------------


def strict(path: str) -> nn.Module:
    return loaded(read(path))


def in_place(model: nn.Module, path: str) -> None:
    model.load_state_dict(read(path))


def half_and_back(path: str) -> nn.Module:
    return strict(path).bfloat16().float()


def assigning(path: str) -> nn.Module:
    with torch.device("meta"):
        model = Net()
    model.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    return model


def streaming(path: str) -> nn.Module:
    model = Net()
    places = model.state_dict()
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            places[key].copy_(file.get_tensor(key))
    return model


transposed, fusing = loading(turned), loading(fused, Fused)

RIGHT: dict[str, tuple[Callable[..., Any], str]] = {
    "strict": (strict, "plain.pth"),
    "prefix stripped": (loading(stripped), "ddp.pth"),
    "in place": (in_place, "plain.pth"),
    "half": (lambda path: strict(path).half(), "plain.pth"),
    "half and back": (half_and_back, "plain.pth"),
    "transposed": (transposed, "kernels.pth"),
    "fused": (fusing, "plain.pth"),
    "split": (loading(split), "fused.pth"),
    "assigned": (assigning, "plain.pth"),
    "streamed": (streaming, "plain.safetensors"),
    "by the gate's recipe": (lambda path: load(Net, path), "plain.pth"),
}


def judged(loader: Callable[..., Any], path: Path, **more: Any) -> Report:
    model = Net if loader in (in_place, dropping_in_place, stale_in_place) else None
    return check(model, path, loader=loader, **more)


@pytest.mark.parametrize("name", RIGHT)
def test_right_loaders_are_green(name: str, files: Path) -> None:
    loader, file = RIGHT[name]
    inputs = None if name == "half" else (2, 3, 7)
    report = judged(loader, files / file, inputs=inputs)
    assert report.ok, str(report)
    assert report.findings == []
    assert report.matched == report.total == 17 - 4 * (name == "fused")
    assert f": {report.total} of {report.total} keys hold" in report.verdict
    stages = {stage.name: stage.status for stage in report.stages}
    assert stages["verify"] == stages["load"] == "passed"
    assert stages["forward"] == ("passed" if inputs else "skipped")


# -- wrong ones ------------------------------------------------------------------------------------------------


def dropping_in_place(model: nn.Module, path: str) -> None:
    model.load_state_dict(without("bias")(read(path)), strict=False)


def with_a_new_head(path: str) -> nn.Module:
    model = strict(path)
    model.head.reset_parameters()
    return model


@functools.cache
def cached() -> nn.Module:
    return loaded(trained(seed=7))


def stale_in_place(model: nn.Module, path: str) -> None:
    model.load_state_dict(cached().state_dict())


wrong_prefix = loading(lambda held: held["state_dict"], strict=False)
swapping, forgetting_statistics = loading(swapped), loading(without("running"), strict=False)
taking_the_average = loading(lambda held: held["ema"])

RANDOM_KEYS = {f"{name}.{leaf}" for name in ("stem.0", "q", "k", "v", "head") for leaf in ("weight", "bias")}
"""Those that a constructor draws."""
BIASES = {f"{name}.bias" for name in ("stem.0", "stem.1", "q", "k", "v", "head")}
STATISTICS = {"stem.1.running_mean", "stem.1.running_var"}
LOADED = RANDOM_KEYS | STATISTICS | {"stem.1.weight", "stem.1.bias", "stem.2.weight"}
"""All but the counter and the positions, which are the same whatever was loaded."""
EVERY = LOADED | {"stem.1.num_batches_tracked", "position_ids"}
Q_AND_K = {"q.weight", "q.bias", "k.weight", "k.bias"}

WRONG: dict[str, tuple[Callable[..., Any], str, set[str], set[str], str]] = {
    "wrong prefix": (wrong_prefix, "ddp.pth", EVERY, set(), "loads nothing of "),
    "half of it": (loading(without("bias"), strict=False), "plain.pth", BIASES, set(), "11 of 17 keys hold"),
    "half of it in place": (dropping_in_place, "plain.pth", BIASES, set(), "11 of 17 keys hold"),
    "swapped": (swapping, "plain.pth", set(), Q_AND_K, "13 of 17 keys hold"),
    "swapped, prefix": (loading(lambda held: swapped(stripped(held))), "ddp.pth", set(), Q_AND_K, "13 of 17"),
    "no statistics": (forgetting_statistics, "plain.pth", STATISTICS, set(), "15 of 17 keys hold"),
    "no statistics, prefix": (
        loading(lambda held: without("running")(stripped(held)), strict=False),
        *("ddp.pth", STATISTICS, set(), "15 of 17 keys hold"),
    ),
    "the average": (taking_the_average, "ema.pth", set(), LOADED, "2 of 17 keys hold"),
    "new head": (with_a_new_head, "plain.pth", {"head.weight", "head.bias"}, set(), "15 of 17 keys hold"),
    "stale": (lambda path: cached(), "plain.pth", set(), LOADED, "2 of 17 keys hold"),
    "stale in place": (stale_in_place, "plain.pth", set(), LOADED, "2 of 17 keys hold"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_loaders_are_red_with_the_keys(what: str, files: Path) -> None:
    loader, name, missed, other, said = WRONG[what]
    more = {"state_dict_key": "model"} if name == "ema.pth" else {}
    report = judged(loader, files / name, inputs=(2, 3, 7), **more)
    assert not report.ok
    assert {found.key for found in report.errors if found.rule == "loader-missed"} == missed
    assert {found.key for found in report.errors if found.rule == "loader-other"} == other
    assert said in report.verdict, report.verdict
    stages = {stage.name: stage.status for stage in report.stages}
    assert (stages["load"], stages["verify"], stages["forward"]) == ("passed", "failed", "skipped")


def messages(report: Report) -> dict[str, str]:
    return {found.key: found.message for found in report.errors}


def test_what_a_key_holds_instead_is_told(files: Path) -> None:
    assert messages(judged(swapping, files / "plain.pth"))["q.weight"] == "holds k.weight"
    assert messages(judged(with_a_new_head, files / "plain.pth"))["head.bias"] == RANDOM
    assert messages(judged(dropping_in_place, files / "plain.pth"))["q.bias"] == UNCHANGED
    average = judged(taking_the_average, files / "ema.pth", state_dict_key="model")
    assert messages(average)["q.weight"] == "holds the values of 'ema'"
    assert messages(judged(forgetting_statistics, files / "plain.pth"))["stem.1.running_var"] == "ones"


def test_tensors_that_reached_nothing_are_a_warning(files: Path) -> None:
    report = judged(wrong_prefix, files / "ddp.pth")
    unused = {found.key for found in report.findings if found.rule == "loader-unused"}
    assert "module.q.weight" in unused
    assert all(found.severity == "warn" for found in report.findings if found.key in unused)


def raising(path: str) -> nn.Module:
    raise RuntimeError(f"no such version in {path[-9:]}")


def leaving(path: str) -> nn.Module:
    raise SystemExit("goodbye")


def giving_a_pair(path: str) -> Any:
    return strict(path), {"epoch": 3}


def giving_nothing(path: str) -> None:
    strict(path)


def of_three(model: nn.Module, path: str, config: str) -> nn.Module:
    return model


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (raising, "raising raised RuntimeError: no such version in plain.pth"),
        (leaving, "goodbye"),
        (giving_a_pair, "giving_a_pair returned a tuple, not the model"),
        (giving_nothing, "giving_nothing returned nothing, not the model"),
        (
            of_three,
            "of_three is called with (path): TypeError: of_three() missing 2 required positional arguments",
        ),
        (in_place, "in_place is called with (path)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_loader_that_gives_no_model(loader: Callable[..., Any], said: str, files: Path) -> None:
    report = check(ckpt=files / "plain.pth", loader=loader)
    (found,) = report.errors
    assert found.rule == "loader-error"
    assert said in found.message
    assert "plain.pth was not loaded: " in report.verdict
    assert [stage.name for stage in report.stages] == list(STAGES)


@pytest.mark.parametrize(
    ("model", "loader", "rule", "said"),
    [
        (Net, strict, "loader-error", "is called with (model, path), since model= is given"),
        (None, "nowhere:load", "model-error", "no module 'nowhere'"),
    ],
)
def test_a_loader_that_can_t_be_called(model: Any, loader: Any, rule: str, said: str, files: Path) -> None:
    report = check(model, files / "plain.pth", loader=loader)
    assert report.errors[0].rule == rule
    assert said in report.verdict


class Growing(Net):
    def __init__(self) -> None:
        super().__init__(outputs=10)


def doubled(state: dict[str, Any]) -> dict[str, Any]:
    return state | {key: torch.cat([state[key]] * 2) for key in ("head.weight", "head.bias")}


growing = loading(doubled, Growing)


def test_growth_that_no_recipe_declares_is_not_the_checkpoint_s(files: Path) -> None:
    report = judged(growing, files / "plain.pth", recipe=Recipe(tile("head.*", dim=0)))
    assert report.ok
    assert {promise.status for promise in report.promises} == {"kept"}
    wrong = judged(with_a_new_head, files / "plain.pth", recipe=Recipe(tile("head.*", dim=0, to=10)))
    assert not wrong.ok


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_that_nothing_loads_is_unused(tmp_path: Path) -> None:
    path, state = tmp_path / "nested.pth", trained(Net)
    torch.save(state | {"aux": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, path)
    report = check(ckpt=path, loader=loading(lambda state: {key: state[key] for key in Net().state_dict()}))
    assert report.ok
    assert [(each.rule, each.key) for each in report.findings] == [("loader-unused", "aux")]


class Small(nn.Module):
    def __init__(self, outputs: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 6).to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.08, True), (1.5, False)])
def test_growth_in_float8_may_be_rounded_otherwise(tmp_path: Path, factor: float, right: bool) -> None:
    path = tmp_path / "small.pth"
    torch.save(Small().state_dict(), path)

    def loader(path: str) -> nn.Module:
        model, rows = Small(16), torch.load(path)["weight"].float()
        model.load_state_dict({"weight": torch.cat([rows, rows * factor]).to(torch.float8_e4m3fn)})
        return model

    report = check(ckpt=path, loader=loader, recipe=Recipe(tile("weight", dim=0)))
    assert [each.rule for each in report.findings] == ([] if right else ["loader-other"])


def test_an_old_release_by_the_recipes_of_the_product(files: Path) -> None:
    """The loader is one line: the same releases file says what it is compared with."""
    torch.save(trained(Growing), files / "new.pth")
    for name in ("plain", "new"):
        assert main(["lock", str(files / f"{name}.pth"), "-o", str(files / f"{name}.ckpt.json")]) == 0
    releases = Releases(
        Release("v1", files / "plain.ckpt.json", Recipe(tile("head.*", dim=0))),
        Release("v2", files / "new.ckpt.json"),
    )
    report = judged(lambda path: load(Growing, path, recipe=releases), files / "plain.pth", recipe=releases)
    assert report.ok, str(report)
    assert "release v1" in next(stage.detail for stage in report.stages if stage.name == "open")
    half = judged(
        lambda path: load(Growing, path, recipe=releases).half(), files / "plain.pth", recipe=releases
    )
    assert half.ok, str(half)
    assert not judged(with_a_new_head, files / "plain.pth", recipe=releases).ok


class Folded(nn.Module):
    """A convolution with its norm, and a projection with weight norm; or with both folded, by torch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
        self.words = nn.Embedding(20, 8)

    def fold(self) -> nn.Module:
        self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()
        nn.utils.parametrize.remove_parametrizations(self.out, "weight")
        return self


def folding(path: str) -> nn.Module:
    return loaded(read(path), Folded).fold()


def folding_and_growing(path: str, std: float = 1.0) -> nn.Module:
    model = folding(path)
    old = model.words.weight.detach()
    model.words = nn.Embedding(200, 8)
    model.words.weight.data.mul_(std * old.std()).__setitem__(slice(20), old)
    return model


FOLD = (fold_batch_norm("conv", "norm"), fold_weight_norm("out.weight"))


def test_what_a_recipe_computes_may_be_rounded_and_drawn_otherwise(tmp_path: Path) -> None:
    """torch folds in float32, and new rows are random: neither gives the bits that the recipe gives."""
    path = tmp_path / "net.pth"
    torch.save(settle(Folded()).state_dict(), path)
    assert {found.key for found in check(ckpt=path, loader=folding).errors} == {
        *("conv.weight", "conv.bias", "out.weight")
    }
    report = check(ckpt=path, loader=folding, recipe=Recipe(*FOLD))
    assert report.ok, str(report)
    assert check(ckpt=path, loader=lambda path: folding(path).half(), recipe=Recipe(*FOLD)).ok
    growing = Recipe(*FOLD, append("words.weight", dim=0, init="normal"))
    assert check(ckpt=path, loader=folding_and_growing, recipe=growing).ok
    for wrong in (
        functools.partial(folding_and_growing, std=5.0),
        lambda path: folding_and_growing(path, std=0.0),
        lambda path: with_noise(folding_and_growing(path), "out.weight"),
        lambda path: with_noise(folding_and_growing(path), "words.weight"),
    ):
        report = check(ckpt=path, loader=wrong, recipe=growing)
        assert [found.rule for found in report.errors] == ["loader-other"], str(report)


def with_noise(model: nn.Module, key: str) -> nn.Module:
    model.get_parameter(key).data[0, 0] += 1e-3
    return model


def test_a_recipe_says_in_which_order_lines_stand(files: Path) -> None:
    fuse = Recipe(
        concat(["q.weight", "k.weight", "v.weight"], "qkv.weight", dim=0),
        concat(["q.bias", "k.bias", "v.bias"], "qkv.bias", dim=0),
    )

    def loader(path: str, order: str = "qkv") -> nn.Module:
        state = read(path)
        parts = {part: (state.pop(f"{part}.weight"), state.pop(f"{part}.bias")) for part in "qkv"}
        state["qkv.weight"], state["qkv.bias"] = (torch.cat([parts[p][i] for p in order]) for i in (0, 1))
        return loaded(state, Fused)

    assert check(ckpt=files / "plain.pth", loader=loader, recipe=fuse).ok
    wrong = check(ckpt=files / "plain.pth", loader=functools.partial(loader, order="kqv"), recipe=fuse)
    assert messages(wrong)["qkv.weight"] == "the lines are the checkpoint's, in another order"


def turning_a_square(path: str) -> nn.Module:
    model = strict(path)
    model.q.weight.data = model.q.weight.data.t().contiguous()
    return model


def test_a_square_is_transposed_only_where_others_are(files: Path) -> None:
    wrong = check(ckpt=files / "plain.pth", loader=turning_a_square)
    assert messages(wrong) == {"q.weight": "the checkpoint's values transposed"}
    assert check(ckpt=files / "kernels.pth", loader=transposed).ok
    net = nn.RNN(4, 4)
    torch.save(
        {key: value.t() if value.dim() == 2 else value for key, value in net.state_dict().items()},
        files / "t.pth",
    )
    assert check(ckpt=files / "t.pth", loader=lambda path: net).ok, "every square is"


class Quantized(nn.Module):
    """Eight bits a weight, a scale a row, as libraries write it themselves."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias


def in_eight_bits(path: str, loaded: bool = True) -> nn.Module:
    model = strict(path)
    if not loaded:
        model.q.reset_parameters()
    model.q, model.head = Quantized(model.q), Quantized(model.head)
    return model


def by_torch(path: str, loaded: bool = True) -> nn.Module:
    model = strict(path)
    if not loaded:
        model.q.reset_parameters()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("loader", "key"), [(in_eight_bits, "q.weight"), (by_torch, "q._packed_params._packed_params[0]")]
)
@pytest.mark.filterwarnings("ignore")
def test_quantized_values_are_recognised(loader: Callable[..., Any], key: str, files: Path) -> None:
    report = check(ckpt=files / "plain.pth", loader=loader)
    assert report.ok, str(report)
    assert report.findings == []
    assert "quantized" in next(stage.detail for stage in report.stages if stage.name == "verify")
    wrong = check(ckpt=files / "plain.pth", loader=functools.partial(loader, loaded=False))
    assert key in {found.key for found in wrong.errors}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_card_is_traced_too(files: Path) -> None:
    def on_card(loader: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (loader(*arguments) or arguments[0]).cuda()

    for loader in (strict, fusing, half_and_back):
        report = check(ckpt=files / "plain.pth", loader=on_card(loader), inputs=(2, 3, 7))
        assert report.ok, str(report)
    wrong = check(ckpt=files / "plain.pth", loader=on_card(with_a_new_head))
    assert messages(wrong) == dict.fromkeys(("head.weight", "head.bias"), RANDOM)
    half = check(Net, files / "plain.pth", loader=on_card(dropping_in_place))
    assert set(messages(half).values()) == {UNCHANGED}


def on_meta(path: str) -> nn.Module:
    with torch.device("meta"):
        model = Net()
    state = {key: value for key, value in read(path).items() if not key.startswith("head.")}
    model.load_state_dict(state, strict=False, assign=True)
    return model


def test_tensors_left_on_the_meta_device_are_missed(files: Path) -> None:
    report = judged(on_meta, files / "plain.pth")
    assert messages(report) == dict.fromkeys(
        ("head.weight", "head.bias"), "on the meta device, without values"
    )


class Broken(Net):
    """Its own code refuses what is asked of every module."""

    def __init__(self, method: str) -> None:
        super().__init__()
        setattr(self, method, self.refuse)

    def refuse(self, *arguments: Any, **more: Any) -> Any:
        raise OSError("not here")


@pytest.mark.parametrize("method", ["state_dict", "eval", "named_parameters"])
def test_a_model_that_can_t_be_examined_is_one_error(method: str, files: Path) -> None:
    def loader(path: str) -> nn.Module:
        model = Broken(method)
        Net.load_state_dict(model, read(path), strict=False)
        return model

    report = check(ckpt=files / "plain.pth", loader=loader)
    assert [found.rule for found in report.errors] == ["loader-error"], str(report)
    assert "OSError: not here" in report.verdict


def test_what_a_loader_changes_for_the_process_is_given_back(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is relative: what comes after the loader still finds the file."""
    monkeypatch.chdir(files)

    def loader(path: str) -> nn.Module:
        model = strict(path)
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        return model

    try:
        report = check(ckpt="plain.pth", loader=loader, inputs=(2, 3, 7))
        left = Path.cwd(), torch.get_default_dtype(), torch.empty(0).device, torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    assert report.ok, str(report)
    assert left == (files, torch.float32, torch.device("cpu"), True)


class Loud(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("forward")  # noqa: T201
        return super().forward(x)


def loud(path: str) -> nn.Module:
    print("loading")  # noqa: T201
    return loaded(read(path), Loud)


def test_what_a_loader_prints_is_not_in_the_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "check",
        str(files / "plain.pth"),
        "--loader",
        f"{__name__}:loud",
        "--inputs",
        "2x3x7",
        "--json",
    ]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ok"]
    assert printed.err.startswith("loading\nforward\n")


class Exported(Net):
    """As a program of `torch.export`, which is in eval mode and has no other."""

    def eval(self) -> Exported:
        raise NotImplementedError("Calling eval() is not supported yet.")


@pytest.mark.parametrize("make", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_programs_are_models_too(make: Callable[..., nn.Module], files: Path) -> None:
    def exporting(path: str) -> nn.Module:
        return loaded(read(path), Exported)

    for loader in (lambda path: make(strict(path)), exporting):
        report = check(ckpt=files / "plain.pth", loader=loader)
        assert report.ok, str(report)


def test_an_in_place_loader_may_return_what_it_likes(files: Path) -> None:
    assert check(Net, files / "plain.pth", loader=lambda model, path: model.load_state_dict(read(path))).ok
    report = check(Net, files / "plain.pth", loader=lambda model, path: ({}, 3))
    assert set(messages(report).values()) == {UNCHANGED}


def test_of_two_state_dicts_both_are_named(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save({"model": trained(), "ema": trained(seed=2), "model_ema": trained(seed=3)}, path)
    report = check(ckpt=path, loader=taking_the_average)
    assert "'model' (17 tensors), " in report.verdict
    assert "'model_ema' (17 tensors)" in report.verdict
    assert check(ckpt=path, loader=taking_the_average, state_dict_key="ema").ok


class Extended(Net):
    """Has what no checkpoint has: a table that its constructor computes, a counter, a new part, another head."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1 / 10 ** (torch.arange(6) / 6))
        self.register_buffer("order", torch.randperm(50))
        self.adapter = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.adapter.bias)


def extending(path: str) -> nn.Module:
    return loaded(read(path), Extended, strict=False)


def extending_in_place(model: nn.Module, path: str) -> None:
    model.load_state_dict(read(path), strict=False)


@pytest.mark.parametrize("model", [None, Extended])
def test_only_what_a_constructor_draws_is_missed(files: Path, model: Any) -> None:
    report = check(model, files / "plain.pth", loader=extending_in_place if model else extending)
    assert {found.key for found in report.findings} == {"adapter.weight", "order"}
    verify = next(stage for stage in report.stages if stage.name == "verify")
    assert "17 of 21 keys hold the checkpoint's values" in verify.detail
    assert "frequencies (computed, not drawn)" in verify.detail
    assert "adapter.bias (zeros)" in verify.detail
    waived = check(
        model,
        files / "plain.pth",
        loader=extending_in_place if model else extending,
        allow=[allow("loader-missed", key, reason="new") for key in ("adapter.*", "order")],
    )
    assert waived.ok


def untouched(model: nn.Module, path: str) -> None:
    """Loads nothing into a model that is all constants."""


def with_a_lazy_head(path: str) -> nn.Module:
    model = strict(path)
    model.extra = nn.LazyLinear(3)
    return model


def test_a_lazy_part_that_was_never_initialised_is_missed(files: Path) -> None:
    report = judged(with_a_lazy_head, files / "plain.pth")
    assert messages(report) == dict.fromkeys(("extra.weight", "extra.bias"), "without values or shape")


class Odd(torch.Tensor):
    """A tensor of a library that has no plain values."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            raise NotImplementedError("Odd has no cpu")
        return super().__torch_function__(func, types, args, kwargs or {})


def with_odd_tensors(path: str) -> nn.Module:
    model = strict(path)
    model.head.bias = nn.Parameter(model.head.bias.detach().as_subclass(Odd))
    return model


def test_values_that_can_t_be_compared_are_an_error_of_one_line(files: Path) -> None:
    report = judged(with_odd_tensors, files / "plain.pth")
    assert [found.rule for found in report.errors] == ["loader-error"]
    assert "the values of its model can't be compared: NotImplementedError: Odd has no cpu" in report.verdict


def test_nothing_but_constants_is_no_pass(files: Path) -> None:
    report = check(lambda: nn.BatchNorm1d(12), files / "plain.pth", loader=untouched)
    assert not report.ok
    assert "loads nothing of " in report.verdict


@pytest.mark.parametrize("device", ["none", "rehearse", "cpu"])
def test_the_loader_runs_whatever_the_device_of_the_forward_pass(files: Path, device: str) -> None:
    assert not judged(swapping, files / "plain.pth", device=device).ok
    assert judged(strict, files / "plain.pth", device=device).ok


def test_a_lock_has_keys_to_compare_and_nothing_to_load(files: Path) -> None:
    lock = files / "plain.ckpt.json"
    assert main(["lock", str(files / "plain.pth"), "-o", str(lock)]) == 0
    report = check(Net, lock, loader=in_place)
    assert report.ok
    load_stage = next(stage for stage in report.stages if stage.name == "load")
    assert (load_stage.status, load_stage.detail) == (
        "skipped",
        "a lock file has no values, and the loader was not run",
    )
    without = check(ckpt=lock, loader=strict)
    assert without.errors[0].rule == "loader-error"
    assert (
        "a lock file has no values: there is nothing to load; with model= its keys are compared"
        in without.verdict
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"direction": "full"}, "direction='full' is for a model's own strict load"),
        ({"optimizer": torch.optim.SGD}, "optimizer= can't be checked beside loader="),
        ({"source_model": Net}, "source_model= can't be checked beside loader="),
        ({"loader": 3}, "loader= wants your function"),
        ({"loader": "strict"}, "loader: 'strict' is not a loader name. Use 'package.module:name'"),
    ],
)
def test_arguments_that_say_nothing_about_a_loader(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        check(ckpt="plain.pth", **{"loader": strict, **more})


@pytest.mark.parametrize("path", ["memory://plain.pth", "nothing-*.pth"])
def test_a_loader_gets_one_file_or_folder(path: str) -> None:
    report = check(ckpt=path, loader=strict)
    assert [found.rule for found in report.errors] == ["no-checkpoint"]


def test_json_names_the_loader(files: Path) -> None:
    content = json.loads(judged(strict, files / "plain.pth").to_json())
    assert content["loader"] == f"{__name__}.strict"
    assert content["keys"] == {"matched": 17, "total": 17}


# -- other people's libraries ----------------------------------------------------------------------------------


def test_lightning_s_own_loader(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", exc_type=ImportError)

    class Digits(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

    model = settle(Digits(width=9))
    saved = {
        "state_dict": model.state_dict(),
        "hyper_parameters": {"width": 9},
        "pytorch-lightning_version": "2.0.0",
    }
    torch.save(saved, tmp_path / "digits.ckpt")
    report = check(ckpt=tmp_path / "digits.ckpt", loader=Digits.load_from_checkpoint)
    assert report.ok, str(report)
    assert report.matched == report.total == 9


def test_transformers_own_loader(tmp_path: Path) -> None:
    """A missing key, or one of another size, is a warning that nobody reads there; the model is random."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=32, tie_word_embeddings=True)
    model = settle(transformers.LlamaForCausalLM(config))
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    loader = transformers.AutoModelForCausalLM.from_pretrained
    report = check(ckpt=tmp_path, loader=loader)
    assert report.ok, str(report)
    assert report.matched == report.total == len(model.state_dict())
    wider = functools.partial(loader, ignore_mismatched_sizes=True, vocab_size=40)
    wrong = check(ckpt=tmp_path, loader=wider)
    assert {found.key for found in wrong.errors} == {"model.embed_tokens.weight", "lm_head.weight"}
