"""Packed weights on the GPU, in Triton; only `recipe.py` and `tile.py` import without it."""
