"""compressed-tensors, which vLLM, SGLang and transformers read: one scheme a group of layers.

Source: compressed-tensors 0.20 (`quantization/quant_args.py`, `quant_scheme.py`, `compressors/`).
Readers forbid unknown keys in the arguments, so that only those of version 0.17 (which vLLM 0.33
pins) are written. Facts that the tests hold against the package itself:

- 4-bit floats: even columns in the low nibble. 6-bit: four codes in three bytes, lowest bit first.
- integers: the value plus 2^(bits - 1), lowest bit first, in int32 words that codes may straddle;
  zero points likewise, but along the rows.
- NVFP4's global scale is a *divisor*: value = code * scale / global.
- A static input has one fp32 `input_scale` [1], and `input_zero_point` int8 where it is asymmetric: the
  unsigned one minus 128.
- W4A8 and W4AFP8 are `int-quantized` by default, a byte a code; `pack-quantized` halves them and is
  what vLLM's schemes for both ask for.
"""

from minifloat.export.compressed_tensors.config import config, schemes
from minifloat.export.compressed_tensors.scheme import scheme
from minifloat.export.compressed_tensors.tensors import read, suffixes, tensors
from minifloat.export.contract import Contract

COMPRESSED_TENSORS = Contract(scheme, tensors, suffixes, config, schemes, read, reciprocal=True)
