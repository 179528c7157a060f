"""The forward pass: on the CPU, on a card, or rehearsed on a card that isn't there."""
