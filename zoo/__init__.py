"""Training scripts of the small reference models, so that every checkpoint here can be remade."""
