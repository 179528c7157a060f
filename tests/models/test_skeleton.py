"""The judge is always the same model, built as usual and loaded by torch."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
import random
import weakref
from contextlib import suppress

import pytest
import torch
from rehearsal_zoo import ZOO
from torch import nn

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checks import value_stages
from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.checks.check import Check
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.models.blueprint import blueprint
from pytest_ckptcompat.models.skeleton import skeleton
from pytest_ckptcompat.tensors.seeds import seeded


def weights_of(kind):
    """A checkpoint: what the model would hold after some training."""
    with seeded(5):
        trained = kind()
        for tensor in itertools.chain(trained.parameters(), trained.buffers()):
            if tensor.is_floating_point():
                tensor.data += torch.rand(tensor.shape).to(tensor.dtype)
    return trained.state_dict()


def as_usual(kind, state_dict):
    model = blueprint(kind).build()
    model.load_state_dict(state_dict)
    return model


def unbuilt(kind, state_dict):
    return skeleton(blueprint(kind).build, lambda model: model.load_state_dict(state_dict))


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.device, one.stride(), one.requires_grad) == (
            other.dtype,
            other.device,
            other.stride(),
            other.requires_grad,
        )
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, dict):
        assert_same(list(one), list(other))
        assert_same(list(one.values()), list(other.values()))
    elif not isinstance(one, torch.distributions.Distribution):
        assert one == other


def outputs(model, args, kwargs):
    with seeded(1), torch.no_grad():
        return model(*args, **kwargs)


def assert_interchangeable(model, real, args, kwargs):
    """In weights, buffers of every kind, modes, and in what they compute, for training and for evaluation."""
    assert [name for name, _ in model.named_modules()] == [name for name, _ in real.named_modules()]
    assert [module.training for module in model.modules()] == [module.training for module in real.modules()]
    assert_same(dict(model.named_parameters()), dict(real.named_parameters()))
    assert_same(dict(model.named_buffers()), dict(real.named_buffers()))
    assert_same(dict(model.state_dict()), dict(real.state_dict()))
    for mode in (True, False):
        assert_same(
            outputs(model.train(mode), *copy.deepcopy((args, kwargs))),
            outputs(real.train(mode), *copy.deepcopy((args, kwargs))),
        )


LOOKING = {"Flow"}  # torch's orthogonal parametrisation looks whether what it gets is orthogonal


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_network_is_spared_its_random_numbers(name):
    exhibit = ZOO[name]
    state_dict = weights_of(exhibit.kind)
    model = unbuilt(exhibit.kind, state_dict)
    assert (model is None) == (name in LOOKING)
    if model is not None:
        args, kwargs = Inputs.parse(exhibit.inputs).batch()
        assert_interchangeable(model, as_usual(exhibit.kind, state_dict), args, kwargs)


class Trap(nn.Module):
    """A linear layer, and something else that the constructor keeps, which `forward` returns as well."""

    def __init__(self, spring):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout()
        self.use = spring(self) or (lambda: self.kept)

    def forward(self, x):
        kept = self.use()
        return self.dropout(self.linear(x)), kept.state_dict() if isinstance(kept, nn.Module) else kept


def keep(make):
    def spring(self):
        self.kept = make(self)

    return spring


def method(self):
    self.bound = functools.partial(torch.add, torch.arange(4.0))
    self.kept = self.bound(self.linear.in_features)


def hook(self):
    table = torch.arange(4.0)
    self.linear.register_forward_pre_hook(lambda module, args: (args[0] + table + module.in_features,))
    self.kept = 0


def post_load(self):
    self.kept = 0
    self.linear.register_load_state_dict_post_hook(double)


def double(module, keys):
    module.weight.data.mul_(2)


def generator(self):
    self.generator = torch.Generator().manual_seed(3)
    nn.init.normal_(self.linear.weight, generator=self.generator)
    return lambda: int(torch.randint(100, (), generator=self.generator.clone_state()))


def buffer(persistent, make):
    return lambda self: self.register_buffer("kept", make(self), persistent=persistent)


def weak(self):
    reference = weakref.ref(self.linear.weight)
    self.kept = 0
    return lambda: reference()[:2] + 1


def python_random(self):
    self.kept = random.random()


def truncated(self):
    self.kept = 0
    nn.init.trunc_normal_(self.linear.weight, std=0.02)
    nn.init.trunc_normal_(self.linear.bias, std=1.0, a=1.0, b=3.0)


def orthogonal(self):
    self.kept = 0
    nn.init.orthogonal_(self.linear.weight)


def scaled(self):
    self.kept = 0
    self.position = nn.Parameter(torch.randn(1, 4, 8)[:, :, ::2].contiguous() * 0.02)
    self.weight = nn.Parameter(torch.rand_like(self.position) / 3)


def channels_last(self):
    self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    self.kept = 0


def frozen(self):
    self.kept = self.linear.requires_grad_(False).weight.device


def tied(self):
    self.other = nn.Linear(4, 4)
    self.other.weight = self.linear.weight
    self.kept = 0


def checked(self):
    self.kept = 0
    with pytest.raises(RuntimeError):
        nn.init.normal_(self.linear.weight, std=-1)


SERVED = {
    "device": keep(lambda self: (self.linear.weight.device, {"device": self.linear.weight.device})),
    "factory arguments": keep(lambda self: {"device": self.linear.bias.device, "dtype": self.linear.bias.dtype}),
    "table": keep(lambda self: torch.arange(4)),
    "shapes": keep(lambda self: [tuple(p.shape) for p in self.parameters()]),
    "number of a constant": keep(lambda self: torch.linspace(0, 1, 5).sum().item()),
    "array of a constant": keep(lambda self: torch.arange(4).numpy().tolist()),
    "behaves differently on meta": keep(lambda self: "meta" if self.linear.weight.is_meta else "real"),
    "built under a default device": keep(lambda self: str(torch.empty(0).device)),
    "Python's random": python_random,
    "bound method": method,
    "hook over a table": hook,
    "hook after loading": post_load,
    "weak reference": weak,
    "constant buffer": buffer(False, lambda self: torch.arange(4.0)),
    "random buffer that is saved": buffer(True, lambda self: torch.randn(4)),
    "clones": keep(lambda self: setattr(self, "clones", nn.ModuleList(map(copy.deepcopy, [self.linear] * 2)))),
    "truncated": truncated,
    "orthogonal": orthogonal,
    "scaled": scaled,
    "channels last": channels_last,
    "frozen": frozen,
    "tied": tied,
    "a generator of its own for a weight": generator,
}  # fmt: skip

REFUSED = {
    "random table": keep(lambda self: torch.randn(4)),
    "random buffer": buffer(False, lambda self: torch.randn(4)),
    "permutation": keep(lambda self: torch.randperm(4)),
    "hidden layer": keep(lambda self: [nn.Linear(4, 4)]),
    "hidden in a closure": lambda self: (lambda hidden: lambda: hidden.weight)(nn.Linear(4, 4)),
    "hidden in a hook": lambda self: self.linear.register_forward_hook(
        functools.partial(lambda hidden, *_: hidden, torch.rand(4))
    )
    and (lambda: 0),
    "made of a weight": keep(lambda self: self.linear.weight.detach() * 2),
    "copied into a table": keep(lambda self: torch.zeros(4, 4).copy_(self.linear.weight.detach())),
    "written into a table": keep(lambda self: torch.zeros(8, 4).index_copy_(0, torch.arange(4), self.linear.weight.detach())),
    "number": keep(lambda self: self.linear.weight.std().item()),
    "float": keep(lambda self: float(self.linear.weight.detach()[0, 0])),
    "text": keep(lambda self: str(self.linear.weight)),
    "list": keep(lambda self: self.linear.weight.tolist()),
    "array": keep(lambda self: self.linear.weight.detach().numpy().tolist()),
    "array by its interface": keep(lambda self: __import__("numpy").asarray(self.linear.weight.detach()).tolist()),
    "bytes": keep(lambda self: pickle.dumps(self.linear.weight)),
    "file": keep(lambda self: torch.save(self.linear, file := io.BytesIO()) or len(file.getvalue()) + file.getvalue()[900]),
    "memory": keep(lambda self: bytes(self.linear.weight.untyped_storage().tolist()[:4])),
    "choice": keep(lambda self: "+" if self.linear.weight[0, 0] > 0 else "-"),
    "count": keep(lambda self: len((self.linear.weight > 0).nonzero())),
    "masked": keep(lambda self: self.linear.weight[self.linear.weight > 0].shape),
    "seed": keep(lambda self: int(torch.empty((), dtype=torch.int64).random_())),
    "equality": keep(lambda self: torch.equal(self.linear.weight, torch.zeros(4, 4))),
    "sparse": keep(lambda self: self.linear.weight.detach().to_sparse().to_dense()),
    "seeded by hand": keep(lambda self: torch.manual_seed(3) and torch.rand(4)),
    "generator": keep(lambda self: torch.rand(4, generator=torch.Generator().manual_seed(3))),
    "default generator": keep(lambda self: torch.rand(4, generator=torch.default_generator)),
    "an initialiser that raises": checked,
    "values that integers can't have": keep(lambda self: erring(lambda: torch.zeros(3, dtype=torch.long).normal_())),
    "swallowed": keep(lambda self: swallowing(lambda: self.linear.weight.sum().item())),
    "error": keep(lambda self: erring(lambda: torch.linalg.cholesky(self.linear.weight.detach()))),
}  # fmt: skip


def swallowing(act):
    try:
        return act()
    except BaseException:
        return -1.0


def erring(act):
    try:
        return act().sum()
    except Exception:
        return -1.0


@pytest.mark.parametrize("name", SERVED)
def test_what_a_constructor_keeps_is_what_it_would_have_kept(name):
    kind = functools.partial(Trap, SERVED[name])
    state_dict = weights_of(kind)
    model = unbuilt(kind, state_dict)
    assert model is not None
    x = torch.rand(3, 4)
    assert_interchangeable(model, as_usual(kind, state_dict), (x,), {})


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_a_random_number_is_refused(name):
    kind = functools.partial(Trap, REFUSED[name])
    real = as_usual(kind, weights_of(kind))
    assert_interchangeable(copy.deepcopy(real), real, (torch.rand(3, 4),), {})  # it is a model
    assert unbuilt(kind, weights_of(kind)) is None


class Loads(nn.Linear):
    """A layer that loads as `how` says."""

    def __init__(self, how):
        super().__init__(4, 4)
        self.how = how

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict = dict(state_dict)
        self.how(self, state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def overwrite(self, state_dict):
    self.weight.data.copy_(state_dict["weight"])
    self.weight.data.mul_(2)
    state_dict["weight"] = self.weight.data


@pytest.mark.parametrize(
    ("how", "served"),
    [
        (lambda self, state: None, True),
        (lambda self, state: state.update(weight=state["weight"].T), True),
        (lambda self, state: state.update(weight=self.bias.data.expand(4, 4)), False),
        (lambda self, state: state.update(weight=self.weight.data), False),
        (lambda self, state: state.update(weight=torch.where(state["weight"] > 1, state["weight"], self.weight.data)), False),
        (overwrite, True),
        (lambda self, state: self.weight.data[:2].copy_(state.pop("weight")[:2]), False),
        (lambda self, state: setattr(self, "before", float(self.bias.sum())), False),
    ],
)  # fmt: skip
def test_loaders_of_a_models_own(how, served):
    kind = functools.partial(Loads, how)
    state_dict = weights_of(lambda: nn.Linear(4, 4))

    def load(model):
        model.load_state_dict(state_dict, strict=False)

    model, real = skeleton(blueprint(kind).build, load), blueprint(kind).build()
    load(real)
    assert (model is not None) == served
    if served:
        assert_same(dict(model.state_dict()), dict(real.state_dict()))


def test_what_is_not_in_the_checkpoint_is_refused():
    state_dict = weights_of(lambda: nn.Linear(4, 4))
    del state_dict["bias"]
    build = blueprint(lambda: nn.Linear(4, 4)).build
    assert skeleton(build, lambda model: model.load_state_dict(state_dict, strict=False)) is None


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_errors_are_left_to_the_usual_way(error):
    def build():
        raise error("no")

    assert skeleton(build, lambda model: None) is None
    assert skeleton(lambda: nn.Linear(2, 2), lambda model: build()) is None


def test_nothing_stays_switched_on():
    with suppress(ZeroDivisionError):
        skeleton(lambda: nn.Linear(2, 2), lambda model: 1 / 0)
    assert torch.rand(100).std() > 0.1
    assert nn.Linear(64, 64).weight.std() > 0.01


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.head = nn.Linear(32, 4)
        self.dropout = nn.Dropout()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(self.dropout(x))


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A checkpoint of a model that counts as large."""
    monkeypatch.setattr(value_stages, "LARGE", 1000)
    torch.save(weights_of(Trained), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def checked_model(path, model=Trained):
    check = Check(
        CheckArguments.of(model=model), str(path), lambda key: open_checkpoint(path, key), wants_model=True
    )
    assert check.run().ok
    return check.model


def test_a_check_draws_nothing_for_a_large_model(path, monkeypatch):
    moved = []

    def watched():
        before = torch.get_rng_state()
        model = Trained()
        moved.append(not torch.equal(before, torch.get_rng_state()))
        return model

    assert checked_model(path, model=watched) is not None
    assert moved == [False, False]  # on meta, and for real
    monkeypatch.undo()
    checked_model(path, model=watched)
    assert moved[2:] == [False, True]


def test_the_model_of_a_check_trains_like_one_that_was_built_as_usual(path):
    model, real = checked_model(path), as_usual(Trained, torch.load(path, weights_only=True))
    calls = []
    for each in (model, real):
        each.train()
        each.head.register_forward_hook(lambda *_: calls.append(1))
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        with seeded(2):
            each(torch.rand(2, 32)).sum().backward()
        optimizer.step()
    assert len(calls) == 2
    assert_same(dict(model.named_parameters()), dict(real.named_parameters()))
    assert not torch.equal(model.head.weight, torch.load(path, weights_only=True)["head.weight"])
