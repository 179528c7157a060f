"""Started by torchrun, every rank runs this file, and the model is sharded over the ranks:

    torchrun --nproc-per-node 2 -m pytest examples/sharded

Without torchrun the first test runs alone; a sharded model needs ranks.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from net import Net, sharded
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor

from pytest_ckptcompat import open_checkpoint

CHECKPOINT = Path(__file__).parent / "checkpoint"  # written by four ranks


@pytest.fixture
def ranks():
    if "RANK" not in os.environ:
        pytest.skip("not started by torchrun")
    torch.distributed.init_process_group("gloo")
    yield torch.distributed.get_world_size()
    torch.distributed.destroy_process_group()


@pytest.mark.ckpt_compat(model=Net, ckpt=CHECKPOINT, state_dict_key="model", inputs="2x8:int64<64")
def test_the_checkpoint_fits_and_runs(ckpt_report):
    assert ckpt_report.ok


def test_it_loads_into_a_sharded_model(ranks, ckpt_check):
    report = ckpt_check(
        Net, CHECKPOINT, state_dict_key="model", device="none"
    )  # shapes, before anything is loaded
    assert report.ok, report.verdict

    model = sharded(Net())
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=CHECKPOINT)  # every rank reads its own part
    set_model_state_dict(model, state["model"])
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())

    whole = Net()
    whole.load_state_dict(open_checkpoint(CHECKPOINT, state_dict_key="model").state_dict())
    tokens = torch.arange(16).view(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens), whole.eval()(tokens))
