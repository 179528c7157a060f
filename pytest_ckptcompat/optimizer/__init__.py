"""The optimizer stage: state by parameter name, grown and checked before torch sees it, then one step."""

from .stage import check_optimizer

__all__ = ["check_optimizer"]
