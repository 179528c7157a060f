from __future__ import annotations

import itertools
import random
import sys

import pytest
import torch
from torch import nn

from pytest_ckptcompat.forward import real as module
from pytest_ckptcompat.forward.devices import cuda_device, release
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.outputs import shown
from pytest_ckptcompat.forward.real import forward

ONE = Inputs.parse("2x4")
gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x):
        return {"y": self.body(x), "pair": (x.sum(), [x > 0])}


class Raises(Net):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class Computes(nn.Module):
    """Gives what a function of the input gives."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_pass_tells_shapes_and_gives_outputs():
    outcome = forward(Net(), ONE)
    assert (outcome.status, outcome.detail) == ("passed", "on cpu: (2, 3), (), (2, 4) bool")
    assert outcome.findings == []
    assert outcome.outputs["y"].shape == (2, 3)
    assert not outcome.outputs["y"].requires_grad


def test_it_runs_in_eval_mode_and_gives_every_mode_back():
    model = Net().train()
    model.body[1].eval()
    before = model.body[1].running_mean.clone()
    first, second = forward(model, ONE), forward(model, ONE)
    assert torch.equal(first.outputs["y"], second.outputs["y"])
    assert torch.equal(model.body[1].running_mean, before)
    assert forward(model, Inputs.parse("2x5")).status == "failed"
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert torch.is_grad_enabled()


def test_random_models_repeat_and_generators_are_left_alone():
    numpy = pytest.importorskip("numpy")
    model = Computes(lambda x: (x + torch.randn(4), random.random(), numpy.random.rand()))
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    first, second = forward(model, ONE).outputs, forward(model, ONE).outputs
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]


def test_an_error_names_module_class_line_and_source():
    model = Net()
    model.body[0] = nn.Linear(5, 3)
    outcome = forward(model, ONE)
    [found] = outcome.findings
    assert outcome.status == "failed"
    assert (found.rule, found.key, found.severity) == ("forward-error", "body.0", "error")
    assert "mat1 and mat2 shapes cannot be multiplied (2x4 and 5x3)" in found.message
    assert "in body.0 (Linear), test_forward.py:" in found.message
    assert found.message.endswith('return {"y": self.body(x), "pair": (x.sum(), [x > 0])}')
    assert outcome.detail == "on cpu: forward-error"  # the finding says it all


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\nlines \x1b[31mred"), r"ValueError: two lines \x1b[31mred; in Raises"),
        (AssertionError(), "AssertionError; in Raises, test_forward.py:"),
        (SystemExit(3), "the model called sys.exit(3)"),
        (MemoryError(), "out of memory on cpu: declare a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on cpu"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("x\nException raised from foo at bar.cpp:3"), "RuntimeError: x; in Raises"),
        (RecursionError("deep"), "RecursionError: deep"),
        (Warning("as an error"), "Warning: as an error"),
        (ValueError("y" * 10_000), "characters)…"),
    ],
)
def test_whatever_is_raised_is_one_finding(error, text):
    outcome = forward(Raises(error), ONE)
    assert (outcome.status, len(outcome.findings)) == ("failed", 1)
    assert text in outcome.findings[0].message
    assert len(outcome.findings[0].message) < 800


def test_what_does_not_belong_to_the_model_passes_through():
    with pytest.raises(KeyboardInterrupt):
        forward(Raises(KeyboardInterrupt()), ONE)
    with pytest.raises(pytest.skip.Exception):
        forward(Raises(pytest.skip.Exception("by hand")), ONE)


def test_an_allocation_that_can_not_succeed():
    outcome = forward(Computes(lambda x: torch.empty(2**50)), ONE)
    assert "out of memory on cpu: declare a smaller batch" in outcome.findings[0].message


def test_a_module_in_a_plain_list_is_named_after_its_owner():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.inner.parts = [nn.Linear(5, 5)]
            self.inner.forward = lambda x: self.inner.parts[0](x)

        def forward(self, x):
            return self.inner(x)

    [found] = forward(Owner(), ONE).findings
    assert found.key == "inner"
    assert "(Linear)" in found.message


def test_wrong_arguments_are_the_models_error():
    outcome = forward(Net(), Inputs.parse({"z": (2, 4)}))
    assert "unexpected keyword argument 'z'" in outcome.findings[0].message
    assert "in Net" in outcome.findings[0].message


def test_inputs_that_raise():
    outcome = forward(Net(), Inputs.parse(lambda: sys.exit("no data")))
    assert (outcome.status, outcome.findings[0].rule) == ("failed", "forward-error")
    assert "the inputs callable raised" in outcome.findings[0].message


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x / 0, "output: 8 of 8 values are NaN or infinite"),
        (lambda x: {"a": [x, x.log()]}, "output['a'][1]: "),
        (lambda x: torch.full((3,), float("-inf"), dtype=torch.bfloat16), "3 of 3"),
        (lambda x: torch.complex(x, x / 0), "8 of 8"),
        (lambda x: torch.full((3,), float("nan")).to(torch.float8_e4m3fn), "3 of 3"),
        (lambda x: (x / 0).to_sparse(), "values are NaN or infinite"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1] / 0]), "4 of"),
        (lambda x: torch.distributions.Normal(x * torch.nan, 1.0, validate_args=False), "output.loc: 8 of 8"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_that_are_not_finite(function, text):
    outcome = forward(Computes(function), ONE)
    assert (outcome.status, outcome.findings[0].rule) == ("failed", "forward-non-finite")
    assert text in outcome.findings[0].message


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.to(torch.int64) // 2,
        lambda x: "text",
        lambda x: None,
        lambda x: torch.empty(0),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to(torch.float8_e5m2),
        lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
def test_outputs_that_are_fine(function):
    assert forward(Computes(function), ONE).status == "passed"


def test_the_module_where_values_turn_bad_is_named_and_no_hook_stays():
    model = Net()
    model.body[1].running_var.fill_(-1.0)
    outcome = forward(model, ONE)
    assert outcome.findings[0].key == "body.1"
    assert "first in body.1 (BatchNorm1d)" in outcome.findings[0].message
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_without_tensors_and_many_outputs():
    assert forward(nn.Identity(), Inputs.parse([])).status == "failed"
    assert shown([torch.zeros(1)] * 9) == "(1,), (1,), (1,), (1,), (1,), (1,), and 3 more"
    assert shown({"a": 3}) == "no tensors, dict"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "function", [lambda x: x.cuda(), lambda x: x.to("cuda"), lambda x: torch.ones(1, device="cuda")]
)
def test_a_model_that_asks_for_a_card_may_be_skipped_on_the_cpu(function):
    model = Computes(function)
    assert forward(model, ONE).status == "failed"
    outcome = forward(model, ONE, or_skip=True)
    assert (outcome.status, outcome.findings) == ("skipped", [])
    assert outcome.detail.startswith("the model needs a CUDA device, and there is none; ")
    assert forward(Computes(lambda x: x.cude()), ONE, or_skip=True).status == "failed"


# -- devices -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_card_is_a_failure_that_says_why(device):
    outcome = forward(Net(), ONE, device)
    assert (outcome.status, outcome.findings[0].rule) == ("failed", "forward-no-cuda")
    reason = "built for the CPU only" if torch.version.cuda is None else "sees no CUDA device"
    assert reason in outcome.detail


@pytest.fixture
def cards(monkeypatch):
    """Three cards, as far as torch is asked for their number."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for name in ("PYTEST_XDIST_WORKER", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_workers_and_ranks_are_dealt_out_over_the_cards(cards):
    assert str(cuda_device()) == "cuda:0"
    given = []
    for worker in ("gw0", "gw1", "gw2", "gw3", "master"):
        cards.setenv("PYTEST_XDIST_WORKER", worker)
        given.append(str(cuda_device("cuda")))
    assert given == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:0"]
    cards.delenv("PYTEST_XDIST_WORKER")
    cards.setenv("LOCAL_RANK", "4")
    assert str(cuda_device("cuda")) == "cuda:1"


def test_a_named_card_is_taken_or_refused(cards):
    cards.setenv("PYTEST_XDIST_WORKER", "gw1")
    assert str(cuda_device("cuda:2")) == "cuda:2"
    with pytest.raises(ValueError, match="there are only 3 CUDA devices, cuda:0 to cuda:2"):
        cuda_device("cuda:3")


# -- what happens on a card, with the CPU playing it ---------------------------------------------------------


@pytest.fixture
def on_second_pass(monkeypatch):
    """Let the pass "on the card" run on the CPU too, and let a model tell the two apart by `passes`."""
    passes = itertools.count()
    monkeypatch.setattr(module, "cuda_device", lambda name: torch.device("cpu"))
    return passes


@pytest.mark.parametrize(
    ("function", "status", "text"),
    [
        (lambda x, n: x, "passed", "agrees with the CPU (relative error 0.0e+00, allowed 1e-02)"),
        (lambda x, n: x * (1 + 1e-4 * n), "passed", "agrees with the CPU"),
        (lambda x, n: {"y": x + (n == 1)}, "failed", "output['y'] on cpu differs from the CPU's"),
        (lambda x, n: x + torch.randn(4), "passed", "agrees with the CPU"),
        (lambda x, n: x > 0, "passed", "no floating-point outputs of the same shapes"),
        (lambda x, n: x[: n + 1], "passed", "no floating-point outputs of the same shapes"),
        (
            lambda x, n: (x @ x.T) / (n != 0),
            "passed",
            "not compared with the CPU, where it failed: output: 4",
        ),
    ],
)
def test_the_card_is_held_against_the_cpu(on_second_pass, function, status, text):
    first = {0: 0, 1: 1}  # later passes look for the cause, and see what the card saw
    outcome = forward(Computes(lambda x: function(x, first.get(next(on_second_pass), 1))), ONE, "cuda")
    assert outcome.status == status
    assert text in outcome.detail
    if status == "failed":
        assert outcome.findings[0].rule == "forward-disagree"


def test_random_outputs_are_not_held_against_each_other(on_second_pass):
    def own_generator(x):  # as the generators of two devices give other numbers
        next(on_second_pass)
        return x + torch.randn(
            4, generator=torch.Generator().manual_seed(torch.initial_seed() + next(on_second_pass))
        )

    outcome = forward(Computes(own_generator), ONE, "cuda")
    assert outcome.status == "passed"
    assert "the outputs are random" in outcome.detail


def test_autocast_is_given_its_tolerance(on_second_pass):
    class Inner(nn.Module):
        def forward(self, x):
            return (x * 1.02).to(torch.bfloat16) if next(on_second_pass) else x

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x).float()

    outcome = forward(Casting(), ONE, "cuda")
    assert outcome.status == "passed", outcome.detail
    assert "allowed 5e-02, autocast" in outcome.detail


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), SystemExit(1)])
def test_a_disagreement_is_told_even_if_a_further_pass_raises(on_second_pass, error):
    def once(x):
        number = next(on_second_pass)
        if number > 1:
            raise error
        return x + number

    outcome = forward(Computes(once), ONE, "cuda")
    assert outcome.status == "failed"
    assert outcome.findings[0].rule == "forward-disagree"


def test_a_lost_context_is_told_once(monkeypatch):
    """By the pass that lost it, and not again when the memory is to be given back."""

    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    release()


class TestCuda:
    pytestmark = gpu

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
    def test_a_model_that_put_itself_on_the_first_card_runs_on_the_second(self):
        outcome = forward(nn.Linear(4, 4).cuda(), ONE, "cuda:1")
        assert outcome.status == "passed", outcome.detail

    def test_a_pass_tells_card_time_memory_and_agreement(self):
        model = Net()
        outcome = forward(model, ONE, "cuda")
        assert outcome.status == "passed", outcome.detail
        assert torch.cuda.get_device_name(cuda_device()) in outcome.detail
        assert "peak" in outcome.detail
        assert "agrees with the CPU" in outcome.detail
        assert outcome.peak_bytes > 0
        assert outcome.outputs["y"].device.type == "cpu"
        assert {p.device.type for p in model.parameters()} == {"cuda"}

    def test_a_tensor_left_on_the_cpu_fails_with_its_place(self):
        outcome = forward(Computes(lambda x: x + torch.arange(4)), ONE, "cuda")
        assert (outcome.status, outcome.findings[0].rule) == ("failed", "forward-error")
        assert "same device" in outcome.detail
        assert "test_forward.py:" in outcome.detail

    def test_out_of_memory_is_clear_and_leaves_the_card_usable(self):
        outcome = forward(Computes(lambda x: x.new_empty(2**44) if x.is_cuda else x), ONE, "cuda")
        assert "out of memory on cuda:" in outcome.detail
        assert "declare a smaller batch" in outcome.detail
        assert forward(Net(), ONE, "cuda").status == "passed"

    def test_an_index_out_of_range_does_not_cost_the_context(self):
        model = nn.Embedding(4, 2)
        outcome = forward(model, Inputs.parse(lambda: torch.tensor([9])), "cpu")
        assert outcome.status == "failed"
        assert torch.ones(1, device="cuda").item() == 1

    def test_memory_is_released(self):
        device = cuda_device()
        before = torch.cuda.memory_allocated(device)
        model = nn.Linear(1000, 1000)
        forward(model, Inputs.parse("2x1000"), "cuda")
        del model
        release()
        assert torch.cuda.memory_allocated(device) <= before

    def test_cuda_generators_are_left_alone(self):
        torch.cuda.init()
        before = torch.cuda.get_rng_state(cuda_device())
        forward(Computes(lambda x: x + torch.randn(4, device=x.device)), ONE, "cuda")
        assert torch.equal(torch.cuda.get_rng_state(cuda_device()), before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_agrees_within_its_tolerance(self, dtype):
        model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).to(dtype)
        outcome = forward(model, Inputs.parse(f"4x64:{str(dtype)[6:]}"), "cuda")
        assert "agrees with the CPU" in outcome.detail, outcome.detail
