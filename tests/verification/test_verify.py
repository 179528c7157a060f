from __future__ import annotations

import copy
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.findings import Promise
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.blocks import insert_block, stack
from pytest_ckptcompat.recipes.operators.channels import repeat_channels
from pytest_ckptcompat.recipes.operators.custom import custom
from pytest_ckptcompat.recipes.operators.rename import drop, rename, strip_prefix
from pytest_ckptcompat.recipes.operators.select import select
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.operators.values import cast, scale
from pytest_ckptcompat.recipes.operators.widen import widen
from pytest_ckptcompat.recipes.per_tensor import KeyWise
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.difference import same_bits
from pytest_ckptcompat.verification.verify import claims, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_ckptcompat.core.findings import Finding
    from pytest_ckptcompat.recipes.base import Operator

GROW = Recipe(tile("out2.*", dim=0))


def images(seed: int) -> Any:
    return (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),), {}


def tokens(seed: int) -> Any:
    return (torch.randint(15, (2, 6), generator=torch.Generator().manual_seed(seed)),), {}


def judged(
    recipe: Recipe,
    old: Mapping[str, Any],
    make: Callable[[], nn.Module],
    *,
    after_load: Callable[[nn.Module], Any] = lambda model: None,
    strict: bool = True,
    **more: Any,
) -> tuple[dict[str, Promise], list[Finding]]:
    """Grow, load and verify, as the check does."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    model = build(0)
    growth = recipe.run(old, model.state_dict())
    model.load_state_dict(growth.state_dict, strict=strict)
    after_load(model)
    before = copy.deepcopy(model.state_dict())
    promises, findings = verify(claims(recipe, growth, old=old, model=model, build=build, **more))
    assert all(
        same_bits(before[key], value) for key, value in model.state_dict().items() if torch.is_tensor(value)
    )
    return {promise.name: promise for promise in promises}, findings


def statuses(promises: Mapping[str, Promise]) -> set[str]:
    return {promise.status for promise in promises.values()}


def kept(*given: Any, **more: Any) -> dict[str, Promise]:
    """The promises of a check in which all are kept and nothing is found."""
    promises, findings = judged(*given, **more)
    assert findings == []
    assert statuses(promises) == {"kept"}
    return promises


# -- what is right passes without any finding --------------------------------------------------------------


def test_the_story_is_kept() -> None:
    old = settle(Boxes()).state_dict()
    promises = kept(GROW, old, lambda: Boxes(14), source=Boxes, batches=images, protect=("conv*",))
    assert promises["untouched"].detail == "26 keys bit-equal"
    assert promises["loaded as grown"].detail == "2 keys bit-equal"
    assert promises["loaded whole"].detail == "28 tensors"
    assert promises["reproducible"].detail == "same bytes twice"
    assert promises["finite"].detail == "2 keys grown"
    assert promises["function kept"].detail.endswith("on 3 batches, eval and train")
    assert promises["scale of new rows"].status == "kept"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_copied_are_no_excuse_for_another_function(dtype: torch.dtype) -> None:
    """The checkpoint is coarse, but nothing was computed in it: both models run in float64."""

    class Louder(Boxes):
        def forward(self, x: torch.Tensor) -> Any:
            score, box = super().forward(x)
            return score, box * 1.001

    old = settle(Boxes().to(dtype)).state_dict()

    def batch(seed: int) -> Any:
        return (images(seed)[0][0].to(dtype),), {}

    for make, status in ((Boxes, "kept"), (Louder, "broken")):
        promises, _ = judged(
            GROW,
            old,
            lambda: make(14).to(dtype),  # noqa: B023  # called at once
            source=lambda: Boxes().to(dtype),
            batches=batch,
        )
        assert promises["function kept"].status == status


@pytest.mark.parametrize("init", ["zeros", "mean", "kaiming_uniform", "multivariate_normal"])
def test_appended_rows_are_kept(init: Any) -> None:
    old = settle(Boxes()).state_dict()
    recipe = Recipe(append("out2.*", dim=0, init=init))
    kept(recipe, old, lambda: Boxes(14), source=Boxes, batches=images)


def test_a_grown_tied_vocabulary_is_kept() -> None:
    old = settle(Words()).state_dict()
    recipe = Recipe(append("embed.weight", dim=0, init="mean"))
    promises = kept(recipe, old, lambda: Words(15), source=Words, batches=tokens)
    assert promises["loaded as grown"].detail == "2 keys bit-equal"


def test_a_wrapped_and_renamed_checkpoint_is_kept() -> None:
    class Renamed(Boxes):
        def __init__(self) -> None:
            super().__init__(14)
            self.head = self.out2
            del self.out2

        def forward(self, x: torch.Tensor) -> Any:
            x = self.fc(self.conv2(self.conv1(x)).flatten(1))
            return torch.sigmoid(self.out1(x)), self.head(x)

    old = nn.DataParallel(settle(Boxes())).state_dict()
    recipe = Recipe(strip_prefix("module."), rename("out2.*", "head.*"), tile("head.*", dim=0))
    promises = kept(recipe, old, Renamed, source=Boxes, batches=images, protect=("conv*",))
    assert promises["untouched"].detail == "26 keys bit-equal"


def test_no_recipe_is_verified_too() -> None:
    old = settle(Boxes()).state_dict()
    promises, findings = judged(Recipe(), old, Boxes, source=Boxes, batches=images)
    assert findings == []
    assert list(promises) == ["untouched", "loaded whole", "function kept"]
    assert promises["untouched"].detail == "28 keys bit-equal"
    assert promises["function kept"].detail == "max |Δ| 0 on 3 batches, eval and train"


def test_the_cast_that_loading_makes_is_said_and_no_difference() -> None:
    old = settle(Boxes()).half().state_dict()
    promises = kept(GROW, old, lambda: Boxes(14), source=Boxes, batches=images)
    assert promises["untouched"].detail == "26 keys bit-equal (cast to float32)"


def test_what_loading_rounds_is_not_called_bit_equal() -> None:
    """A checkpoint in float32 for a model in bfloat16: no recipe, no broken promise, and no praise."""
    old = settle(Boxes()).state_dict()
    promises, findings = judged(Recipe(), old, lambda: Boxes().bfloat16(), source=Boxes, batches=images)
    assert findings == []
    assert promises["untouched"].detail == "3 keys bit-equal, 25 keys rounded to bfloat16, by up to 0.0039"
    assert promises["function kept"].detail.endswith(
        "on 3 batches, eval and train, up to bfloat16's rounding"
    )


@pytest.mark.parametrize("by_loading", [True, False])
def test_a_rounded_model_that_also_lost_a_row_is_caught(by_loading: bool) -> None:
    old = settle(Boxes()).state_dict()
    recipe = Recipe(shifting("out2.*", by=1), *([] if by_loading else [cast("*", "bfloat16")]))
    promises, _ = judged(recipe, old, lambda: Boxes(14).bfloat16(), source=Boxes, batches=images)
    assert promises["function kept"].status == "broken"


def test_weights_too_coarse_to_tell_a_function_by_are_said_to_be() -> None:
    old = settle(Boxes()).state_dict()
    recipe = Recipe(cast("*.weight", "float8_e4m3fn"), cast("*.weight", "float32"))
    promises, findings = judged(recipe, old, Boxes, source=Boxes, batches=images)
    assert (
        promises["function kept"].status == "broken"
    )  # the last word has float32, whose rounding this is not
    assert [found.rule for found in findings] == ["function-changed"]
    model = lambda: Boxes().to(torch.float8_e4m3fn)  # noqa: E731
    promises, _ = judged(Recipe(), old, model, source=Boxes, batches=images)
    assert promises["function kept"] == Promise(
        "function kept", "unchecked", "float8_e4m3fn is too coarse to compare outputs"
    )


def test_nan_payloads_and_signed_zeros_are_bits() -> None:
    old = settle(Boxes()).state_dict()
    old["conv1.0.bias"][:2] = (
        torch.tensor([0x7FC00001, -0x80000000], dtype=torch.int64).to(torch.int32).view(torch.float32)
    )
    promises, findings = judged(GROW, old, lambda: Boxes(14))
    assert findings == []
    assert promises["untouched"].detail == "26 keys bit-equal"


def test_keys_that_a_waiver_lets_pass_are_no_broken_promise() -> None:
    old = settle(Boxes()).state_dict()
    old["aux.weight"] = torch.ones(3)
    del old["out1.bias"]
    promises, findings = judged(GROW, old, lambda: Boxes(14), strict=False, waived=["out1.bias"])
    assert findings == []
    assert promises["loaded whole"].detail == "27 tensors"


def test_a_model_that_renames_on_loading_is_no_broken_promise() -> None:
    class Renaming(Boxes):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            state_dict["out1.weight"] = state_dict.pop("legacy.weight")
            state_dict["out1.bias"] = state_dict.pop("legacy.bias") * 2
            super()._load_from_state_dict(state_dict, prefix, *args)

    old = OrderedDict(
        (key.replace("out1", "legacy"), value) for key, value in settle(Boxes()).state_dict().items()
    )

    class Sourced(Renaming):
        pass

    promises = kept(GROW, old, lambda: _out2(Renaming(), 14), source=Sourced, batches=images)
    assert promises["untouched"].detail == "25 keys bit-equal, 1 left to the model's own loader"


def _out2(model: Boxes, rows: int) -> Boxes:
    model.out2 = nn.Linear(8, rows)
    return model


def _fold(module: Any, keys: Any) -> None:
    module.out1.weight.data.mul_(2)


def test_a_model_that_changes_what_it_loaded_is_no_broken_promise() -> None:
    class Folding(Boxes):
        """Folds a factor into its weights when they arrive, as quantised and merged layers do."""

        def __init__(self, out2: int = 4) -> None:
            super().__init__(out2)
            self.register_load_state_dict_post_hook(_fold)

    old = settle(Boxes()).state_dict()
    promises = kept(GROW, old, lambda: Folding(14), source=Folding, batches=images)
    assert promises["untouched"].detail == "25 keys bit-equal, 1 left to the model's own loader"


def _zero(module: Any, keys: Any) -> None:
    module.out1.weight.data.zero_()


def test_a_loader_must_not_write_into_what_is_protected() -> None:
    class Zeroing(Boxes):
        def __init__(self, out2: int = 4) -> None:
            super().__init__(out2)
            self.register_load_state_dict_post_hook(_zero)

    old = settle(Boxes()).state_dict()
    [found] = judged(GROW, old, lambda: Zeroing(14), protect=("out1.*",))[1]
    assert (found.rule, found.key) == ("recipe-protected-key", "out1.weight")


def test_a_model_that_makes_every_load_a_lenient_one_is_not_loaded_whole() -> None:
    class Lenient(Boxes):
        def __init__(self) -> None:
            super().__init__(14)
            self.extra = nn.Linear(8, 8)

        def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
            return super().load_state_dict(state_dict, False, assign)

    promises, findings = judged(GROW, settle(Boxes()).state_dict(), Lenient)
    assert promises["loaded whole"].status == "broken"
    assert [(found.rule, found.key) for found in findings] == [
        ("unloaded-parameter", "extra.weight"),
        ("unloaded-parameter", "extra.bias"),
    ]
    # Where a strict load would miss them, and that was waived, nobody expects them.
    waived = judged(GROW, settle(Boxes()).state_dict(), Lenient, waived=["extra.weight", "extra.bias"])
    assert waived[1] == []


def test_dropped_keys_are_no_loss() -> None:
    old = settle(Boxes()).state_dict()
    old["aux.weight"] = torch.ones(3)
    kept(Recipe(drop("aux.*")), old, Boxes, source=Boxes, batches=images)


def test_extra_state_that_is_no_tensor_is_left_alone() -> None:
    class Counting(Boxes):
        def get_extra_state(self) -> Any:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    promises, findings = judged(Recipe(), Counting().state_dict(), Counting)
    assert findings == []
    assert promises["untouched"].detail == "28 keys bit-equal"


def test_selected_classes_are_compared_by_their_place() -> None:
    old = settle(Boxes()).state_dict()
    names = {"old_names": ["cat", "dog", "emu", "fox"], "new_names": ["fox", "gnu", "cat"]}
    recipe = Recipe(select("out2.*", dim=0, missing="mean", **names))
    promises = kept(recipe, old, lambda: Boxes(3), source=Boxes, batches=images)
    assert "without" not in promises["function kept"].detail


def test_a_pruned_vocabulary_is_compared_word_by_word() -> None:
    old = settle(Words()).state_dict()
    recipe = Recipe(select("embed.weight", dim=0, index=[9, 0, 4, 3]))
    kept(recipe, old, lambda: Words(4), source=Words, batches=tokens)


def widening(**more: Any) -> Recipe:
    return Recipe(widen("fc.0", ["out1", "out2"], norms=["fc.1"], **more))


@pytest.mark.parametrize("split", ["equal", "unequal", "zero"])
def test_a_widened_layer_is_kept(split: Any) -> None:
    old = settle(Boxes()).state_dict()
    promises, findings = judged(
        widening(split=split), old, lambda: Boxes(hidden=20), source=Boxes, batches=images
    )
    assert statuses(promises) == {"kept"}
    assert {found.rule for found in findings} == ({"recipe-symmetric-units"} if split == "equal" else set())


def test_a_block_that_adds_nothing_is_kept() -> None:
    class Residual(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            blocks = ({"a": nn.Linear(6, 9), "b": nn.Linear(9, 6)} for _ in range(count))
            self.layers = nn.ModuleList(map(nn.ModuleDict, blocks))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer["b"](torch.relu(layer["a"](x)))
            return x

    def vectors(seed: int) -> Any:
        return (torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)),), {}

    old = settle(Residual(2)).state_dict()
    recipe = Recipe(insert_block("layers.0", at=1, zero=["b.*"]))
    promises = kept(recipe, old, lambda: Residual(3), source=lambda: Residual(2), batches=vectors)
    assert promises["untouched"].detail == "8 keys bit-equal"
    forgotten = Recipe(insert_block("layers.0", at=1, zero=["b.weight"]))
    promises, _ = judged(forgotten, old, lambda: Residual(3), source=lambda: Residual(2), batches=vectors)
    assert promises["function kept"].status == "broken"


# -- what is wrong is caught -------------------------------------------------------------------------------


@pytest.mark.parametrize("protect", [(), ("conv*",)])
def test_an_untouched_key_that_changed_is_caught(protect: tuple[str, ...]) -> None:
    old = settle(Boxes()).state_dict()

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            model.conv2[0].weight[3, 2, 1, 0] += 0.5
            model.conv1[0].bias[1] += 0.25

    promises, findings = judged(GROW, old, lambda: Boxes(14), after_load=change, protect=protect)
    assert promises["untouched"].status == "broken"
    assert promises["untouched"].detail == "conv2.0.weight: max |Δ| 0.5 at [3, 2, 1, 0] and 1 more"
    rule = "recipe-protected-key" if protect else "recipe-broken-promise"
    assert {(found.rule, found.key) for found in findings} == {
        (rule, "conv2.0.weight"),
        (rule, "conv1.0.bias"),
    }
    assert findings[1].message == "is not as it was: max |Δ| 0.5 at [3, 2, 1, 0]"


def test_one_flipped_bit_of_a_bfloat16_weight_is_caught() -> None:
    old = settle(Boxes().bfloat16()).state_dict()

    def flip(model: nn.Module) -> None:
        model.fc[0].weight.data.view(torch.int16)[5, 6] ^= 1

    promises, [found] = judged(GROW, old, lambda: Boxes(14).bfloat16(), after_load=flip)
    assert promises["untouched"].status == "broken"
    assert found.key == "fc.0.weight"


def test_a_grown_key_that_was_loaded_otherwise_is_caught() -> None:
    old = settle(Boxes()).state_dict()

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            model.out2.weight[9] = 0

    promises, [found] = judged(GROW, old, lambda: Boxes(14), after_load=change)
    assert promises["loaded as grown"].status == "broken"
    assert found.key == "out2.weight"


@dataclass(frozen=True, repr=False)
class shifting(KeyWise[int]):  # noqa: N801
    """Grows as tile does, but `by` rows late: the old rows are not where they were."""

    changes_function = ""

    by: int = 0
    extra: float = 0.0

    def change(self, key: str, state: Any, target: Any) -> int | None:
        size: int = target[key].shape[0]
        return None if size == state[key].shape[0] else size

    def new_shape(self, change: int, old: torch.Tensor) -> list[int]:
        return [change, *old.shape[1:]]

    def make(self, key: str, change: int, tensor: torch.Tensor) -> torch.Tensor:
        rows = (torch.arange(change) - self.by) % len(tensor)
        new = tensor[rows]
        new[len(tensor) :] += self.extra * torch.randn_like(new[len(tensor) :])
        return new

    def prove(self, before: Any, after: Any, target: Any) -> list[Promise]:
        return tile(self.key, dim=0, noise_std=1.0 if self.extra else 0.0).prove(before, after, target)


def test_an_operator_that_permutes_rows_is_caught() -> None:
    old = settle(Boxes()).state_dict()
    promises, findings = judged(
        Recipe(shifting("out2.*", by=1)), old, lambda: Boxes(14), source=Boxes, batches=images
    )
    broken = {name for name, promise in promises.items() if promise.status == "broken"}
    assert any("old rows kept" in name for name in broken)
    assert "function kept" in broken
    assert {found.rule for found in findings} == {"recipe-broken-promise", "function-changed"}
    assert any("out2.weight: max |Δ| " in found.message for found in findings)


def test_an_operator_that_draws_without_a_seed_is_caught() -> None:
    old = settle(Boxes()).state_dict()
    promises, findings = judged(Recipe(shifting("out2.*", extra=0.1)), old, lambda: Boxes(14))
    assert promises["reproducible"].status == "broken"
    assert {found.key for found in findings} == {"out2.weight", "out2.bias"}
    assert all(found.message.startswith("is not the same when applied again: ") for found in findings)


@dataclass(frozen=True, repr=False)
class spoiling(KeyWise[bool]):  # noqa: N801
    """Multiplies by a value, and promises nothing."""

    value: float = 1.0

    def change(self, key: str, state: Any, target: Any) -> bool:
        return True

    def make(self, key: str, change: bool, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * self.value

    def prove(self, before: Any, after: Any, target: Any) -> list[Promise]:
        return []


def test_forgotten_norms_of_a_widened_layer_are_caught() -> None:
    """The norm's rows are appended as a new model has them instead of going with their units."""
    old = settle(Boxes()).state_dict()
    recipe = Recipe(
        append("fc.1.weight", dim=0, init="constant", value=1.0),
        append("fc.1.running_var", dim=0, init="constant", value=1.0),
        append("fc.1.*", dim=0),
        widen("fc.0", ["out1", "out2"]),
    )
    promises, findings = judged(recipe, old, lambda: Boxes(hidden=20), source=Boxes, batches=images)
    assert promises["function kept"].status == "broken"
    assert "function-changed" in {found.rule for found in findings}


def test_a_step_of_one_s_own_is_unchecked_beyond_what_it_declares() -> None:
    def remap(state: Any) -> Any:
        state["out2.weight"] = torch.cat([state["out2.weight"]] * 2)
        state["out2.bias"] = torch.cat([state["out2.bias"]] * 2)
        return state

    old = settle(Boxes()).state_dict()
    recipe = Recipe(custom(remap, touches=["out2.*"]))
    promises, findings = judged(recipe, old, lambda: Boxes(8), source=Boxes, batches=images)
    assert {found.rule for found in findings} == {"recipe-unchecked"}
    assert promises["untouched"].status == "kept"
    assert promises["function kept"].status == "kept"


def test_infinite_values_that_a_recipe_made_are_caught() -> None:
    old = settle(Boxes()).state_dict()
    promises, findings = judged(Recipe(spoiling("out1.weight", value=1e39)), old, Boxes)
    assert promises["finite"].status == "broken"
    assert [found.key for found in findings if found.severity == "error"] == ["out1.weight"]
    assert findings[-1].message == "has 8 values that are NaN or infinite"


def test_infinite_values_that_were_there_are_the_checkpoint_s() -> None:
    old = settle(Boxes()).state_dict()
    old["out2.weight"][1, 1] = float("nan")
    promises, findings = judged(GROW, old, lambda: Boxes(14))
    assert findings == []
    assert promises["finite"].status == "kept"


@pytest.mark.parametrize(("std", "times"), [(1.0, "3.5"), (0.001, "0.0035")])
def test_new_rows_of_another_scale_are_a_warning(std: float, times: str) -> None:
    old = settle(Boxes()).state_dict()
    generator = torch.Generator().manual_seed(0)
    old["out2.weight"] = torch.randn(4, 8, generator=generator) * 0.3
    recipe = Recipe(append("out2.weight", dim=0, init="normal", std=std), append("out2.bias", dim=0))
    promises, [found] = judged(recipe, old, lambda: Boxes(14))
    assert (found.rule, found.severity, found.key) == ("recipe-scale", "warn", "out2.weight")
    assert promises["scale of new rows"].status == "broken"
    measured = float(found.message.split()[4])
    assert measured == pytest.approx(float(times), rel=0.2)


def test_a_proof_that_raises_is_a_failure_and_what_is_not_proved_a_warning() -> None:
    class raising(spoiling):  # noqa: N801
        def prove(self, before: Any, after: Any, target: Any) -> list[Promise]:
            raise KeyError("x")

    class crashing(spoiling):  # noqa: N801
        def prove(self, before: Any, after: Any, target: Any) -> list[Claim]:
            return [Claim.of("crashing", lambda: 1 / 0)]  # type: ignore[arg-type,return-value]

    class silent(spoiling):  # noqa: N801
        def prove(self, before: Any, after: Any, target: Any) -> list[Promise]:
            return [Promise("silent", "unchecked", "beyond its keys")]

    old = settle(Boxes()).state_dict()
    for kind, severity, rule, text in (
        (raising, "error", "recipe-unproved", "raising(\"out1.weight\"): its proof raised KeyError: 'x'"),
        (crashing, "error", "recipe-unproved", "crashing: its proof raised ZeroDivisionError"),
        (silent, "warn", "recipe-unchecked", "silent: beyond its keys"),
        (spoiling, "warn", "recipe-unchecked", 'spoiling("out1.weight"): it promises nothing'),
    ):
        promises, [found] = judged(Recipe(kind("out1.weight")), old, Boxes)
        assert ("broken" if severity == "error" else "unchecked") in statuses(promises)
        assert (found.severity, found.rule) == (severity, rule)
        assert text in found.message


def test_a_parameter_left_unloaded_is_caught() -> None:
    class Forgetful(Boxes):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            super()._load_from_state_dict(state_dict, prefix, *args)

        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            state_dict = OrderedDict(state_dict)
            state_dict["fc.0.weight"] = self.fc[0].weight.detach().clone()
            return super().load_state_dict(state_dict, *args, **kwargs)

    old = settle(Boxes()).state_dict()
    promises, findings = judged(Recipe(), old, Forgetful)
    assert promises["untouched"].status == "kept"
    assert promises["loaded whole"].status == "broken"
    assert [(found.rule, found.key) for found in findings] == [("unloaded-parameter", "fc.0.weight")]


class Both(nn.Module):
    """Two heads on one body, and what the body's output is multiplied by before the second."""

    def __init__(self, hidden: int = 6, factor: float = 1.0) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(5, hidden), nn.Linear(hidden, 3), nn.Linear(hidden, 4)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.body(x))
        return self.one(x), self.two(x * self.factor)


def vectors(seed: int) -> Any:
    return (torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)),), {}


def compared(recipe: Recipe, make: Callable[[], nn.Module] = Both) -> tuple[Promise, set[str]]:
    """What is said of the function, and the rules of errors."""
    old = settle(Both()).state_dict()
    promises, findings = judged(recipe, old, make, source=Both, batches=vectors)
    return promises["function kept"], {found.rule for found in findings if found.severity == "error"}


def test_a_declared_change_is_told_with_its_size() -> None:
    promise, errors = compared(Recipe(scale("two.*", 0.5)))
    assert (promise.status, errors) == ("changed", set())
    assert re.fullmatch(
        r'output\[1\] differs, max \|Δ\| \S+ at \[\d, \d\] of \S+: scale\("two.\*", 0.5\) multiplies weights',
        promise.detail,
    )


def test_a_declared_change_that_changes_nothing_is_kept() -> None:
    half = Recipe(tile("body.*", dim=0), tile("one.weight", dim=1), tile("two.weight", dim=1))
    assert compared(half, lambda: Both(12))[0].status == "changed"
    right = Recipe(*half.operators, scale("one.weight", 0.5), scale("two.weight", 0.5))
    assert compared(right, lambda: Both(12))[0].status == "kept"


def test_a_declared_change_hides_nothing_outside_its_reach() -> None:
    """One head is scaled on purpose; the other one's input is louder, which nobody says."""
    promise, errors = compared(Recipe(scale("one.*", 0.5)), lambda: Both(factor=1.001))
    assert (promise.status, errors) == ("broken", {"function-changed"})
    assert promise.detail.startswith("output[1]: ")
    promise, errors = compared(Recipe(scale("two.*", 0.5)), lambda: Both(factor=1.001))
    assert (promise.status, errors) == ("changed", set())
    rows = Recipe(scale("two.*", [1.0, 1.0, 0.5, 1.0], dim=0))  # of one output, its third entry
    assert compared(rows)[0].status == "changed"
    promise, errors = compared(rows, lambda: Both(factor=1.001))
    assert (promise.status, errors) == ("broken", {"function-changed"})


class Stacked(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(depth))
        self.register_buffer("aux", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    "operator", [stack("layers", times=2), insert_block("layers.0", at=1), insert_block("layers.1", at=1)]
)
def test_blocks_that_are_repeated_are_a_declared_change(operator: Operator) -> None:
    old = settle(Stacked(2)).state_dict()
    make = lambda: Stacked(4 if isinstance(operator, stack) else 3)  # noqa: E731
    promises, findings = judged(Recipe(operator), old, make, source=lambda: Stacked(2), batches=vectors)
    assert (promises["function kept"].status, findings) == ("changed", [])


def test_other_inputs_are_named_where_nothing_can_be_compared() -> None:
    class Stem(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, 4, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.conv(x)

    old = settle(Stem(3)).state_dict()
    recipe = Recipe(repeat_channels("conv.weight"))
    wide = lambda seed: ((torch.randn(2, 6, 8, 8),), {})  # noqa: E731
    promises, [found] = judged(recipe, old, lambda: Stem(6), source=lambda: Stem(3), batches=wide)
    assert promises["function kept"].status == "unchecked"
    assert (found.rule, found.severity) == ("function-uncompared", "warn")
    assert found.message.startswith(
        'repeat_channels("conv.weight"): the model takes other inputs; the forward'
    )


class Lm(nn.Module):
    def __init__(self, words: int = 11) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 8), nn.Linear(8, words, bias=False)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(torch.tanh(self.embed(ids)))


SWAPPED = [1, 0, *range(2, 11)]


@pytest.mark.parametrize(
    ("keys", "status"),
    [(["embed.weight", "head.weight"], "kept"), (["embed.weight"], "broken"), (["head.weight"], "broken")],
)
def test_an_embedding_and_its_head_are_renumbered_together(keys: list[str], status: str) -> None:
    old = settle(Lm()).state_dict()
    ids = lambda seed: ((torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(seed)),), {})  # noqa: E731
    recipe = Recipe(*(select(key, dim=0, index=SWAPPED) for key in keys))  # type: ignore[arg-type]
    promises, findings = judged(recipe, old, Lm, source=Lm, batches=ids)
    assert promises["function kept"].status == status
    if status == "kept":
        assert "ids renumbered like" in promises["function kept"].detail
    else:
        [found] = findings
        assert (found.rule, found.severity) == ("function-changed", "error")
        assert "mean different words" in found.message


def test_a_silent_operator_does_not_claim_the_function() -> None:
    promise, errors = compared(Recipe(spoiling("two.weight", value=2.0)))
    assert (promise.status, errors) == ("changed", set())
    assert promise.detail.endswith("does not say whether it keeps it")


def test_a_custom_step_keeps_the_function_unless_it_says_otherwise() -> None:
    def double(state: Any) -> Any:
        return {**state, "two.bias": state["two.bias"] * 2}

    def lose(state: Any) -> Any:
        return {key: value for key, value in state.items() if key != "aux"}

    assert compared(Recipe(custom(double, touches=["two.*"])))[0].status == "broken"
    told, errors = compared(Recipe(custom(double, touches=["two.*"], keeps_function=False)))
    assert (told.status, errors) == ("changed", set())
    assert "keeps_function=False" in told.detail


def test_a_dropped_layer_that_counts_is_named() -> None:
    old = settle(Stacked(3)).state_dict()
    recipe = Recipe(drop("layers.2.*"), rename("aux", "aux2"), rename("aux2", "aux"))
    promises, [found] = judged(recipe, old, lambda: Stacked(2), source=lambda: Stacked(3), batches=vectors)
    assert (promises["function kept"].status, found.rule) == ("broken", "function-changed")
    assert found.message.endswith('; drop("layers.2.*") dropped what the old outputs depend on')


def test_without_inputs_the_function_is_unchecked() -> None:
    promises, _ = judged(GROW, settle(Boxes()).state_dict(), lambda: Boxes(14), source=Boxes)
    assert (promises["function kept"].status, promises["function kept"].detail) == (
        "unchecked",
        "no inputs declared",
    )


def linear_layers(out: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(256, 1024), nn.Linear(1024, 256), nn.Linear(256, out)).to(dtype)


def read(tmp_path: Path, *, once: bool, **more: Any) -> tuple[float, set[str]]:
    """How many times its own size a checkpoint is read by a load and all promises, and their statuses."""
    torch.save(linear_layers().state_dict(), tmp_path / "net.pth")
    ckpt = open_checkpoint(tmp_path / "net.pth")
    headers, model = ckpt.bytes_read, linear_layers(14)
    recipe, old = Recipe(tile("2.*", dim=0)), ckpt.stored(once=once)
    growth = recipe.run(old, model.state_dict())
    model.load_state_dict(growth.state_dict)
    wide = lambda seed: ((torch.randn(2, 256),), {})  # noqa: E731
    promises, _ = verify(claims(recipe, growth, old=old, model=model, batches=wide, **more))
    return (ckpt.bytes_read - headers) / ckpt.nbytes, {promise.status for promise in promises}


def test_each_byte_of_a_checkpoint_is_read_once(tmp_path: Path) -> None:
    """Into the model; the comparison goes by its digest, and the source model gets the values from there."""
    for more in ({}, {"source": linear_layers}):
        times, statuses = read(tmp_path, once=True, **more)
        assert statuses == {"kept"}
        assert 0.99 < times <= 1.05
    times, statuses = read(tmp_path, once=False, source=linear_layers)
    assert statuses == {"kept"}
    assert times > 2.9
