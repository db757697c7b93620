"""What diffusers does with our folders."""

from minifloat.export.readers.rule import Reader, Rule
from minifloat.export.readers.torchao import TORCHAO_RULES

RULES = (
    *TORCHAO_RULES,
    Rule(
        "torchao-scales-take-dtype", "differs",
        "scales of integers below 8 bits are rounded to torch_dtype, by default bfloat16",
        "source: torchao 0.18 IntxUnpackedToInt8Tensor.to, diffusers 0.42.1 model_loading_utils.py",
        lambda f: f.contract == "torchao" and "Intx" in f.scheme["_type"]
        and f.scale_dtype != "bfloat16",
    ),
    Rule(
        "modelopt-by-its-own-state", "refuses",
        "it restores what ModelOpt itself saved (quant_type, modelopt_state); export to sdnq",
        "source: diffusers 0.42.1 quantizers/modelopt; run: its config refuses ours",
        lambda f: f.contract == "modelopt",
    ),
    Rule(
        "sdnq-package", "needs",
        "the package sdnq",
        "source: diffusers 0.42.1 quantizers/sdnq; run: sdnq 0.2.8 (judge_sdnq.md)",
        lambda f: f.contract == "sdnq",
    ),
    Rule(
        "gguf-of-transformers", "refuses",
        "it reads GGUF files of diffusion models, and this one is a Llama's",
        "source: diffusers 0.42.1 loaders/single_file_model.py",
        lambda f: f.contract == "gguf",
    ),
)  # fmt: skip

DIFFUSERS = Reader((0, 42), ("modelopt", "gguf", "sdnq", "torchao"), RULES)
