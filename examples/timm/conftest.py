"""The example writes its checkpoint when it is first run; your repository has one."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def saved():
    from small_vit import CHECKPOINT, vit

    if not CHECKPOINT.exists():
        torch.manual_seed(0)
        torch.save({"model": vit(img_size=32).state_dict()}, CHECKPOINT)
