from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Words, settle
from torch import nn

from pytest_ckptcompat.core import memory
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.verification import function
from pytest_ckptcompat.verification.effects import Effects
from pytest_ckptcompat.verification.function import function_kept, tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_ckptcompat.core.findings import Finding, Promise
    from pytest_ckptcompat.verification.regions import Rows

State = dict[str, torch.Tensor]


def images(seed: int, batch: int = 4) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),), {}


def tokens(seed: int, vocabulary: int = 15) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randint(vocabulary, (2, 6), generator=torch.Generator().manual_seed(seed)),), {}


def vectors(width: int, scale: float = 1.0) -> Callable[[int], Any]:
    def batch(seed: int) -> Any:
        drawn = torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) * scale
        return (drawn,), {}

    return batch


def judged(
    old: nn.Module, new: nn.Module, batches: Callable[[int], Any] = images, **more: Any
) -> tuple[Promise, list[Finding]]:
    """`function_kept` with the old model's checkpoint, the source being an untrained model of its kind."""
    state = copy.deepcopy(old.state_dict())

    def source() -> nn.Module:
        fresh = copy.deepcopy(old)
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        return fresh

    return function_kept(source, state, new, batches, Effects(**more))


def grown(old: nn.Module, new: nn.Module, **changes: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """`new` with the old weights, those named with ``__`` for dots changed on the way."""
    state = OrderedDict(copy.deepcopy(old.state_dict()))
    for name, change in changes.items():
        key = name.replace("__", ".")
        state[key] = change(state[key])
    new.load_state_dict(state)
    return new


def more_rows(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight, 3 * torch.randn(10, *weight.shape[1:])])


def test_old_outputs_of_a_grown_head_are_kept() -> None:
    old = settle(Boxes())
    new = grown(old, Boxes(14), out2__weight=more_rows, out2__bias=more_rows)
    promise, findings = judged(old, new)
    assert (promise.status, findings) == ("kept", [])
    assert promise.detail.endswith("on 3 batches, eval and train")


def test_a_disturbed_old_row_is_broken_and_the_worst_output_is_named() -> None:
    old = settle(Boxes())

    def disturbed(weight: torch.Tensor) -> torch.Tensor:
        weight = more_rows(weight)
        weight[2] *= 1.001
        return weight

    promise, [found] = judged(old, grown(old, Boxes(14), out2__weight=disturbed, out2__bias=more_rows))
    assert promise.status == "broken"
    assert promise.detail.startswith("output[1]: max |Δ| ")
    assert ", 2], " in promise.detail
    assert found.rule == "function-changed"
    assert "output[1] differs, max |Δ| " in found.message


def test_the_model_under_test_is_left_as_it_was() -> None:
    old = settle(Boxes())
    new = grown(old, Boxes()).train()
    new.out1.eval()
    before = copy.deepcopy(new.state_dict())
    modes = [module.training for module in new.modules()]
    random = torch.get_rng_state()
    assert judged(old, new)[0].status == "kept"
    assert all(torch.equal(before[key], value) for key, value in new.state_dict().items())
    assert [module.training for module in new.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad for parameter in new.parameters())


def test_what_only_train_mode_shows_is_caught() -> None:
    old = settle(Boxes())
    new = grown(old, Boxes())
    new.conv1[1].eps = 0.5
    with torch.no_grad():  # made up for in eval mode alone
        norm = new.conv1[1]
        norm.weight *= ((norm.running_var + 0.5) / (norm.running_var + 1e-5)).sqrt()
    promise, _ = judged(old, new)
    assert promise.status == "broken"
    assert promise.detail.endswith("train mode")


def test_an_unscaled_norm_epsilon_is_caught() -> None:
    """A norm over twice the width with zeros: its mean square, and so its ε, must be scaled."""

    class Normed(nn.Module):
        def __init__(self, width: int, eps: float) -> None:
            super().__init__()
            self.up = nn.Linear(4, width)
            self.norm = nn.RMSNorm(width, eps=eps)
            self.down = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.norm(self.up(x)))

    def doubled(eps: float) -> nn.Module:
        state = copy.deepcopy(old.state_dict())
        state["up.weight"] = torch.cat([state["up.weight"], torch.zeros(8, 4)])
        state["up.bias"] = torch.cat([state["up.bias"], torch.zeros(8)])
        state["norm.weight"] = torch.cat([state["norm.weight"] / 2**0.5, torch.ones(8)])
        state["down.weight"] = torch.cat([state["down.weight"], torch.zeros(3, 8)], dim=1)
        new = Normed(16, eps)
        new.load_state_dict(state)
        return new

    torch.manual_seed(0)
    old = Normed(8, 1e-3)
    assert judged(old, doubled(1e-3 / 2), vectors(4, 0.3))[0].status == "kept"
    assert judged(old, doubled(1e-3), vectors(4, 0.3))[0].status == "broken"


def test_a_grown_vocabulary_is_judged_on_the_old_tokens() -> None:
    old = settle(Words())
    new = Words(15)
    state = copy.deepcopy(old.state_dict())
    rows = torch.cat([old.embed.weight.detach(), torch.randn(4, 8)])
    state["embed.weight"] = state["head.weight"] = rows
    new.load_state_dict(state)
    promise, findings = judged(old, new, tokens)
    assert (promise.status, findings) == ("kept", [])
    with torch.no_grad():
        new.embed.weight[3, 0] += 0.1
    assert promise.detail.endswith(" on 3 batches, ids below 11")
    assert judged(old, new, tokens)[0].detail.startswith("output['logits']: ")


def test_a_shrunk_vocabulary_is_judged_on_the_words_that_are_left() -> None:
    old, new = settle(Words()), Words(7)
    state = copy.deepcopy(old.state_dict())
    state["embed.weight"] = state["head.weight"] = old.embed.weight.detach()[:7]
    new.load_state_dict(state)
    first = list(range(7))
    promise, findings = judged(old, new, tokens, rows={(11, 7): (first, first)})
    assert (promise.status, findings) == ("kept", [])
    assert "ids below 7" in promise.detail


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch has another way now; models have this one
def test_weights_that_are_computed_before_each_forward_pass_are_copied_along() -> None:
    def normed() -> nn.Module:
        return nn.utils.weight_norm(settle(nn.Conv2d(3, 4, 3)))

    old, new = normed(), normed()
    for model in (old, new):
        model(images(0)[0][0])  # its weight is not a leaf now, and torch has no deepcopy of such
    state = {key: value.detach().clone() for key, value in old.state_dict().items()}
    new.load_state_dict(state)
    assert function_kept(normed, state, new, images)[0].status == "kept"
    with torch.no_grad():
        new.weight_g[0] *= 1.01  # type: ignore[operator,index]
    assert function_kept(normed, state, new, images)[0].status == "broken"


class Typed(nn.Module):
    """Words and their types, as of BERT; `most` is the last word that it knows how to read."""

    def __init__(self, words: int, types: int, name: str = "bert", most: int = 99) -> None:
        super().__init__()
        embeddings = {"words": nn.Embedding(words, 8), "types": nn.Embedding(types, 8)}
        self.add_module(name, nn.ModuleDict(embeddings))
        self.head = nn.Linear(8, 5)
        self.name, self.most = name, most

    def forward(self, words: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        embeddings = self.get_submodule(self.name)
        known = (words <= self.most).unsqueeze(-1)
        return self.head(embeddings.words(words) * known + embeddings.types(types))  # type: ignore[operator]


def typed(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    words, types = (torch.randint(most, (4, 16), generator=generator) for most in (100, 3))
    return (words, types), {}


@pytest.mark.parametrize("most", [99, 60])
@pytest.mark.parametrize("name", ["bert", "model"])
@pytest.mark.parametrize("told", [True, False])
def test_each_input_is_bounded_by_the_vocabulary_it_is_looked_up_in(name: str, told: bool, most: int) -> None:
    """A vocabulary of types that grows leaves all words as they are, whatever the embeddings are called now."""
    old, new = Typed(100, 2), Typed(100, 3, name, most)
    rows = torch.cat([old.bert.types.weight.detach(), torch.randn(1, 8)])  # type: ignore[union-attr]
    state = {key.replace("bert.", f"{name}."): value for key, value in old.state_dict().items()}
    new.load_state_dict(state | {f"{name}.types.weight": rows})
    renamed = {key: key.replace("bert.", f"{name}.") for key in old.state_dict()} if told else {}
    promise = judged(old, new, typed, renamed=renamed)[0]
    assert promise.status == ("kept" if most == 99 else "broken")
    if most == 99:
        assert promise.detail == "max |Δ| 0 on 3 batches, ids below 2"


@pytest.mark.parametrize("renumbered", [False, True])
def test_masks_of_bytes_stay_as_they_are(renumbered: bool) -> None:
    class Masked(nn.Module):
        def __init__(self, words: int) -> None:
            super().__init__()
            self.words = nn.Embedding(words, 8)

        def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.words(words) * mask.unsqueeze(-1)

    def batch(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        words = tokens(seed, 320)[0][0]
        return (words, (words % 2).to(torch.uint8)), {}

    old, new = settle(Masked(300)), Masked(320)
    rows = torch.cat([old.words.weight.detach(), torch.randn(20, 8)])  # type: ignore[operator,union-attr]
    new.load_state_dict({"words.weight": rows.roll(20, 0) if renumbered else rows})
    moved: Rows = {(300, 320): (list(range(300)), list(range(20, 320)))} if renumbered else {}
    promise, findings = judged(old, new, batch, rows=moved)
    assert (promise.status, findings) == ("kept", [])


def test_a_mere_rename_bounds_no_ids() -> None:
    old, new = Typed(100, 3), Typed(100, 3, "model", 60)
    new.load_state_dict({key.replace("bert.", "model."): value for key, value in old.state_dict().items()})
    assert judged(old, new, typed)[0].status == "broken"


def test_rows_that_moved_are_compared_where_they_are_now() -> None:
    old = settle(Boxes())

    def rearranged(weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight[3], torch.ones_like(weight[0]), weight[1]])

    new = grown(old, Boxes(3), out2__weight=rearranged, out2__bias=rearranged)
    rows: Rows = {(4, 3): ([3, 1], [0, 2])}
    assert judged(old, new, rows=rows)[0].status == "kept"
    wrong: Rows = {(4, 3): ([3, 1], [2, 0])}
    assert judged(old, new, rows=wrong)[0].status == "broken"
    assert judged(old, new)[0].detail.endswith(", eval and train, without output[1]")


def test_rows_that_were_permuted_are_compared_where_they_are_now() -> None:
    old = settle(Boxes())
    order = [2, 0, 3, 1]
    new = grown(old, Boxes(), out2__weight=lambda w: w[order], out2__bias=lambda w: w[order])
    rows: Rows = {(4, 4): (order, [0, 1, 2, 3])}
    promise, _ = judged(old, new, rows=rows)
    assert promise.status == "kept"
    assert promise.detail.endswith(", moved rows of output[1]")
    assert judged(old, new)[0].status == "broken"


def test_words_that_have_other_numbers_are_translated() -> None:
    old = settle(Words())
    kept = [7, 2, 9, 0]
    state = copy.deepcopy(old.state_dict())
    state["embed.weight"] = state["head.weight"] = torch.cat(
        [torch.randn(1, 8), old.embed.weight.detach()[kept]]
    )
    new = Words(5)
    new.load_state_dict(state)
    rows: Rows = {(11, 5): (kept, [1, 2, 3, 4])}
    promise, findings = judged(old, new, tokens, rows=rows)
    assert (promise.status, findings) == ("kept", [])
    with torch.no_grad():
        new.embed.weight[3] += 0.1
    promise, [found] = judged(old, new, tokens, rows=rows)
    assert (promise.status, found.rule) == ("unchecked", "function-uncompared")
    assert promise.detail.startswith("a vocabulary was renumbered")


class Cast(nn.Module):
    """Computes its norm in another dtype, as many do."""

    def __init__(self, dtype: torch.dtype, factor: float = 1.0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 3)
        self.dtype, self.factor = dtype, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x).to(self.dtype)
        x = x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + torch.zeros(1, dtype=self.dtype) + 1e-6)
        return self.outer(x.to(self.outer.weight.dtype)) * self.factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_casts_inside_a_model_hide_no_difference(dtype: torch.dtype) -> None:
    old = settle(Cast(dtype))
    for factor, status in ((1.0, "kept"), (1.0001, "broken")):
        new = Cast(dtype, factor)
        new.load_state_dict(old.state_dict())
        assert judged(old, new, vectors(8), precision=torch.float64)[0].status == status


def test_small_outputs_are_held_to_their_own_size() -> None:
    class Small(nn.Linear):
        factor = 1e-9

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.factor

    old = settle(Small(5, 3))
    new = copy.deepcopy(old)
    assert judged(old, new, vectors(5))[0].status == "kept"
    new.factor *= 1.0001
    assert judged(old, new, vectors(5), precision=torch.float64)[0].status == "broken"


def test_float64_weights_are_held_to_float64() -> None:
    old = settle(Boxes().double())
    new = copy.deepcopy(old)
    with torch.no_grad():
        new.out2.weight[0, 0] += 1e-7
    assert judged(old, new, precision=torch.float64)[0].status == "broken"
    assert judged(old, new, precision=torch.float32)[0].status == "kept"


def test_a_forward_that_refuses_float64_runs_as_it_is() -> None:
    class Pinned(nn.Module):
        def __init__(self, out: int = 4) -> None:
            super().__init__()
            self.inner = nn.Linear(5, out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.to(torch.float32))

    old = Pinned()
    new = grown(old, Pinned(9), inner__weight=lambda w: torch.cat([w, w[:1].expand(5, -1)]),
                inner__bias=lambda b: torch.cat([b, b[:1].expand(5)]))  # fmt: skip
    assert judged(old, new, vectors(5))[0].status == "kept"
    with torch.no_grad():
        new.inner.bias[3] += 1
    assert judged(old, new, vectors(5))[0].status == "broken"


def test_random_forward_passes_are_no_broken_promise() -> None:
    class Noisy(nn.Module):
        def __init__(self, hidden: int) -> None:
            super().__init__()
            self.inner = nn.Linear(5, hidden)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner(x)
            return (x + torch.randn_like(x))[:, :3].flip(0)

    old = Noisy(3)
    new = grown(
        old,
        Noisy(4),
        inner__weight=lambda w: torch.cat([w, w[:1]]),
        inner__bias=lambda b: torch.cat([b, b[:1]]),
    )
    promise, [found] = judged(old, new, vectors(5))
    assert (promise.status, promise.detail) == ("unchecked", "the forward pass draws random numbers")
    assert (found.rule, found.severity, found.message) == ("function-uncompared", "warn", promise.detail)


def test_a_batch_of_one_is_judged_in_eval_mode_alone() -> None:
    old = settle(Boxes())
    promise, _ = judged(old, grown(old, Boxes()), lambda seed: images(seed, batch=1))
    assert promise.status == "kept"
    assert promise.detail.endswith("on 3 batches, eval only")


def test_a_raising_forward_is_unchecked_with_its_cause() -> None:
    old = settle(Boxes())
    promise, [found] = judged(old, grown(old, Boxes()), lambda seed: ((torch.zeros(2, 4, 8, 8),), {}))
    assert (promise.status, found.rule) == ("unchecked", "function-uncompared")
    assert promise.detail.startswith("the forward pass raised RuntimeError: ")


class Given(nn.Module):
    """Two outputs, and what becomes of them."""

    def __init__(
        self, give: Callable[[torch.Tensor, torch.Tensor], Any], sizes: tuple[int, int] = (3, 4)
    ) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(5, size) for size in sizes)
        self.give = give

    def forward(self, x: torch.Tensor) -> Any:
        return self.give(self.one(x), self.two(x))


def given(
    before: Callable[[torch.Tensor, torch.Tensor], Any],
    after: Callable[[torch.Tensor, torch.Tensor], Any],
    sizes: tuple[int, int] = (3, 4),
) -> tuple[Promise, list[Finding]]:
    torch.manual_seed(3)
    old, new = Given(before, sizes), Given(after, sizes)
    new.load_state_dict(old.state_dict())
    return judged(old, new, vectors(5))


STRUCTURES: dict[str, tuple[Any, Any]] = {
    "tensor to tuple": (lambda a, b: a, lambda a, b: (a,)),
    "tensor to dict with more": (lambda a, b: a, lambda a, b: {"features": b, "logits": a}),
    "tuple to dict": (lambda a, b: (a, b), lambda a, b: {"b": b, "a": a}),
    "dict with other names": (lambda a, b: {"x": a, "y": b}, lambda a, b: {"logits": a, "boxes": b}),
    "tuple to tensor": (lambda a, b: (a,), lambda a, b: a),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_of_another_structure_are_paired_by_their_shapes(name: str) -> None:
    before, after = STRUCTURES[name]
    promise, findings = given(before, after)
    assert (promise.status, findings) == ("kept", [])
    assert " is now output" in promise.detail
    louder, [found] = given(before, lambda a, b: after(a * 1.001, b))
    assert (louder.status, found.rule) == ("broken", "function-changed")


def test_of_outputs_of_one_shape_those_that_agree_are_paired() -> None:
    twice: Any = lambda a, b: {"first": b, "second": a}  # noqa: E731
    assert given(lambda a, b: (a, b), twice, (3, 3))[0].status == "kept"
    promise, [found] = given(lambda a, b: (a, b), lambda a, b: twice(2 * a, 3 * b), (3, 3))
    assert (promise.status, found.rule) == ("unchecked", "function-uncompared")
    assert promise.detail == "no output of the new model can be paired with an old one"


def test_outputs_without_a_counterpart_are_named() -> None:
    class Single(Boxes):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[1]

    old = settle(Boxes())
    promise, [found] = judged(old, grown(old, Single()))
    assert promise.status == "kept"
    assert promise.detail.endswith(", output[1] is now output, without output[0]")
    assert (found.rule, found.severity) == ("function-uncompared", "warn")
    assert found.message.startswith("output[0] of the old model can't be paired")


@pytest.mark.parametrize(
    ("source", "reason", "more"),
    [
        (lambda: Boxes(14), "source_model does not load the old checkpoint", "out2.weight"),
        (lambda: nn.Sequential(nn.PReLU(), nn.PReLU()),
         "source_model does not load the old checkpoint", "{0,1}.weight ×2 is missing, in source_model (1,) f32"),
        (lambda: 1 / 0, "source_model could not be built", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_source_model_of_another_checkpoint_is_an_error(source: Any, reason: str, more: str) -> None:
    old = settle(Boxes())
    promise, [found] = function_kept(source, old.state_dict(), grown(old, Boxes()), images)
    assert (promise.status, promise.detail) == ("unchecked", reason)
    assert found.severity == "error"
    assert found.message.startswith(reason)
    assert more in found.message


def test_too_little_memory_is_said_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    old = settle(Boxes())
    new = grown(old, Boxes())
    monkeypatch.setattr(memory, "free", lambda: 1000)
    promise, findings = function_kept(lambda: pytest.fail("built"), old.state_dict(), new, images)
    assert promise.status == "unchecked"
    assert [found.rule for found in findings] == ["function-uncompared"]
    assert promise.detail.startswith("the old model takes 5")
    assert promise.detail.endswith("kB, 1.0 kB are free")


@pytest.mark.parametrize("room", [1 << 40, 1])
def test_memory_decides_whether_both_run_in_float64(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    old = settle(Boxes())
    new = grown(old, Boxes(14), out2__weight=more_rows, out2__bias=more_rows)
    monkeypatch.setattr(memory, "free", lambda: int(weights(old) * function._MARGIN) + room)
    seen = set()
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, args: seen.add(args[0].dtype))
    try:
        assert judged(old, new)[0].status == "kept"
    finally:
        hook.remove()
    assert seen == {torch.float32 if room == 1 else torch.float64}


def test_tolerances() -> None:
    assert tolerance(torch.float64) == 1e-9
    assert tolerance(torch.float32) == 1e-5
    assert tolerance(torch.float16) == pytest.approx(1.6e-2, rel=0.1)
    assert tolerance(torch.bfloat16) == pytest.approx(0.125, rel=0.1)
