"""What a recipe promised, compared with the values that were loaded."""
