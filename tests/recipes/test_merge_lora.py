from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from proving import proved, statuses
from torch import nn
from torch.nn import functional

from pytest_ckptcompat import Recipe, RecipeError, check, merge_lora
from pytest_ckptcompat.optimizer.growth import grown

if TYPE_CHECKING:
    from pathlib import Path


class Lora(nn.Module):
    """As PEFT wraps a linear layer."""

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 2.0) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> Any:
        return self.base_layer(x) + self.scale * self.lora_B["default"](self.lora_A["default"](x))


class Net(nn.Module):
    def __init__(self, wrap: Any = lambda module: module) -> None:
        super().__init__()
        self.q, self.v, self.out = wrap(nn.Linear(5, 5)), wrap(nn.Linear(5, 6)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(torch.tanh(self.v(torch.tanh(self.q(x)))))


class Peft(nn.Module):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = Net(lambda module: Lora(module, scale=scale))

    def forward(self, x: torch.Tensor) -> Any:
        return self.base_model.model(x)  # type: ignore[operator]


MERGE = merge_lora("base_model.model.", alpha=4)


def saved(folder: Path, scale: float = 2.0) -> tuple[Path, Peft]:
    torch.manual_seed(1)
    model = Peft(scale)
    torch.save(model.state_dict(), folder / "old.pth")
    return folder / "old.pth", model


def test_adapters_are_merged_into_their_weights(tmp_path: Path) -> None:
    path, model = saved(tmp_path)
    state = model.state_dict()
    made = MERGE.apply(state, Net().state_dict())
    a, b = (state[f"base_model.model.v.lora_{part}.default.weight"].double() for part in "AB")
    expected = state["base_model.model.v.base_layer.weight"].double() + 2 * (b @ a)
    assert torch.equal(made["v.weight"], expected.float())
    assert made.keys() == Net().state_dict().keys()
    assert statuses(MERGE, state, made, Net().state_dict()) == ["kept", "kept"]
    report = check(Net, path, recipe=Recipe(MERGE), source_model=Peft, inputs=(3, 5), device="cpu")
    assert report.ok, str(report)
    wrong = check(
        Net, path, recipe=Recipe(merge_lora("base_model.model.", alpha=8)), source_model=Peft, inputs=(3, 5),
        device="cpu",
    )  # fmt: skip
    assert "function-changed" in wrong.verdict


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model"])
def test_spoiled_weights_are_caught(prefix: str, tmp_path: Path) -> None:
    _, model = saved(tmp_path)
    operator, state = merge_lora(prefix, alpha=4), model.state_dict()
    right = operator.apply(state, {})
    for key, broken in (("q.weight", ["broken", "kept"]), ("out.weight", ["kept", "broken"])):
        wrong = {**right, key: right[key] * 1.001}
        assert statuses(operator, state, wrong, {}) == broken


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"peft_type": "LORA", "r": 2, "lora_alpha": 4}, 2.0),
        ({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
    ],
)
def test_the_scale_comes_from_the_file_beside_the_checkpoint(
    config: Any, scale: float, tmp_path: Path
) -> None:
    path, _ = saved(tmp_path, scale)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = check(
        Net, path, recipe=Recipe(merge_lora("base_model.model.")), source_model=lambda: Peft(scale), inputs=(3, 5),
        device="cpu",
    )  # fmt: skip
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("operator", "config", "text"),
    [
        (merge_lora("base_model.model."), None, "needs alpha="),
        (merge_lora("base_model.model."), {"lora_alpha": 4, "use_dora": True}, "use_dora"),
        (merge_lora("base_model.model."), {"lora_alpha": 4, "alpha_pattern": {"q": 8}}, "alpha_pattern"),
        (MERGE, {"lora_alpha": 16}, "alpha is 4, and it has lora_alpha 16"),
        (merge_lora("base_model.", alpha=4, rank=3), None, "rank=3"),
        (merge_lora("other.", alpha=4), None, "which no key has"),
    ],
)
def test_what_does_not_fit_is_one_error(operator: Any, config: Any, text: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = check(Net, path, recipe=Recipe(operator), device="none")
    assert not report.ok
    assert text in report.findings[0].message


BASE = {"m.base_layer.weight": torch.ones(4, 6), "m.lora_A.default.weight": torch.ones(2, 6), "m.lora_B.default.weight": torch.ones(4, 2)}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"m.weight": torch.ones(2, 2)}, "no lora_A and lora_B"),
        ({key: value for key, value in BASE.items() if "lora" in key}, r"adapters alone.*merge_and_unload"),
        ({**BASE, "m.lora_A.two.weight": torch.ones(2, 6), "m.lora_B.two.weight": torch.ones(4, 2)}, 'several adapters .*"default", "two"'),
        ({**BASE, "m.lora_magnitude_vector.default.weight": torch.ones(4)}, "another kind of adapter"),
        ({**BASE, "m.lora_E.default": torch.ones(2, 1)}, "another kind of adapter"),
        ({**BASE, "n.hada_w1_a": torch.ones(2, 1)}, "another kind of adapter"),
        ({**BASE, "m.base_layer.weight": torch.ones(4, 6, dtype=torch.uint8)}, "quantised"),
        ({**BASE, "m.base_layer.weight": torch.ones(5, 6)}, r"it is \(5, 6\), with"),
        ({**BASE, "m.lora_A.default.weight": torch.ones(0, 6), "m.lora_B.default.weight": torch.ones(4, 0)}, r"it is \(0, 6\), which gives no rank"),
        ({**BASE, "m.lora_A.default.weight": torch.ones(())}, "which gives no rank"),
        ({**BASE, "m.lora_B.default.weight": torch.ones(4)}, r"\(2, 6\) and \(4,\)"),
        ({key: value for key, value in BASE.items() if "lora_B" not in key}, "no lora_B"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(state: Any, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        merge_lora(alpha=4).apply(state, {})


@pytest.mark.parametrize("special", [float("inf"), float("nan")])
def test_only_an_element_that_is_not_finite_is_let_pass(special: float) -> None:
    state = {key: value.clone() for key, value in BASE.items()}
    state["m.base_layer.weight"][0, 0] = special
    operator = merge_lora(alpha=4)
    made = operator.apply(state, {})
    assert statuses(operator, state, made, {}) == ["kept", "kept"]
    made["m.weight"][0, 1] *= 1.001
    assert statuses(operator, state, made, {}) == ["broken", "kept"]


@pytest.mark.parametrize(("dtype", "alpha", "value"), [("e4m3fn", 700, 448), ("e5m2", 8, 0)])
def test_what_is_not_the_sum_is_caught_in_one_byte_too(dtype: str, alpha: int, value: int) -> None:
    """A sum beyond the dtype that becomes its largest number, and no sum at all."""
    kind = getattr(torch, f"float8_{dtype}")
    state = {key: tensor.to(kind) for key, tensor in BASE.items()}
    made = {"m.weight": torch.full((4, 6), float(value)).to(kind)}
    assert statuses(merge_lora(alpha=alpha), state, made, {}) == ["broken", "kept"]


def test_transposed_weights_embeddings_convolutions_and_biases() -> None:
    """`Conv1D` is (in, out); an embedding's adapter is transposed too; a kernel's B mixes channels."""
    torch.manual_seed(2)
    r = 3
    state = {
        "c.weight": torch.randn(6, 4), "c.lora_A.default.weight": torch.randn(r, 6), "c.lora_B.default.weight": torch.randn(4, r),
        "sq.weight": torch.randn(4, 4), "sq.lora_A.default.weight": torch.randn(r, 4), "sq.lora_B.default.weight": torch.randn(4, r),
        "e.weight": torch.randn(7, 5), "e.lora_embedding_A.default": torch.randn(r, 7), "e.lora_embedding_B.default": torch.randn(5, r),
    }  # fmt: skip
    operator = merge_lora(alpha=6)
    made = operator.apply(state, {})
    for name in ("c", "sq"):
        delta = (state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]).T
        torch.testing.assert_close(made[f"{name}.weight"], state[f"{name}.weight"] + 2 * delta)
    ids = torch.tensor([0, 6, 3])
    given = functional.embedding(ids, state["e.weight"])
    given = given + 2 * (
        functional.embedding(ids, state["e.lora_embedding_A.default"].T)
        @ state["e.lora_embedding_B.default"].T
    )
    torch.testing.assert_close(functional.embedding(ids, made["e.weight"]), given)
    assert statuses(operator, state, made, {}) == ["kept", "kept"]
    conv = {
        "k.base_layer.weight": torch.randn(4, 3, 2, 2), "k.base_layer.bias": torch.randn(4),
        "k.lora_A.default.weight": torch.randn(r, 3, 2, 2), "k.lora_B.default.weight": torch.randn(4, r, 1, 1),
        "k.lora_B.default.bias": torch.randn(4),
    }  # fmt: skip
    made = operator.apply(conv, {})
    x = torch.randn(2, 3, 5, 5)
    inner = functional.conv2d(x, conv["k.lora_A.default.weight"])
    adapted = functional.conv2d(inner, conv["k.lora_B.default.weight"], conv["k.lora_B.default.bias"])
    given = functional.conv2d(x, conv["k.base_layer.weight"], conv["k.base_layer.bias"]) + 2 * adapted
    torch.testing.assert_close(
        functional.conv2d(x, made["k.weight"], made["k.bias"]), given, atol=1e-4, rtol=1e-4
    )
    assert statuses(operator, conv, made, {}) == ["kept", "kept"]
    assert statuses(operator, conv, {**made, "k.bias": conv["k.base_layer.bias"]}, {}) == ["broken", "kept"]


def test_modules_that_were_trained_whole_take_the_place_of_the_original() -> None:
    state = {
        **BASE,
        "head.original_module.weight": torch.zeros(2),
        "head.modules_to_save.default.weight": torch.ones(2),
    }
    made = merge_lora(alpha=4).apply(state, {})
    assert made.keys() == {"m.weight", "head.weight"}
    assert made["head.weight"].tolist() == [1, 1]


def test_the_optimizer_starts_merged_weights_anew_and_keeps_the_rest() -> None:
    state = Net(Lora).state_dict()
    slots: Any = {key: {"exp_avg": torch.ones_like(value)} for key, value in state.items()}
    meta = {key: value.to("meta") for key, value in state.items()}
    found = grown(Recipe(merge_lora(alpha=4)), slots, meta, {}).state
    assert found.keys() == {"q.bias", "v.bias", "out.weight", "out.bias"}


def test_rounding_is_told() -> None:
    state = {key: value.bfloat16() * 0.3 for key, value in BASE.items()}
    operator = merge_lora(alpha=4)
    promise, _ = proved(operator, state, operator.apply(state, {}), {})
    assert promise.status == "kept"
    assert promise.detail.startswith("max |Δ| ")
    assert Recipe.from_toml(Recipe(operator).to_toml()) == Recipe(operator)


def test_it_is_what_peft_merges() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = Net()
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=16, target_modules=["q", "v"]))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    state = {key: value.clone() for key, value in wrapped.state_dict().items()}
    made = merge_lora("base_model.model.", alpha=16).apply(state, {})
    merged = wrapped.merge_and_unload().state_dict()
    assert made.keys() == merged.keys()
    for key, value in merged.items():
        torch.testing.assert_close(made[key], value)
