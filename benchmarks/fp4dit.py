"""FP4DiT on a diffusion transformer: rounding, formats and activations, each against its rivals.

    python -m benchmarks.fp4dit --pipeline zoo/dit-text --rows results.jsonl [--arms NAME ...]
    python -m benchmarks.fp4dit --rows results.jsonl --table

Every row is one run (`benchmarks/diffusion.py`).
"""

from benchmarks.diffusion import OTHER_NOISE, Pipeline, arguments, go, show

A16 = {"activation_bits": "16"}
NEAREST = {"rounding": "nearest"}
GPTQ = {"rounding": "gptq"}
PLAIN = A16 | {"start": "nearest"}  # AdaRound as published
INT = {"family": "int"}
STATIC = {"online": "false"}
PUBLISHED = {"formats": "published", "search": "false"}
E2M1 = {"formats": "e2m1", "search": "false"}
SIGMA = {"formats": "published-sigma", "search": "false"}
LITERAL = PUBLISHED | {"start": "nearest", "scale_aware": "true", "lr": "1e-4", "steps": "2500"}
ARMS: dict[str, dict[str, str]] = {
    "W4 nearest": A16 | NEAREST,
    "W4 GPTQ": A16 | GPTQ,
    "W4 AdaRound, 1e-3": PLAIN | {"lr": "1e-3"},
    "W4 AdaRound, 1e-2": PLAIN | {"lr": "1e-2"},
    "W4 AdaRound, 1e-1": PLAIN | {"lr": "1e-1"},
    "W4 scale-aware, 1e-4": PLAIN | {"lr": "1e-4", "scale_aware": "true"},
    "W4 scale-aware, 1e-3": PLAIN | {"lr": "1e-3", "scale_aware": "true"},
    "W4 learned from GPTQ": A16,
    "W4 learned, windows of 2": A16 | {"window": "2"},
    "W4 learned, windows of 2 that overlap": A16 | {"window": "2", "overlap": "1"},
    "W4 learned, windows of 3": A16 | {"window": "3"},
    "W4 published formats, nearest": A16 | PUBLISHED | NEAREST,
    "W4 Sigma's formats, nearest": A16 | SIGMA | NEAREST,
    "W4 E2M1 everywhere, nearest": A16 | NEAREST | E2M1,
    "W4 E2M1 everywhere, GPTQ": A16 | GPTQ | E2M1,
    "W4 E2M1 everywhere, searched clip, GPTQ": A16 | GPTQ | {"formats": "e2m1"},
    "W4 E1M2 everywhere, GPTQ": A16 | GPTQ | {"formats": "e1m2", "search": "false"},
    "W4 searched formats, unsearched clip, GPTQ": A16 | GPTQ | {"search": "false"},
    "W4 searched formats, unsearched clip, nearest": A16 | NEAREST | {"search": "false"},
    "W4 published formats, GPTQ": A16 | PUBLISHED | GPTQ,
    "W4 Sigma's formats, GPTQ": A16 | SIGMA | GPTQ,
    "W4 INT, nearest": A16 | INT | NEAREST,
    "W4 INT, GPTQ": A16 | INT | GPTQ,
    "W4 INT, learned from GPTQ": A16 | INT,
    "W4 per row, GPTQ": A16 | GPTQ | {"group_size": "-1"},
    "W4A8 online, GPTQ": GPTQ | {"activation_bits": "8"},
    "W4A6 online, GPTQ": GPTQ,
    "W4A8 static, GPTQ": GPTQ | STATIC | {"activation_bits": "8"},
    "W4A6 static, GPTQ": GPTQ | STATIC,
    "W4A8 INT online, GPTQ": GPTQ | INT | {"activation_bits": "8"},
    "W4A6 INT online, GPTQ": GPTQ | INT,
    "W4A6 INT static, GPTQ": GPTQ | INT | STATIC,
    "W4A6 online and q, k, v, GPTQ": GPTQ | {"attention": "true"},
    "W4A8 learned": {"activation_bits": "8"},
    "W4A6 learned": {},
    "W4A6 INT learned": INT,
    "W4A6 published, 2500 steps": LITERAL,
    OTHER_NOISE: {},
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    if args.table:
        show(ARMS, args)
    else:
        go(Pipeline(args.pipeline, args.guidance, args.judged), "fp4dit", ARMS, args)


if __name__ == "__main__":
    main()
