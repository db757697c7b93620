"""The programs that read our folders, one file each: rules by version, each with its evidence."""

from minifloat.export.readers.diffusers import DIFFUSERS
from minifloat.export.readers.llama_cpp import LLAMA_CPP
from minifloat.export.readers.rule import Fact, Reader, Verdict, Version
from minifloat.export.readers.sglang import SGLANG
from minifloat.export.readers.transformers import TRANSFORMERS
from minifloat.export.readers.vllm import VLLM

READERS: dict[str, Reader] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "transformers": TRANSFORMERS,
    "diffusers": DIFFUSERS,
    "llama.cpp": LLAMA_CPP,
}

__all__ = ["READERS", "Fact", "Reader", "Verdict", "Version"]
