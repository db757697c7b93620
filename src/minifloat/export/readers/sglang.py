"""What SGLang does with our folders."""

from minifloat.export.readers.rule import Reader, Rule, w4afp8

RULES = (
    Rule(
        "fused-scheme", "refuses",
        "q/k/v and gate/up become one matrix and must share a scheme",
        "source: SGLang 0.5.23 layers/quantization/compressed_tensors",
        lambda f: f.fused and not f.same_scheme,
    ),
    Rule(
        "mx-linear", "refuses",
        "MXFP4 and MXFP8 of linear layers are read for mixtures of experts only",
        "source: SGLang 0.5.23 compressed_tensors.py",
        lambda f: f.layout in ("mxfp4-pack-quantized", "mxfp8-quantized", "mxfp6-pack-quantized"),
    ),
    Rule(
        "w4afp8-dense", "refuses",
        "W4AFP8 of dense layers has a method of its own and is not read from here",
        "source: SGLang 0.5.23 (w4afp8.py)",
        w4afp8,
    ),
)  # fmt: skip

SGLANG = Reader(
    (0, 5, 23),
    ("compressed-tensors", "modelopt", "quark", "fp8", "humming", "gguf"),
    RULES,
    ("humming", "quark"),
)
