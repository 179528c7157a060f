"""What a recipe promised, held against the values that were loaded."""
