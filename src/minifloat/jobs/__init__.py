"""The main job: a model in, a packed checkpoint and its report out."""
