"""Writers of checkpoints, one contract a file."""
