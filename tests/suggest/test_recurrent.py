from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, answer, lived, loaded
from torch import nn

LAYERS = {
    "lstm": lambda inputs, units: nn.LSTM(inputs, units, batch_first=True),
    "gru": lambda inputs, units: nn.GRU(inputs, units, batch_first=True),
    "rnn": lambda inputs, units: nn.RNN(inputs, units, batch_first=True),
    "deep": lambda inputs, units: nn.LSTM(inputs, units, 3, batch_first=True),
    "both ways": lambda inputs, units: nn.GRU(inputs, units, 2, batch_first=True, bidirectional=True),
    "without bias": lambda inputs, units: nn.LSTM(inputs, units, bias=False, batch_first=True),
}


class Recurrent(nn.Module):
    def __init__(self, layer, units=6, inputs=5, words=10):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(words, inputs), layer(inputs, units)
        ways = 2 if getattr(self.rnn, "bidirectional", False) else 1
        self.head = nn.Linear(ways * units, 3)

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("units", [7, 9, 12])
def test_more_units_keep_the_function(name, units):
    old, new = lived(Recurrent(LAYERS[name])), Recurrent(LAYERS[name], units)
    found = answer(old.state_dict(), new)
    assert found.recipe is not None, found
    ids = torch.randint(0, 10, (3, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(new, old.state_dict(), found.recipe)(ids), old(ids))


@pytest.mark.parametrize(
    ("old", "new", "units"),
    [
        *(("lstm", "gru", 6), ("gru", "lstm", 6), ("rnn", "gru", 6), ("rnn", "lstm", 6)),
        *((name, name, 3) for name in LAYERS),
    ],
)
def test_gates_are_not_made_of_other_gates_or_of_more_units(old, new, units):
    found = answer(Recurrent(LAYERS[old]).state_dict(), Recurrent(LAYERS[new], units))
    assert (found.recipe, found.partial) == (None, None)
    assert units < 6 or all(key.startswith("rnn.") for key in found.unexplained)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_layers(cell):
    old, new = lived(Recurrent(cell)), Recurrent(cell, 9)
    found = answer(old.state_dict(), new)
    assert found.recipe is not None
    new = loaded(new, old.state_dict(), found.recipe)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    states = [model.rnn(x, model.rnn(x)) for model in (old, new)]
    before, after = (state[0] if isinstance(state, tuple) else state for state in states)
    torch.testing.assert_close(after[:, :6], before)


def test_a_layer_that_projects_its_units_is_left_alone():
    def layer(inputs, units):
        return nn.LSTM(inputs, units, proj_size=units - 2, batch_first=True)

    found = answer(Recurrent(layer).state_dict(), Recurrent(layer, 9))
    assert found.recipe is None
    assert not found.partial


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param({"weight_hh": (4,)}, {"weight_hh": (6,)}, id="a vector of IndRNN"),
        pytest.param(
            {"weight_hh": (4, 4), "weight_ih": (4,)}, {"weight_hh": (6, 6), "weight_ih": (6,)}, id="one input"
        ),
        pytest.param(
            {"weight_hh": (4, 4), "bias_hh": ()}, {"weight_hh": (6, 6), "bias_hh": (6,)}, id="one bias"
        ),
        pytest.param({"weight_hh": (0, 0)}, {"weight_hh": (6, 0)}, id="no units"),
    ],
)
def test_other_layers_with_names_of_recurrent_ones_are_left_alone(old, new):
    found = answer(Tensors(old).state_dict(), Tensors(new))
    assert (found.recipe, found.partial) == (None, None)


def test_a_vocabulary_beside_gates_is_still_explained():
    found = answer(Recurrent(LAYERS["lstm"]).state_dict(), Recurrent(LAYERS["gru"], words=12))
    assert repr(found.partial) == 'Recipe(append("embed.weight", dim=0, init="mean"))'
    assert {key.partition(".")[0] for key in found.unexplained} == {"rnn"}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell])
def test_further_inputs_count_nothing_at_first(kind):
    old, new = lived(kind(5, 6)), kind(7, 6)
    found = answer(old.state_dict(), new)
    xs = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(new, old.state_dict(), found.recipe)(xs)[0], old(xs[:, :5])[0])


def test_inputs_that_an_embedding_gives_are_not_added_alone():
    layer = LAYERS["lstm"]
    assert answer(Recurrent(layer).state_dict(), Recurrent(layer, inputs=8)).recipe is None
