"""OpenVINO's CPU plugin: integers or E2M1 times scales, which it fuses into one compressed product.

It quantizes activations in every call, in groups that may not exceed the weight's; for E2M1 it has no
such kernel, and bf16 is its fastest.
"""

from functools import partial

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from torch import Tensor

from benchmarks.peers.layer import Built, Peer, Run, bound
from minifloat import formats
from minifloat.packing import pack
from minifloat.qtensor import QTensor, decode, encode
from minifloat.spec import QuantSpec
from minifloat.timing import Call

TYPES = {formats.INT4: ov.Type.i4, formats.INT8: ov.Type.i8, formats.E2M1: ov.Type.f4e2m1}


def graph(q: QTensor) -> ov.Model:
    """x [tokens, in] times the decoded weight, whose codes and scales are constants of the graph."""
    rows, columns = q.shape
    scales = q.scale.values(q.spec).numpy()
    groups = scales.shape[1]
    codes = ov.Tensor(TYPES[q.spec.format], ov.Shape([rows, groups, columns // groups]))
    packed = pack(q.codes, q.spec.format.bits).numpy()
    codes.data.view(np.uint8).reshape(-1)[:] = packed.reshape(-1)
    values = op.convert(op.constant(codes), np.float16)
    weight = op.multiply(values, op.constant(scales.astype(np.float16)[..., None]))
    matrix = op.convert(op.reshape(weight, np.array(q.shape), False), np.float32)
    x = op.parameter([-1, columns], np.float32)
    return ov.Model([op.matmul(x, matrix, False, True)], [x])


def compressed(layer: ov.CompiledModel, kind: ov.Type) -> bool:
    """Whether the product takes the codes themselves, instead of a weight decoded beforehand."""
    facts = [node.get_rt_info() for node in layer.get_runtime_model().get_ordered_ops()]
    constants = [f["outputPrecisions"].astype(str) for f in facts if says(f, "Const")]
    return kind.get_type_name() in constants and any(says(f, "FullyConnected") for f in facts)


def says(facts: ov.RTMap, kind: str) -> bool:
    found: str = facts["layerType"].astype(str)
    return found == kind


def call(compiled: ov.CompiledModel, features: int) -> Call:
    request = compiled.create_infer_request()

    def bind(x: Tensor, y: Tensor) -> Run:
        request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
        request.set_output_tensor(ov.Tensor(y.numpy(), shared_memory=True))
        return request.infer

    return bound(features, bind)


def build(spec: QuantSpec, group: int | None, w: Tensor, count: int) -> Built:
    """Activations are INT8 with a scale for `group` numbers, -1 for a token's, or bf16 without one."""
    q = encode(w, spec)
    model, core = graph(q), ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32" if group else "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": w.shape[1] if group == -1 else group or 0,
    }
    layers = [core.compile_model(model, "CPU", settings) for _ in range(count)]
    if not compressed(layers[0], TYPES[spec.format]):
        raise ValueError("the plugin decoded the weight beforehand")
    return Built([call(layer, len(w)) for layer in layers], decode(q))


def grouped(fmt: formats.Format, size: int) -> QuantSpec:
    return QuantSpec(fmt, (1, size), formats.FP16)


PEERS = {
    "openvino int4 g128 x int8 g128": Peer(4, partial(build, grouped(formats.INT4, 128), 128)),
    "openvino int4 g32 x int8 g32": Peer(4, partial(build, grouped(formats.INT4, 32), 32)),
    "openvino f4e2m1 g32 x bf16": Peer(4, partial(build, grouped(formats.E2M1, 32), None)),
    "openvino int8 x int8": Peer(8, partial(build, grouped(formats.INT8, -1), -1)),
}
