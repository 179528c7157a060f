"""Production: any file ever released loads into today's network. ``python predict.py ../onet/net.pth``"""

import sys
from pathlib import Path

import torch
from boxes import Net

from pytest_ckptcompat import load

if __name__ == "__main__":
    net = load(Net, sys.argv[1], recipe=Path(__file__).parent / "releases.toml").eval()
    with torch.no_grad():
        face, boxes = net(torch.zeros(1, 3, 48, 48))
    print(f"{Path(sys.argv[1]).name}: {boxes.shape[1]} outputs")
