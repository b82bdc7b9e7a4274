"""Frozen foundation towers and the small modules that are trained on them."""
