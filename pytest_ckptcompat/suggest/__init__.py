"""What to do about a checkpoint that does not fit: a recipe, tried before it is given."""

from .repair import repair
from .search import suggest

__all__ = ["repair", "suggest"]
