"""The ``ckptcompat`` command: the same checks without pytest, and checkpoints looked at without torch."""

from .command import main

__all__ = ["main"]
