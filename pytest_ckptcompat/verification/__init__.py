"""Compare what a recipe promised with the loaded values."""
