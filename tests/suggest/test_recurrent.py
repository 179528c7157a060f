from __future__ import annotations

import pytest
from suggesting import answer
from torch import nn

CELLS = [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell]


class Recurrent(nn.Module):
    def __init__(self, cell, hidden=6, inputs=5, words=10):
        super().__init__()
        self.embed, self.rnn, self.head = (
            nn.Embedding(words, inputs),
            cell(inputs, hidden),
            nn.Linear(hidden, 3),
        )


@pytest.mark.parametrize(
    ("old", "new"), [(nn.LSTM, nn.GRU), (nn.GRU, nn.LSTM), (nn.RNN, nn.GRU), (nn.LSTMCell, nn.GRUCell)]
)
def test_gates_are_not_made_of_other_gates(old, new):
    found = answer(Recurrent(old).state_dict(), Recurrent(new))
    assert found.recipe is None
    assert found.partial is None
    assert all(key.startswith("rnn.") for key in found.unexplained)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [3, 9, 12])
def test_gates_are_not_rows_to_tile(cell, hidden):
    found = answer(Recurrent(cell).state_dict(), Recurrent(cell, hidden))
    assert found.recipe is None
    assert found.partial is None


def test_a_vocabulary_beside_gates_is_still_explained():
    found = answer(Recurrent(nn.LSTM).state_dict(), Recurrent(nn.GRU, words=12))
    assert repr(found.partial) == 'Recipe(append("embed.weight", dim=0, init="mean"))'
    assert {key.partition(".")[0] for key in found.unexplained} == {"rnn"}
