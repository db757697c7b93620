"""GGUF files, by the `gguf` package."""
