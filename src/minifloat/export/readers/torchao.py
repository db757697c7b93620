"""What the package torchao does in diffusers and in transformers alike."""

from minifloat.export.readers.rule import Fact, Rule


def _is_torchao(fact: Fact) -> bool:
    return fact.contract == "torchao"


def _keeps_dtype(fact: Fact) -> bool:
    """Whether the product takes the dtype in the header, whatever the model is loaded in."""
    if not _is_torchao(fact):
        return False
    kind, given = fact.scheme["_type"], fact.spec.input
    return kind == "MXTensor" or (kind == "Float8Tensor" and given is None)


TORCHAO_RULES = (
    Rule(
        "torchao-package", "needs",
        "the package torchao, 0.16 or later",
        "source: diffusers 0.42.1 quantizers/torchao; run: torchao 0.18 (judge_torchao.md)",
        _is_torchao,
    ),
    Rule(
        "torchao-dtype", "needs",
        "loading in the model's own dtype, which diffusers must be told (torch_dtype): others fail",
        "run: torchao 0.18 raises a dtype error (judge_torchao.md)",
        _keeps_dtype,
    ),
    Rule(
        "torchao-integer-inputs", "differs",
        "integer inputs are scaled by amax / 127.5 and not amax / 127",
        "run: torchao 0.18 (judge_torchao.md)",
        lambda f: _is_torchao(f) and f.spec.input is not None and f.spec.input.format.is_integer,
    ),
)  # fmt: skip
