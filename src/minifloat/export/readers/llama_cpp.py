"""What llama.cpp does with our GGUF files, by its release."""

from minifloat.export.readers.rule import Reader, Rule

RULES = (
    Rule(
        "inputs-in-8-bits", "differs",
        "on CPUs inputs are rounded to 8 bits, one fp16 scale for 32 of them",
        "source: ggml-cpu.c, vec_dot_type Q8_0 and Q8_1; run: 0.5.0 (judge_llama_cpp.md)",
        lambda f: True,
    ),
)  # fmt: skip

LLAMA_CPP = Reader((0, 5, 0), ("gguf",), RULES)
