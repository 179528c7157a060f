"""The ``ckptcompat`` command: the same checks without pytest, and views of checkpoints without torch."""

from .command import main

__all__ = ["main"]
