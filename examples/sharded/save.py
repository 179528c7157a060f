"""Writes checkpoint/, a distributed checkpoint of four ranks:

torchrun --nproc-per-node 4 save.py
"""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from net import Net, sharded
from torch.distributed.checkpoint.state_dict import get_model_state_dict

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = sharded(Net())
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=Path(__file__).parent / "checkpoint")
    torch.distributed.destroy_process_group()
