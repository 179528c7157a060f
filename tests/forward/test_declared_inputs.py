from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pytest_ckptcompat.forward.declared_inputs import known_inputs


def model(**attributes):
    made = nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def shapes(inputs):
    args, kwargs = inputs.batch()
    return [tuple(each.shape) for each in args], {name: tuple(each.shape) for name, each in kwargs.items()}


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (torch.zeros(3, 2), ([(3, 2)], {})),
        ((torch.zeros(3), torch.zeros(4)), ([(3,), (4,)], {})),
        ([torch.zeros(3), torch.zeros(4)], ([(3,), (4,)], {})),
        ({"x": torch.zeros(3)}, ([], {"x": (3,)})),
    ],
)
def test_what_lightning_keeps(example, expected):
    assert shapes(known_inputs(model(example_input_array=example))) == expected


def test_an_example_of_another_type_is_the_only_argument():
    batch = SimpleNamespace(nodes=torch.zeros(3))
    assert known_inputs(model(example_input_array=batch)).batch() == ((batch,), {})


@pytest.mark.parametrize("name", ["pretrained_cfg", "default_cfg"])
@pytest.mark.parametrize("kind", [dict, lambda cfg: SimpleNamespace(**cfg)])
def test_what_timm_keeps(name, kind):
    found = model(**{name: kind({"input_size": (3, 32, 24)})})
    assert shapes(known_inputs(found)) == ([(1, 3, 32, 24)], {})
    found.patch_embed = nn.Identity()
    found.patch_embed.img_size = (64, 64)
    assert shapes(known_inputs(found)) == ([(1, 3, 64, 64)], {})


def config(**values):
    return SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"main_input_name": "input_ids", "dummy_inputs": {"input_ids": torch.ones(3, 5)}}, {"input_ids": (3, 5)}),
        ({"main_input_name": "pixel_values", "config": config(image_size=32, num_channels=1)}, {"pixel_values": (1, 1, 32, 32)}),
        ({"main_input_name": "pixel_values", "config": config(image_size=[8, 9])}, {"pixel_values": (1, 3, 8, 9)}),
        ({"main_input_name": "input_values"}, {"input_values": (1, 16000)}),
        (
            {"main_input_name": "input_features", "config": config(num_mel_bins=80, max_source_positions=50, is_encoder_decoder=True)},
            {"input_features": (1, 80, 100), "decoder_input_ids": (1, 8)},
        ),
        ({"main_input_name": "input_ids", "config": config(vocab_size=11), "dummy_inputs": None}, {"input_ids": (1, 8)}),
    ],
)  # fmt: skip
def test_what_transformers_keep(attributes, expected):
    found = known_inputs(
        model(**{"config": config(), "dummy_inputs": {"input_ids": torch.ones(1)}} | attributes)
    )
    assert shapes(found) == ([], expected)


def test_words_beside_pictures():
    class Both(nn.Module):
        main_input_name = "input_ids"
        config = SimpleNamespace(vision_config=SimpleNamespace(image_size=8, num_channels=3))
        dummy_inputs = {"input_ids": torch.ones(1, 4)}  # noqa: RUF012

        def forward(self, input_ids, pixel_values):
            return input_ids

    assert shapes(known_inputs(Both())) == ([], {"input_ids": (1, 4), "pixel_values": (1, 3, 8, 8)})


def test_integers_that_a_model_on_meta_lacks_are_those_of_the_real_one():
    def build():
        return model(example_input_array=torch.tensor([[4, 5]]))

    with torch.device("meta"):
        schema = build()
    assert known_inputs(schema, build).batch()[0][0].tolist() == [[4, 5]]


class Raising(nn.Linear):
    @property
    def example_input_array(self):
        raise RuntimeError("not yet")


@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(2, 2), lambda: Raising(2, 2), lambda: model(config={"a": 1})]
)
def test_a_model_that_knows_nothing(build):
    assert known_inputs(build()) is None
