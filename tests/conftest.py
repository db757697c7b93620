"""Settings that must be made before anything is imported."""

import os

import torch

# Triton looks when it is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
