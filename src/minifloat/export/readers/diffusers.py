"""What diffusers does with our folders."""

from minifloat.export.readers.rule import Reader, Rule

RULES = (
    Rule(
        "linear-by-name", "needs",
        "the package nvidia-modelopt, and a diffusion model",
        "source: diffusers 0.42.1 quantizers/modelopt",
        lambda f: f.contract == "modelopt",
    ),
)  # fmt: skip

DIFFUSERS = Reader((0, 42), ("modelopt",), RULES)
