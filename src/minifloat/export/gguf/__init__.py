"""GGUF, which llama.cpp, transformers and others read: one file for Llama-shaped models.

The container is the `gguf` package's; blocks, names and the order of rows are ours.
"""
