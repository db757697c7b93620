"""SDNQ, which diffusers and transformers read with the package sdnq: any ExMy, convolutions too.

Source: sdnq 0.2.8 (`quantizer.py`, `dequantizer.py`, `packed_float.py`, `packed_int/`). Weights are
decoded in fp32 and rounded to the model's dtype at every call; inputs are not quantized in this form.

- A float's value follows IEEE's bias with subnormals, and every code is a number; 8-bit E4M3 and E5M2
  are torch's. That is our default of each. Integers are stored plus 2^(bits - 1).
- A zero point is a real number that is added: value = code * scale + zero point.
- Two levels of scales: 8-bit `scale` times one `scale_2`.
- A low-rank branch is `svd_up` and `svd_down`, added to the decoded weight.
- The package takes shapes from the model; we note them beside its own keys, so that a folder of ours
  can be read again without it.
"""

from minifloat.export.contract import Contract
from minifloat.export.sdnq.config import config, schemes
from minifloat.export.sdnq.scheme import scheme, with_form
from minifloat.export.sdnq.tensors import read, suffixes, tensors

SDNQ = Contract(
    scheme, tensors, suffixes, config, schemes, read, fused=False, with_form=with_form, hub=False
)
