"""The optimizer stage: name the state by parameter, grow and check it, then take one step with torch."""

from .stage import check_optimizer

__all__ = ["check_optimizer"]
