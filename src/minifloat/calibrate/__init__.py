"""Statistics of activations, and the walk over blocks that feeds passes."""
