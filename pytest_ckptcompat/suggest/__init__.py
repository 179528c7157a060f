"""Suggest a recipe for a checkpoint that does not fit, after trying it."""
