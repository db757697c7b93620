"""onnxruntime's CPU provider: MatMulNBits, and the dynamic INT8 product of its quantizer.

`accuracy_level` 4 quantizes activations to INT8 in the weight's groups, 0 leaves them in fp32. All
sessions of the process share one pool of threads: a pool each would spin against the others'.
"""

from functools import cache, partial

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from benchmarks.peers.layer import Built, Peer, Run, bound
from minifloat import formats
from minifloat.packing import pack
from minifloat.qtensor import decode, encode
from minifloat.spec import INT8_CHANNEL, QuantSpec
from minifloat.timing import Call

MICROSOFT = "com.microsoft"


@cache
def settings() -> onnxruntime.SessionOptions:
    """Of every session; the pool of threads is set up once a process."""
    onnxruntime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    return options


def sessions(
    op: str,
    constants: dict[str, np.ndarray],
    attributes: dict[str, int],
    shape: torch.Size,
    count: int,
) -> list[Call]:
    """Models of one node, op(x, *constants), each with its own copy of what the node packs."""
    node = helper.make_node(op, ["x", *constants], ["y"], domain=MICROSOFT, **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", shape[0]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    made = (onnxruntime.InferenceSession(model, settings()) for _ in range(count))
    return [call(session, shape[0]) for session in made]


def call(session: onnxruntime.InferenceSession, features: int) -> Call:
    def bind(x: Tensor, y: Tensor) -> Run:
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
        binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())
        return partial(session.run_with_iobinding, binding)

    return bound(features, bind)


def n_bits(fmt: formats.Format, group: int, level: int, w: Tensor, count: int) -> Built:
    """Codes are unsigned there, with a zero point of half their range."""
    bits = fmt.bits
    q = encode(w, QuantSpec(fmt, (1, group), formats.FP16))
    codes = pack(q.codes ^ (1 << (bits - 1)), bits).reshape(len(w), w.shape[1] // group, -1)
    constants = {"codes": codes.numpy(), "scales": q.scale.values(q.spec).numpy()}
    attributes = {"K": w.shape[1], "N": len(w), "bits": bits, "block_size": group}
    calls = sessions(
        "MatMulNBits", constants, attributes | {"accuracy_level": level}, w.shape, count
    )
    return Built(calls, decode(q))


def int8(w: Tensor, count: int) -> Built:
    """One scale for all activations of a call, one a row of the weight."""
    q = encode(w, INT8_CHANNEL)
    codes = q.codes.view(torch.int8).T.contiguous().numpy()
    constants = {"codes": codes, "scales": q.scale.values(q.spec).flatten().numpy()}
    return Built(sessions("DynamicQuantizeMatMul", constants, {}, w.shape, count), decode(q))


PEERS = {
    "onnxruntime int4 g128 x int8 g128": Peer(4, partial(n_bits, formats.INT4, 128, 4)),
    "onnxruntime int4 g32 x int8 g32": Peer(4, partial(n_bits, formats.INT4, 32, 4)),
    "onnxruntime int4 g32 x fp32": Peer(4, partial(n_bits, formats.INT4, 32, 0)),
    "onnxruntime int8 g128 x int8 g128": Peer(8, partial(n_bits, formats.INT8, 128, 4)),
    "onnxruntime int8 x int8": Peer(8, int8),
}
