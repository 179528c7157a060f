"""Writes ``xor.npz`` as a Flax model is often exported: kernels are (in, out), names have slashes.

python examples/npz/save.py
"""

from pathlib import Path

import numpy as np

WEIGHTS = {
    "hidden/kernel": [[2, -1], [-2, 1]],  # relu(2a - 2b), relu(b - a)
    "hidden/bias": [0, 0],
    "out/kernel": [[0.5], [1]],
    "out/bias": [0],
}

if __name__ == "__main__":
    arrays = {name: np.array(values, dtype=np.float32) for name, values in WEIGHTS.items()}
    np.savez(Path(__file__).with_name("xor.npz"), **arrays)
