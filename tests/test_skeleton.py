from __future__ import annotations

import pytest
import torch
from rehearsal_zoo import ZOO, Bert, Gpt, Tagger
from torch import nn

from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.loading import listen
from pytest_ckptcompat.models import blueprint
from pytest_ckptcompat.skeleton import skeleton


def loaded(kind, state_dict):
    schema = blueprint(kind).schema()
    loading = listen(schema, {key: value.to("meta") for key, value in state_dict.items()})
    model = skeleton(schema, loading.written)
    if model is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))  # what is not loaded shows
        model.load_state_dict(state_dict)
    return model


def outputs(model, inputs):
    args, kwargs = Inputs.parse(inputs).batch()
    torch.manual_seed(0)
    with torch.no_grad():
        result = model.eval()(*args, **kwargs)
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]


CONSTANTS = {
    "FaceNet",
    "ResNet",
    "MobileNet",
    "Router",
    "Spectral",
}  # they keep buffers that are in no state dict


@pytest.mark.parametrize("name", ZOO)
def test_it_serves_like_a_model_that_was_built_or_is_refused(name):
    exhibit = ZOO[name]
    real = exhibit.kind()
    model = loaded(exhibit.kind, real.state_dict())
    assert (model is None) == (name in CONSTANTS)
    if model is not None:
        for expected, actual in zip(
            outputs(real, exhibit.inputs), outputs(model, exhibit.inputs), strict=True
        ):
            assert torch.equal(expected, actual)
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in real.named_parameters()]


def test_ties_flags_and_marks_are_kept():
    schema = blueprint(Gpt).schema()
    schema.embed.weight.requires_grad_(False)
    schema.embed.weight.mark = "kept"
    model = skeleton(schema, set(schema.state_dict()) - {"head.weight"})
    assert model.head.weight is model.embed.weight
    assert not model.embed.weight.requires_grad
    assert model.embed.weight.mark == "kept"
    assert model.blocks[0].out.weight.requires_grad
    assert schema.embed.weight.is_meta


def test_recurrent_networks_use_the_new_weights():
    model = skeleton(blueprint(Tagger).schema(), set(Tagger().state_dict()))
    assert all(
        flat is getattr(model.lstm, name)
        for flat, name in zip(model.lstm._flat_weights, model.lstm._flat_weights_names, strict=True)
    )


class Plain(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        keep(self)


@pytest.mark.parametrize(
    "keep",
    [
        lambda self: setattr(self, "table", torch.arange(3)),
        lambda self: setattr(self, "tables", {"a": [torch.arange(3)]}),
        lambda self: setattr(self, "hidden", [nn.Linear(2, 2)]),
        lambda self: setattr(self, "own", [nn.Parameter(torch.ones(2))]),
        lambda self: self.register_buffer("b", torch.ones(2), persistent=False),
    ],
)
def test_values_that_only_the_constructor_knows_are_refused(keep):
    with torch.device("meta"):
        schema = Plain(keep)
    assert skeleton(schema, set(schema.state_dict())) is None


def test_values_that_were_computed_for_real_are_kept():
    with torch.device("meta"):
        schema = Plain(lambda self: setattr(self, "table", torch.arange(3, device="cpu")))
    model = skeleton(schema, set(schema.state_dict()))
    assert model.table.tolist() == [0, 1, 2]


def test_what_the_load_does_not_write_is_refused():
    schema = blueprint(Bert).schema()
    names = set(schema.state_dict())
    assert skeleton(schema, names) is not None
    assert skeleton(schema, names - {"embed.weight"}) is None
    assert skeleton(schema, set()) is None
    assert skeleton(nn.LazyLinear(3), {"weight", "bias"}) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_lies_on_the_card_at_once():
    model = skeleton(blueprint(Bert).schema(), set(Bert().state_dict()), "cuda")
    assert {tensor.device.type for tensor in model.parameters()} == {"cuda"}
