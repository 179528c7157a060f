"""The example writes its checkpoint when it is first run: a few steps of training, and no download."""

import pytest
import torch
from detector import CHECKPOINT, Detector


@pytest.fixture(scope="session", autouse=True)
def trained():
    if not CHECKPOINT.exists():
        torch.manual_seed(0)
        model = torch.nn.Sequential()
        model.add_module("module", Detector())  # the names that DistributedDataParallel gives
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.rand(8, 3, 16, 16)).square().sum().backward()
            optimizer.step()
        torch.save({"state_dict": model.state_dict(), "epoch": 5}, CHECKPOINT)
