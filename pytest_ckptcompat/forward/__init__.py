"""The forward pass: on the CPU, on a CUDA device, or rehearsed on a simulated CUDA device."""
