from __future__ import annotations

import copy
import logging
import random
import sys
import threading
import types
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from pytest_ckptcompat.forward.fake_cuda import Card
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.rehearsal import rehearse

ONE = Inputs.parse("2x4")


class Computes(nn.Module):
    """A linear layer, and what a function makes of its output."""

    def __init__(self, function=lambda self, x: x):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self, self.linear(x))


# -- what a card does ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x * torch.tensor(2.0) + torch.tensor([3.0]).sum(),  # without dimensions, on the CPU
        lambda self, x: x[torch.tensor([1, 0])],  # indices on the CPU
        lambda self, x: x.index_put((torch.tensor([0]),), torch.tensor(1.0)),
        lambda self, x: x.copy_(torch.zeros(2, 4)),
        lambda self, x: x.cpu() + torch.ones(4),
        lambda self, x: (x.cpu() + torch.ones(4)).to(x.device) + x,
        lambda self, x: x + torch.ones(4, device="cuda") if x.is_cuda else x,
        lambda self, x: x + torch.ones(4, device=x.get_device()),
        lambda self, x: x + torch.ones(4).cuda(non_blocking=True),
        lambda self, x: x + x.new_tensor([1.0, 2.0, 3.0, 4.0]) + x.new_zeros(4) + x.new_full((4,), 2.0),
        lambda self, x: torch.zeros_like(x, device="cpu").to(x),
        lambda self, x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda self, x: x.masked_fill(x > 0, 0.0).half().float().double(),
        lambda self, x: copy.deepcopy(x) + x.clone().detach().data,
        lambda self, x: torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=False),
        lambda self, x: torch.func.vmap(lambda row: row * 2)(x),
        lambda self, x: nn.Linear(4, 4, device=x.device)(x),
        lambda self, x: x if torch.cuda.is_available() and torch.cuda.device_count() else x + torch.ones(4),
        lambda self, x: x + torch.full((4,), float(torch.cuda.current_device()), device="cuda"),
        lambda self, x: (torch.cuda.synchronize(), torch.cuda.empty_cache(), x)[2],
        lambda self, x: f"{x}" and x,
        lambda self, x: self.register_buffer("cache", x) or self.cache,
        lambda self, x: x.sum() if x.device == torch.device("cuda:0") else x + torch.ones(4),
        lambda self, x: torch.as_tensor([1.0, 2, 3, 4], device=x.device) + torch.rand(4, device=x.device) + x,
        lambda self, x: x.unflatten(1, (2, 2)).mT.reshape(2, -1).unbind()[0].chunk(2)[0],
        lambda self, x: F.one_hot(x.argmax(-1), 4).float() @ torch.ones(4, 4, device=x.device),
    ],
)
def test_what_a_card_allows_is_no_alarm(function):
    outcome = rehearse(Computes(function), ONE)
    assert outcome.status == "rehearsed", outcome.detail


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x + torch.ones(4),
        lambda self, x: x.add_(torch.ones(4)),
        lambda self, x: torch.ones(4) * x.sum(),
        lambda self, x: torch.cat([x, torch.ones(2, 4)]),
        lambda self, x: F.embedding(torch.tensor([0, 1]), x),
        lambda self, x: torch.ones(4)[x.argmax(-1)],
        lambda self, x: x.index_put((torch.tensor([0, 1]),), torch.ones(2, 4)),
        lambda self, x: x.gather(1, torch.tensor([[0], [1]])),
        lambda self, x: F.conv1d(x[:, None], torch.ones(1, 1, 3)),
        lambda self, x: F.conv1d(x[:, None], self.linear.weight[None, :1, :3], torch.ones(1)),
        lambda self, x: F.layer_norm(x, (4,), torch.ones(4)),
        lambda self, x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(2, 2).bool()),
        lambda self, x: x.masked_fill(torch.ones(4).bool(), 0.0),
        lambda self, x: F.linear(x, torch.ones(4, 4)),
        lambda self, x: torch.einsum("bi,ij->bj", x, torch.ones(4, 4)),
        lambda self, x: F.cross_entropy(x, torch.tensor([0, 1])),
        lambda self, x: torch.where(torch.ones(4).bool(), x, x),
        lambda self, x: nn.LSTM(4, 4, device=x.device)(x[None], (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))),
        lambda self, x: x.cpu() + x,
        lambda self, x: x.to("cpu") @ self.linear.weight,
    ],
)
def test_what_a_card_refuses_names_both_devices_and_the_place(function):
    outcome = rehearse(Computes(function), ONE)
    assert outcome.status == "failed", outcome.detail
    [found] = outcome.findings
    assert found.rule == "forward-error"
    assert "cuda:0" in found.message
    assert "cpu" in found.message
    assert "test_rehearsal.py:" in found.message


def test_the_card_that_was_asked_for_is_named():
    outcome = rehearse(Computes(lambda self, x: x + torch.ones(4)), ONE, "cuda:3")
    assert "cuda:3 (2, 4) f32 and cpu (4,) f32" in outcome.findings[0].message
    assert rehearse(Computes(), ONE, "cuda:3").detail.startswith("simulated cuda:3 (fake tensors)")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda self, x: F.linear(x.bfloat16(), self.linear.weight), "expected one dtype"),
        (lambda self, x: F.linear(x, self.linear.weight, self.linear.bias.half()), "expected one dtype"),
        (lambda self, x: F.conv1d(x[:, None].half(), x.new_ones(1, 1, 3)), "(2, 1, 4) f16 and (1, 1, 3) f32"),
        (lambda self, x: x.long() @ x.long().T, "not implemented for int64 on CUDA"),
        (lambda self, x: (y := x.to(torch.float8_e4m3fn)) @ y.T, "not implemented for float8_e4m3fn"),
        (lambda self, x: x @ x, "cannot be multiplied"),
        (lambda self, x: x.view(3, 3), "shape '[3, 3]' is invalid"),
        (lambda self, x: F.embedding(x, x), "Long, Int"),
        (lambda self, x: x + x[:, :3], "size of tensor"),
        (lambda self, x: self.head(x), "has no attribute 'head'"),
        (lambda self, x: sys.exit(4), "the model called sys.exit(4)"),
        (lambda self, x: 1 / 0, "ZeroDivisionError"),
        (lambda self, x: (_ for _ in ()).throw(ValueError(f"bad input {x}")), "ValueError: bad input "),
        (lambda self, x: (_ for _ in ()).throw(NotImplementedError("later")), "NotImplementedError: later"),
    ],
)
def test_shapes_dtypes_and_the_models_own_errors_fail(function, text):
    outcome = rehearse(Computes(function), ONE)
    assert outcome.status == "failed", outcome.detail
    assert text in outcome.findings[0].message
    assert "in " in outcome.findings[0].message


def test_wrong_arguments_and_inputs_that_raise():
    assert rehearse(Computes(), Inputs.parse({"y": (2, 4)})).status == "failed"
    outcome = rehearse(Computes(), Inputs.parse(lambda: 1 / 0))
    assert outcome.status == "failed"
    assert "inputs callable raised" in outcome.findings[0].message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whole_models_in_low_precision(dtype):
    layers = nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.GELU(), nn.LayerNorm(4), nn.LSTM(4, 3)
    model = nn.Sequential(*layers).to(dtype)
    outcome = rehearse(model, Inputs.parse(f"2x2x4:{str(dtype)[6:]}"))
    assert outcome.status == "rehearsed", outcome.detail
    assert "f16" in outcome.detail
    assert rehearse(model, Inputs.parse("2x2x4")).status == "failed"


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 4), nn.Conv1d(1, 1, 1)
        self.norm, self.prelu = nn.LayerNorm(4), nn.PReLU()

    def forward(self, x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = self.linear(x)
            z = self.norm(self.prelu(self.conv(y[:, None])))
            a = F.scaled_dot_product_attention(z, z.bfloat16(), z)
            b = (x @ x.T, y.softmax(-1), y.exp(), y + 1, x.sum())
            with torch.autocast("cuda", enabled=False):
                c = self.linear(x)
        return y, z, a, b, c, self.linear(x)


def test_autocast_regions_cast_as_on_a_card():
    outcome = rehearse(Casting(), ONE)
    assert outcome.status == "rehearsed", outcome.detail
    card = Card()
    copied = card.copy(Casting())
    with card:
        y, z, a, b, c, after = copied(*card.batch(*ONE.batch())[0])
    low, full = torch.bfloat16, torch.float32
    assert [t.dtype for t in (y, z, a, c, after)] == [low, full, low, full, full]
    assert [t.dtype for t in b] == [low, full, full, low, full]
    assert not torch.is_autocast_enabled("cuda")


# -- what can't be rehearsed -----------------------------------------------------------------------------


@torch.library.custom_op("ckptcompat_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@torch.library.custom_op("ckptcompat_tests::known", mutates_args=())
def known(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@known.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("ckptcompat_tests::wrong", mutates_args=())
def wrong(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@wrong.register_fake
def _(x):
    raise ValueError("this fake kernel is wrong")


def swallowed(self, x):
    try:
        return x if x.sum() > 0 else -x
    except Exception:
        raise ValueError("the input is odd") from None


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda self, x: x if x.sum() > 0 else -x, "it depends on values"),
        (lambda self, x: x * x.sum().item(), "it depends on values"),
        (lambda self, x: x.tolist(), "it depends on values"),
        (lambda self, x: [row for row in x if row.any()], "it depends on values"),
        (lambda self, x: x[x > 0], "a shape depends on values"),
        (lambda self, x: x.nonzero(), "a shape depends on values"),
        (lambda self, x: x.unique(), "a shape depends on values"),
        (lambda self, x: x.cpu().numpy(), "NumPy reads the values"),
        (lambda self, x: x.numpy(), "NumPy reads the values"),
        (lambda self, x: opaque(x), "an operation has no fake kernel"),
        (lambda self, x: torch.cuda.get_device_capability(), "it asks the driver"),
        (lambda self, x: torch.cuda.get_device_properties(0).name, "it asks the driver"),
        (lambda self, x: torch.cuda.Stream(), "it asks the driver"),
        (lambda self, x: torch.rand(4, generator=torch.Generator("cuda")), "it asks the driver"),
        (
            lambda self, x: nn.utils.rnn.pack_padded_sequence(x[None], torch.ones(2).int()),
            "depends on values",
        ),
        (lambda self, x: x.pin_memory(), "fake tensors failed"),
        (swallowed, "it depends on values"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver to ask")
def test_what_can_not_be_rehearsed_is_no_fault(function, text):
    outcome = rehearse(Computes(function), ONE)
    assert outcome.status == "skipped", outcome.detail
    assert outcome.detail.startswith("can't be rehearsed here: ")
    assert text in outcome.detail
    assert "test_rehearsal.py:" in outcome.detail
    assert outcome.findings == []


def test_a_custom_operation_with_a_fake_kernel():
    assert rehearse(Computes(lambda self, x: known(x) + 1), ONE).status == "rehearsed"
    assert rehearse(Computes(lambda self, x: known(x) + torch.ones(4)), ONE).status == "failed"


def test_what_passed_for_real_and_fails_on_fake_cpu_tensors_is_not_the_models_fault():
    model = Computes(lambda self, x: wrong(x))
    assert rehearse(model, ONE).status == "failed"
    outcome = rehearse(model, ONE, ran_on_cpu=True)
    assert outcome.status == "skipped"
    assert "fake tensors fail where real ones pass" in outcome.detail
    left_behind = Computes(lambda self, x: x + torch.ones(4))
    assert rehearse(left_behind, ONE, ran_on_cpu=True).status == "failed"
    halved = Computes(lambda self, x: x.long() @ x.long().T)
    assert rehearse(halved, ONE, ran_on_cpu=True).status == "failed"


def test_a_rehearsal_that_fails_itself_is_no_fault_of_the_model(monkeypatch):
    monkeypatch.setattr("pytest_ckptcompat.forward.cuda_rules._one_device", None)
    outcome = rehearse(Computes(), ONE)
    assert outcome.status == "skipped"
    assert "the rehearsal itself failed (TypeError: 'NoneType' object is not callable)" in outcome.detail


class Locked(Computes):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Uncopied(Computes):
    def __deepcopy__(self, memo):
        raise RuntimeError("there can be only one")


def with_buffer(tensor):
    model = Computes()
    model.register_buffer("b", tensor)
    return model


class Special(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def special():
    model = Computes()
    model.special = nn.Parameter(torch.ones(2).as_subclass(Special))
    return model


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Locked, "the model can't be copied: cannot pickle '_thread.lock' object"),
        (Uncopied, "the model can't be copied: there can be only one"),
        (lambda: nn.LazyLinear(4), "weight has no shape before the first forward pass"),
        (
            lambda: with_buffer(torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)),
            "b is a quantized tensor",
        ),
        (lambda: with_buffer(torch.ones(2, 2).to_sparse()), "b is a sparse_coo tensor"),
        (special, "special is a Special"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4))), "0 is compiled by TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_that_fake_tensors_can_not_play(make, text):
    outcome = rehearse(make(), ONE)
    assert (outcome.status, outcome.detail) == ("skipped", f"can't be rehearsed here: {text}")


# -- how models are built --------------------------------------------------------------------------------


class Placed(nn.Module):
    """Keeps the device that was there when it was built."""

    def __init__(self, keep_tensor=False, config=False, bug=False):
        super().__init__()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if config:
            self.config = types.SimpleNamespace(device="cuda" if torch.cuda.is_available() else "cpu")
        else:
            self.device = device
        self.bug = bug
        self.kept = torch.ones(4, device=device) if keep_tensor else None
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        device = self.config.device if hasattr(self, "config") else self.device
        x = self.linear(x) + torch.arange(4, device=device)
        x = x if self.kept is None else x + self.kept
        return x + torch.ones(4) if self.bug else x


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card to build on")
@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ({}, "rehearsed", "with Placed.device = cuda:0 instead of cpu: (2, 4)"),
        ({"config": True}, "rehearsed", "with Placed.config.device = cuda:0 instead of cpu: (2, 4)"),
        (
            {"keep_tensor": True},
            "skipped",
            "Placed.device is cpu, since the model was built without a CUDA device",
        ),
        ({"bug": True}, "failed", "found cuda:0 (2, 4) f32 and cpu (4,) i64"),
    ],
)
def test_a_device_chosen_where_there_was_no_card_is_no_fault(arguments, status, text):
    model = Placed(**arguments)
    outcome = rehearse(model, ONE)
    assert outcome.status == status, outcome.detail
    assert text in outcome.findings[0].message if status == "failed" else text in outcome.detail
    assert "cpu" in str(model.config.device if "config" in arguments else model.device)


class Keeps(nn.Module):
    """Keeps a tensor that is neither parameter nor buffer, and moves it (or not) the way models do."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4)
        self.kept = [nn.Parameter(torch.ones(4))] if how == "list" else torch.ones(4)

    def _apply(self, fn, recurse=True):
        if self.how == "_apply":
            self.kept = fn(self.kept)
        return super()._apply(fn, recurse)

    def to(self, *args, **kwargs):
        if self.how == "to":
            self.kept = self.kept.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(self, x):
        return self.linear(x) + (self.kept[0] if self.how == "list" else self.kept)


@pytest.mark.parametrize("built_on", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("how", "status"),
    [("_apply", "rehearsed"), ("to", "rehearsed"), ("nothing", "failed"), ("list", "failed")],
)
def test_the_models_own_to_decides_what_moves(how, status, built_on):
    with torch.device(built_on):
        model = Keeps(how)
    outcome = rehearse(model, ONE)
    assert outcome.status == status, outcome.detail


def test_a_closure_over_the_original_model():
    model = Computes()
    model.function = lambda copied, x: F.linear(x, model.linear.weight)
    assert rehearse(model, ONE).status == "rehearsed"


def test_hooks_parametrisations_and_ties_are_kept():
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), normed)
    model[1].weight = model[0].weight
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(module.weight) or output + 1)
    model[1].register_forward_pre_hook(lambda module, args: seen.append(module.weight))
    assert rehearse(model, ONE).status == "rehearsed"
    assert seen[0] is seen[1]
    assert seen[0].device.type == "cuda"
    assert isinstance(seen[0], nn.Parameter)


def test_marks_on_parameters_are_kept():
    model = Computes(lambda self, x: x + self.linear.weight.scale)
    model.linear.weight.scale = 3.0
    assert rehearse(model, ONE).status == "rehearsed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch
def test_compiled_models_run_as_written():
    outcome = rehearse(torch.compile(Computes()), ONE)
    assert outcome.status == "rehearsed", outcome.detail


def test_packed_sequences_may_be_skipped_but_never_fail():
    packed = Inputs.parse(lambda: (nn.utils.rnn.pack_sequence([torch.ones(3, 4), torch.ones(1, 4)]),))
    assert rehearse(nn.GRU(4, 4), packed).status in ("rehearsed", "skipped")


# -- nothing is left behind ------------------------------------------------------------------------------


def everything(model):
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "tensors": [(id(tensor), tensor._version, str(tensor.device)) for tensor in tensors],
        "modules": [(m.training, sorted(vars(m)), len(m._forward_hooks)) for m in model.modules()],
    }


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.calls, self.history, self.plain = 0, [], torch.ones(4)

    def forward(self, x):
        self.calls += 1
        self.history.append(x)
        self.plain.add_(1)
        self.norm.running_mean += 1
        self.norm.extra = x
        self.norm.weight.data.fill_(7)
        random.random()
        torch.manual_seed(3)
        return self.norm(x)


@pytest.mark.parametrize("built_on", ["cpu", "meta"])
def test_the_model_is_left_as_it_was(built_on):
    with torch.device(built_on):
        model = Stateful()
    model.norm.eval()
    before, plain = everything(model), model.plain
    values = copy.deepcopy(model.state_dict())
    assert rehearse(model, ONE).status == "rehearsed"
    assert everything(model) == before
    assert (model.calls, model.history, model.plain is plain) == (0, [], True)
    if built_on == "cpu":
        assert torch.equal(plain, torch.ones(4))
        assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())


def surroundings():
    return {
        "random": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "device": str(torch.empty(0).device),
        "dtype": torch.get_default_dtype(),
        "autocast": (torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")),
        "modes": (_len_torch_dispatch_stack(), torch.overrides._len_torch_function_stack()),
        "cuda": (torch.cuda.is_available, torch.cuda.device_count, torch.cuda.synchronize),
        "validate": torch.distributions.Distribution._validate_args,
        "mask": torch.nn.modules.transformer._detect_is_causal_mask,
        "mha": torch.backends.mha.get_fastpath_enabled(),
        "log": logging.getLogger("torch._subclasses.fake_tensor").disabled,
        "warnings": list(warnings.filters),
    }


def interrupts(self, x):
    raise KeyboardInterrupt


def opens_autocast(self, x):
    with torch.autocast("cuda"), torch.enable_grad():
        raise ValueError("inside")


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x,
        lambda self, x: x + torch.ones(4),
        lambda self, x: x.item(),
        lambda self, x: torch.manual_seed(1) and x,
        interrupts,
        opens_autocast,
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_everything_around_is_left_as_it_was(function, grad):
    model = Computes(function)
    with torch.set_grad_enabled(grad):
        before = surroundings()
        try:
            rehearse(model, ONE)
        except KeyboardInterrupt:
            assert function is interrupts
        assert surroundings() == before


def test_a_rehearsal_takes_no_memory():
    class Huge(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2**20, 2**20, device="meta"))  # 4 TB
            self.real = nn.Parameter(torch.ones(1).expand(2**20, 2**20))  # 4 bytes, 4 TB where it is copied
            self.plain = torch.ones(1).expand(2**20, 2**20)

        def forward(self, x):
            return x @ self.weight + (x @ self.real).relu()

    outcome = rehearse(Huge(), Inputs.parse("2x1048576"))
    assert outcome.status == "rehearsed", outcome.detail
