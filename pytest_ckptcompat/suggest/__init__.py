"""What to do about a checkpoint that does not fit: a recipe, tried before it is given."""
