"""ggml's shared library through ctypes: the functions of its public headers that a product needs."""

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32
from functools import cached_property
from pathlib import Path
from typing import Any

Pointer = ctypes.c_void_p
CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


class ContextParams(Structure):
    """ggml_init_params"""

    _fields_ = (("size", c_size_t), ("memory", Pointer), ("no_alloc", c_bool))


class PoolParams(Structure):
    """ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("priority", c_int),
        ("poll", c_uint32),
        ("strict", c_bool),
        ("paused", c_bool),
    )


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # name: (result, arguments)
    "ggml_version": (c_char_p, []),
    "ggml_backend_load_all_from_path": (None, [c_char_p]),
    "ggml_backend_dev_by_type": (Pointer, [c_int]),
    "ggml_backend_dev_init": (Pointer, [Pointer, c_char_p]),
    "ggml_backend_dev_backend_reg": (Pointer, [Pointer]),
    "ggml_backend_dev_buffer_type": (Pointer, [Pointer]),
    "ggml_backend_reg_get_proc_address": (Pointer, [Pointer, c_char_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (Pointer, [Pointer, Pointer]),
    "ggml_backend_buffer_free": (None, [Pointer]),
    "ggml_backend_cpu_buffer_from_ptr": (Pointer, [Pointer, c_size_t]),
    "ggml_backend_tensor_alloc": (c_int, [Pointer, Pointer, Pointer]),
    "ggml_backend_tensor_set": (None, [Pointer, Pointer, c_size_t, c_size_t]),
    "ggml_backend_supports_op": (c_bool, [Pointer, Pointer]),
    "ggml_backend_graph_compute": (c_int, [Pointer, Pointer]),
    "ggml_init": (Pointer, [ContextParams]),
    "ggml_threadpool_params_init": (None, [POINTER(PoolParams), c_int]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_new_tensor_2d": (Pointer, [Pointer, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (Pointer, [Pointer, Pointer, Pointer]),
    "ggml_new_graph_custom": (Pointer, [Pointer, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [Pointer, Pointer]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, Pointer, Pointer, c_int64, c_int64, c_int64, Pointer],
    ),
}


class Library:
    """libggml of a folder, with its CPU device and a backend of so many threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._library = ctypes.CDLL(str(next(folder.glob("libggml.*"))))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self.ggml_backend_load_all_from_path(str(folder).encode())
        self.device = self.ggml_backend_dev_by_type(CPU)
        self.backend = self.ggml_backend_dev_init(self.device, None)
        self._use(threads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def context(self, tensors: int, graph: int = 0) -> int:
        """A context for so many tensors and a graph of so many nodes, without memory for values."""
        size = tensors * self.ggml_tensor_overhead()
        size += self.ggml_graph_overhead_custom(graph, False) if graph else 0
        made: int = self.ggml_init(ContextParams(size, None, True))
        return made

    @cached_property
    def buffer_types(self) -> list[int]:
        """Where a weight may lie, in llama.cpp's order: the device's own layouts, then plain memory."""
        extra = self._of_device(b"ggml_backend_dev_get_extra_bufts", POINTER(Pointer), Pointer)
        found = []
        for kind in extra(self.device):
            if kind is None:
                break
            found.append(kind)
        return [*found, self.ggml_backend_dev_buffer_type(self.device)]

    def _use(self, threads: int) -> None:
        """Give the backend a pool of its own: without one it starts threads in every call."""
        params = PoolParams()
        self.ggml_threadpool_params_init(params, threads)
        params.poll = 1  # spin some milliseconds between calls; 50, the usual, is some hundred
        new = self._of_device(b"ggml_threadpool_new", Pointer, POINTER(PoolParams))
        use = self._of_device(b"ggml_backend_cpu_set_threadpool", None, Pointer, Pointer)
        count = self._of_device(b"ggml_backend_set_n_threads", None, Pointer, c_int)
        use(self.backend, new(params))
        count(self.backend, threads)

    def _of_device(self, name: bytes, result: Any, *arguments: Any) -> Any:
        """A function of the CPU library, which the process loads by itself."""
        registry = self.ggml_backend_dev_backend_reg(self.device)
        address = self.ggml_backend_reg_get_proc_address(registry, name)
        return ctypes.CFUNCTYPE(result, *arguments)(address)
