"""ggml's product, which is what llama.cpp runs, with the weight laid out as llama.cpp would.

A weight lies in the first of the CPU's buffer types that takes the product: the repacked one where the
format has such a kernel. Input and output are torch's own memory. Activations are INT8 in groups of 32,
of 256 for Q4_K.
"""

from functools import cache, partial
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from benchmarks.peers.ggml_library import Library
from benchmarks.peers.layer import Built, Peer, Run, bound

KINDS = {  # bits of a weight, group of the activations
    Kind.Q4_0: (4, 32),
    Kind.IQ4_NL: (4, 32),
    Kind.Q4_K: (4, 256),
    Kind.MXFP4: (4, 32),
    Kind.NVFP4: (4, 32),
    Kind.Q8_0: (8, 32),
}


@cache
def library(folder: Path) -> Library:
    return Library(folder, torch.get_num_threads())


def quantize(ggml: Library, kind: Kind, w: Tensor) -> Tensor:
    """Bytes [out, bytes of a row] by ggml's own rounding."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if w.shape[1] % block:
        raise ValueError(f"rows of {w.shape[1]} are no multiple of {block}")
    codes = torch.empty(len(w), w.shape[1] // block * size, dtype=torch.uint8)
    ggml.ggml_quantize_chunk(kind, w.data_ptr(), codes.data_ptr(), 0, *w.shape, None)
    return codes


def place(ggml: Library, kind: Kind, codes: Tensor, columns: int, count: int) -> list[int]:
    """Tensors of a weight, in the first buffer type that takes its product."""
    for buffer_type in ggml.buffer_types:
        context = ggml.context(count)
        tensors = [
            ggml.ggml_new_tensor_2d(context, kind, columns, len(codes)) for _ in range(count)
        ]
        memory = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if ggml.ggml_backend_supports_op(ggml.backend, product(ggml, tensors[0], columns)):
            for tensor in tensors:
                ggml.ggml_backend_tensor_set(tensor, codes.data_ptr(), 0, codes.nbytes)
            return tensors
        ggml.ggml_backend_buffer_free(memory)
    raise ValueError("no buffer type takes the product")


def product(ggml: Library, weight: int, columns: int) -> int:
    """weight times one token, in a context of its own that holds no values."""
    context = ggml.context(2)
    x = ggml.ggml_new_tensor_2d(context, Kind.F32, columns, 1)
    made: int = ggml.ggml_mul_mat(context, weight, x)
    return made


def bind(ggml: Library, weight: int, x: Tensor, y: Tensor) -> Run:
    """The graph of one product from x's memory to y's."""
    context = ggml.context(4, graph=4)
    source = ggml.ggml_new_tensor_2d(context, Kind.F32, x.shape[1], len(x))
    result = ggml.ggml_mul_mat(context, weight, source)
    for tensor, memory in ((source, x), (result, y)):
        buffer = ggml.ggml_backend_cpu_buffer_from_ptr(memory.data_ptr(), memory.nbytes)
        ggml.ggml_backend_tensor_alloc(buffer, tensor, memory.data_ptr())
    graph = ggml.ggml_new_graph_custom(context, 4, False)
    ggml.ggml_build_forward_expand(graph, result)
    return partial(ggml.ggml_backend_graph_compute, ggml.backend, graph)


def build(folder: Path, kind: Kind, w: Tensor, count: int) -> Built:
    ggml = library(folder)
    codes = quantize(ggml, kind, w)
    tensors = place(ggml, kind, codes, w.shape[1], count)
    calls = [bound(len(w), partial(bind, ggml, tensor)) for tensor in tensors]
    return Built(calls, torch.from_numpy(gguf.dequantize(codes.numpy(), kind)))


def peers(folder: Path) -> dict[str, Peer]:
    """The rows of the library in `folder`, by the names of its formats."""
    return {
        f"ggml {kind.name} x int8 g{group}": Peer(bits, partial(build, folder, kind))
        for kind, (bits, group) in KINDS.items()
    }
