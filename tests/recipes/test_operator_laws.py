"""Laws that every operator obeys, whatever it does: one example of each is put to all of them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from networks import Words, settle
from operator_examples import EXAMPLES, Example, State
from proving import proved

from pytest_ckptcompat import Recipe, RecipeError, open_checkpoint
from pytest_ckptcompat.optimizer.growth import grown
from pytest_ckptcompat.recipes import operators as o
from pytest_ckptcompat.recipes.operators import OPERATORS
from pytest_ckptcompat.verification.verify import claims, verify

each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


def bits(value: torch.Tensor) -> bytes:
    return bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype
        and one[key].shape == other[key].shape
        and bits(one[key]) == bits(other[key])
        for key in one
    )


def test_there_is_an_example_of_every_operator() -> None:
    assert {type(example.operator).__name__ for example in EXAMPLES} == set(OPERATORS) - {"custom"}


@each
def test_it_keeps_its_promises_and_its_hands_off_its_input(example: Example) -> None:
    state = example.state()
    before = copy.deepcopy(state)
    new = example.operator.apply(state, example.target)
    assert same(state, before)
    promises = proved(example.operator, state, new, example.target)
    assert promises
    assert {promise.status for promise in promises} == {"kept"}, promises


@each
def test_what_it_does_not_name_is_the_same_object(example: Example) -> None:
    state = example.state()
    new = example.operator.apply(state, example.target)
    kept = list(new.values())
    for key in ("aside.weight", "last.bias"):
        assert any(state[key] is value for value in kept)


@each
def test_what_it_makes_has_memory_of_its_own_and_no_more_than_it_needs(example: Example) -> None:
    state = example.state()
    growth = Recipe(example.operator).run(state, example.target)
    old = {value.untyped_storage().data_ptr() for value in state.values()}
    for key in growth.touched.keys() & growth.state_dict.keys():
        value = growth.state_dict[key]
        if isinstance(example.operator, (o.rename, o.tie)):
            continue
        assert value.is_contiguous()
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
        assert value.untyped_storage().data_ptr() not in old
        assert not value.requires_grad


@each
def test_the_same_again_is_the_same_and_the_global_generator_rests(example: Example) -> None:
    torch.manual_seed(5)
    there = torch.get_rng_state()
    one = example.operator.apply(example.state(), example.target)
    assert torch.equal(torch.get_rng_state(), there)
    torch.manual_seed(6)
    assert same(one, example.operator.apply(example.state(), example.target))


@each
def test_on_meta_it_gives_the_shapes_and_dtypes_that_it_gives_really(example: Example) -> None:
    shapes = example.operator.apply(example.meta(), example.target)
    real = example.operator.apply(example.state(), example.target)
    assert all(value.is_meta for value in shapes.values())
    assert [(key, value.shape, value.dtype, value.stride()) for key, value in shapes.items()] == [
        (key, value.shape, value.dtype, value.stride()) for key, value in real.items()
    ]


@each
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_it_gives_what_it_gives_on_the_cpu(example: Example) -> None:
    state = example.state()
    expected = example.operator.apply(state, example.target)
    new = example.operator.apply({key: value.cuda() for key, value in state.items()}, example.target)
    for key, value in new.items():
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), expected[key])


@each
def test_from_a_file_it_gives_what_it_gives_from_memory(example: Example, tmp_path: Path) -> None:
    state = example.state()
    torch.save(state, tmp_path / "old.pth")
    stored = open_checkpoint(tmp_path / "old.pth").stored()
    new = example.operator.apply(stored, example.target)
    real = example.operator.apply(state, example.target)
    assert same(OrderedDict((key, value.clone()) for key, value in new.items()), real)
    assert {promise.status for promise in proved(example.operator, stored, new, example.target)} == {"kept"}


@each
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_in_every_dtype_of_weights(example: Example, dtype: str) -> None:
    state = example.state(getattr(torch, dtype))
    new = example.operator.apply(state, example.target)
    if not isinstance(example.operator, (o.cast, o.add)):  # whose dtype is declared, or the model's
        assert {str(value.dtype) for value in new.values()} == {f"torch.{dtype}"}
    promises = proved(example.operator, state, new, example.target)
    assert {promise.status for promise in promises} == {"kept"}, promises


@each
@pytest.mark.parametrize(
    "dtype", ["int8", "int64", "uint16", "bool", "float8_e4m3fn", "float8_e5m2", "complex64"]
)
def test_in_every_other_dtype_it_does_what_it_says_or_refuses(example: Example, dtype: str) -> None:
    state = OrderedDict(
        (key, (value * 9).to(getattr(torch, dtype))) for key, value in example.state().items()
    )
    try:
        new = example.operator.apply(state, example.target)
    except RecipeError:
        return
    promises = proved(example.operator, state, new, example.target)
    assert {promise.status for promise in promises} == {"kept"}, promises


@each
def test_of_views_with_odd_strides_it_makes_what_it_makes_of_copies(example: Example) -> None:
    state = example.state()
    strided = OrderedDict(
        (key, value.T.contiguous().T if value.dim() == 2 else value) for key, value in state.items()
    )
    assert same(
        example.operator.apply(strided, example.target), example.operator.apply(state, example.target)
    )


@each
@pytest.mark.parametrize("value", [50.0, float("nan")])
def test_every_changed_value_is_noticed(example: Example, value: float) -> None:
    """One element of any tensor made wrong, by as much as a rounding could never be, breaks a promise."""
    state = example.state()
    growth = Recipe(example.operator).run(state, example.target)
    for key in growth.touched.keys() & growth.state_dict.keys():
        made = growth.state_dict[key]
        for place in {0, made.numel() // 2, made.numel() - 1}:
            wrong = OrderedDict(growth.state_dict)
            wrong[key] = made.clone()
            wrong[key].view(-1)[place] = value
            assert "broken" in verdicts(example, state, wrong), (key, place)


@each
def test_a_tensor_that_is_short_or_lacking_or_as_it_was_is_noticed(example: Example) -> None:
    state = example.state()
    growth = Recipe(example.operator).run(state, example.target)
    for key in growth.touched.keys() & growth.state_dict.keys():
        new = growth.state_dict[key]
        faults = [new[:-1].clone() if new.dim() else new.reshape(1), None]
        if key in state and not (state[key].shape == new.shape and bits(state[key]) == bits(new)):
            faults.append(state[key])
        for fault in faults:
            wrong = OrderedDict(growth.state_dict)
            if fault is None:
                del wrong[key]
            else:
                wrong[key] = fault
            assert verdicts(example, state, wrong) & {"broken", "no proof"}, (key, fault)


def verdicts(example: Example, before: State, after: State) -> set[str]:
    """The statuses of the promises; ``no proof`` where tensors are so wrong that a proof can't be begun."""
    try:
        return {promise.status for promise in proved(example.operator, before, after, example.target)}
    except (KeyError, IndexError, RuntimeError, ValueError):
        return {"no proof"}


@each
def test_optimizer_state_has_the_new_shapes_and_none_below_zero(example: Example) -> None:
    state = example.state()
    squares = {
        key: {"step": torch.tensor(3.0), "exp_avg": value.float(), "exp_avg_sq": value.float() ** 2}
        for key, value in state.items()
    }
    before = copy.deepcopy(squares)
    new = example.operator.apply(example.meta(), example.target)
    carried = grown(Recipe(example.operator), squares, example.meta(), example.target).state
    assert carried.keys() <= new.keys()
    for key, slots in carried.items():
        assert slots["exp_avg"].shape == slots["exp_avg_sq"].shape == new[key].shape
        assert bool((slots["exp_avg_sq"].float() >= 0).all())
        assert slots["step"] == 3
    for key, slots in before.items():
        assert all(torch.equal(slots[slot], squares[key][slot]) for slot in slots)


@each
def test_python_and_toml_give_it_back(example: Example) -> None:
    recipe = Recipe(example.operator)
    assert eval(repr(recipe), {"Recipe": Recipe, **OPERATORS}) == recipe
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert hash(Recipe.from_toml(recipe.to_toml())) == hash(recipe)


@each
def test_a_plan_says_what_was_done(example: Example) -> None:
    state = example.state()
    edit = example.operator.edit(state, example.target)
    growth = Recipe(example.operator).run(state, example.target)
    assert same(edit.state, growth.state_dict)
    assert growth.origin.keys() == growth.state_dict.keys()
    assert growth.sources.keys() == growth.state_dict.keys()
    for key, sources in growth.sources.items():
        assert set(sources) <= set(state)
        if key not in growth.touched:
            (source,) = sources
            assert growth.state_dict[key] is state[source]


OF_THEIR_OWN_NAMES = (
    o.tie, o.insert_block, o.stack, o.concat, o.split, o.drop, o.add_prefix, o.stack_tensors, o.unbind,
    o.merge_lora, o.fold_weight_norm, o.fold_batch_norm,
)  # fmt: skip
"""Those that give keys, take keys away, tie them themselves, or go by the names of modules."""

MOVING_TIES = [example for example in EXAMPLES if not isinstance(example.operator, OF_THEIR_OWN_NAMES)]


@pytest.mark.parametrize("example", MOVING_TIES, ids=lambda example: example.name)
def test_tied_tensors_are_tied_still(example: Example) -> None:
    """A further name for each tensor: what is changed under one name is changed under the other."""
    state = example.state()
    tied = OrderedDict([*state.items(), *((f"twin/{key}", value) for key, value in state.items())])
    new = example.operator.apply(tied, example.target)
    alone = example.operator.apply(state, example.target)
    renames = isinstance(example.operator, (o.rename, o.strip_prefix))
    for key in state:
        moved = alone.get(key, state[key])
        twin = new[f"twin/{key}"]
        assert bits(twin) == bits(moved)
        if not renames:
            assert new[key] is twin


def test_of_tied_tensors_that_are_named_one_by_one_the_growth_is_proved_once() -> None:
    old, new = settle(Words(11)), Words(13)
    recipe = Recipe(*(o.append(key, dim=0, n=2, init="mean") for key in ("embed.weight", "head.weight")))
    growth = recipe.run(old.state_dict(), new.state_dict())
    new.load_state_dict(growth.state_dict)
    promises, findings = verify(claims(recipe, growth, old=old.state_dict(), model=new))
    assert findings == []
    assert {promise.status for promise in promises} == {"kept"}
    assert sum("old rows kept" in promise.name for promise in promises) == 1


def test_shapes_alone_import_none_of_torchs_python_kernels() -> None:
    """torch computes some operations on meta in Python: the first of them imports for seconds."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
        "from operator_examples import EXAMPLES\n"
        "before = set(sys.modules)\n"
        "for example in EXAMPLES:\n"
        "    example.operator.apply(example.meta(), example.target)\n"
        "    more = set(sys.modules) - before\n"
        "    assert not more, (example.name, len(more))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
