"""What diffusers does with our folders."""

from minifloat.export.readers.rule import Reader, Rule

RULES = (
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

DIFFUSERS = Reader((0, 42), ("modelopt", "gguf", "sdnq"), RULES)
