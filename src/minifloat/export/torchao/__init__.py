"""torchao, which diffusers and transformers read: weights as classes of tensors, taken to pieces.

Source: torchao 0.18 (`prototype/safetensors`, `prototype/mx_formats`, `quantization/quantize_`).
A weight is `_weight_qdata`, `_weight_scale` and what else its class has, and the header of every file
says for every tensor of the model which class its pieces become and by which attributes.

- `Int8Tensor` and `Float8Tensor`: a byte a code, one fp32 scale a tensor, row, group or block; by rows
  also with inputs by token.
- `IntxUnpackedToInt8Tensor`: integers of 2 to 8 bits, a byte each, with signed zero points.
- `NVFP4Tensor`: even columns in the low nibble, `per_tensor_scale` multiplies. Scales lie in rows; the
  swizzled order of its kernels is not written.
- `MXTensor`: E2M1 or E4M3 whose inputs are quantized alike, by OCP's rule ("FLOOR"). It is marked as
  emulated, since its kernels for Blackwell fail everywhere else.

Left out: `Int4Tensor` and its relatives, which no CPU decodes; NVFP4's inputs, which only SM100 runs;
and calibrated inputs, whose scale must have as many axes as the input at hand.
"""

from minifloat.export.contract import Contract
from minifloat.export.torchao.config import config, header, schemes
from minifloat.export.torchao.scheme import scheme
from minifloat.export.torchao.tensors import read, suffixes, tensors

TORCHAO = Contract(
    scheme, tensors, suffixes, config, schemes, read, fused=False, hub=False, header=header
)
