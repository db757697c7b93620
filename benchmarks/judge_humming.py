"""Humming's own unpacking and decoding code, compiled for the CPU, judges our humming exports.

    pip download --no-deps humming-kernels==0.1.19 && unzip it into DIR
    python -m benchmarks.judge_humming DIR/humming/include

The kernels `unpack_weight_kernel` and `dequant_unpacked_fp_type` use nothing of CUDA but indices and
qualifiers; a few macros let a C++ compiler run them thread by thread. No file of Humming is kept here.
Every signed ExMy of 3 to 8 bits and INT2 to INT8 is written and decoded, all codes included.
"""

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from minifloat import formats
from minifloat.export.contract import Layer
from minifloat.export.humming import HUMMING
from minifloat.formats import Format
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

SHIM = """
#include <cstdint>
#include <algorithm>
#define __global__
#define CUDA_INLINE inline
#define PRAGMA_UNROLL
#define PRAGMA_UNROLL_COUNT(n)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
struct Index { uint32_t x; };
static Index blockIdx, threadIdx, blockDim;
#include <humming/kernel/pack_weight.cuh>
#include <humming/kernel/dequant_weight.cuh>
template <uint32_t bits> void run(const uint32_t *in, uint32_t *out, int64_t count) {
  for (blockIdx.x = 0; blockIdx.x * 1024LL < count; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++) unpack_weight_kernel<bits>(in, out, count);
}
extern "C" void unpack(int bits, const uint32_t *in, uint32_t *out, int64_t count) {
  switch (bits) {
    case 2: run<2>(in, out, count); break;
    case 3: run<3>(in, out, count); break;
    case 4: run<4>(in, out, count); break;
    case 5: run<5>(in, out, count); break;
    case 6: run<6>(in, out, count); break;
    case 7: run<7>(in, out, count); break;
    case 8: run<8>(in, out, count); break;
  }
}
extern "C" void values(uint32_t *in, uint32_t *out, uint32_t count, uint32_t e, uint32_t m) {
  blockDim.x = 32;
  for (blockIdx.x = 0; blockIdx.x * 1024LL < count; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++)
      dequant_unpacked_fp_type(in, out, count, e, m, true);
}
"""


def compile_judge(include: Path, folder: Path) -> ctypes.CDLL:
    """Humming's two kernels as a library for the CPU."""
    for name in ("all", "base"):
        stub = folder / "stub" / "humming" / "utils" / f"{name}.cuh"
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text("")
    source, library = folder / "judge.cpp", folder / "judge.so"
    source.write_text(SHIM)
    paths = [f"-I{folder / 'stub'}", f"-I{include}"]
    flags = ["-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    subprocess.run(["g++", *flags, *paths, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def judged(judge: ctypes.CDLL, words: Tensor, fmt: Format) -> Tensor:
    """Humming's values [N, K] of packed words, before scales."""
    columns = words.shape[1] * 32 // fmt.bits
    codes = torch.zeros(words.shape[0], columns, dtype=torch.int32)
    count = ctypes.c_int64(codes.numel())
    judge.unpack(fmt.bits, _pointer(words.contiguous()), _pointer(codes), count)
    if fmt.is_integer:
        return (codes - 2 ** (fmt.bits - 1)).float()
    values = torch.zeros_like(codes)
    judge.values(
        _pointer(codes), _pointer(values), codes.numel(), fmt.exponent_bits, fmt.mantissa_bits
    )
    return values.view(torch.float32)


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("include", type=Path)
    arguments = parser.parse_args()
    floats = [formats.floating(e, m) for e in range(1, 8) for m in range(8 - e) if e + m > 1]
    known = [*floats, *(formats.integer(bits) for bits in range(2, 9))]
    with tempfile.TemporaryDirectory() as name:
        judge = compile_judge(arguments.include, Path(name))
        for fmt in known:
            spec = QuantSpec(fmt, (1, 32))
            codes = torch.arange(64 * 256).reshape(64, 256).remainder(2**fmt.bits).to(torch.uint8)
            scale = torch.rand(64, 8) + 0.5
            layer = Layer(LayerSpec(spec), QTensor(codes, Scale(scale), spec, (64, 256)))
            found = HUMMING.tensors(layer, HUMMING.scheme(layer.spec, (64, 256)))
            theirs = judged(judge, found["weight"], fmt)
            theirs = theirs * found["weight_scale"].repeat_interleave(32, 1)
            ours = decode(layer.q)
            finite = ours.isfinite()
            same = torch.equal(ours[finite].view(torch.int32), theirs[finite].view(torch.int32))
            special = int((~torch.tensor(fmt.values).isfinite()).sum())
            print(f"{fmt}: {'identical' if same else 'DIFFERENT'}, {special} NaN or Inf codes")


if __name__ == "__main__":
    main()
