"""A real llama.cpp runs our GGUF files: does it find the perplexity that we find?

    python -m benchmarks.judge_llama_cpp prepare MODEL DIR
    node benchmarks/judge_llama_cpp.mjs DIR
    python -m benchmarks.judge_llama_cpp ours MODEL DIR
    python -m benchmarks.judge_llama_cpp score DIR

`prepare` rounds MODEL to nearest in Q8_0, Q4_0 and MXFP4 and writes GGUF files and windows of our
held-out text. llama.cpp (in node-llama-cpp, which brings it built; one thread, fp32 cache) and our
packed model, imported from the very files, write the log-probability of every token; `score` compares.
llama.cpp rounds the inputs of quantized layers to 8 bits, an fp16 scale for each 32, so that ours are
run in two ways: with full inputs, and with such ones.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

WINDOW, WINDOWS = 512, 2


def specs() -> dict[str, Any]:
    """The layers' specs by the type of their blocks, with llama.cpp's inputs."""
    from minifloat import formats
    from minifloat.spec import MXFP4, LayerSpec, QuantSpec

    q8 = QuantSpec(formats.INT8, (1, 32), formats.FP16)
    weights = {"Q8_0": q8, "Q4_0": replace(q8, format=formats.INT4), "MXFP4": MXFP4}
    return {name: LayerSpec(weight, q8) for name, weight in weights.items()}


def prepare(model_name: str, folder: Path) -> None:
    """Quantize to nearest, write GGUF files and import them again; write the windows' tokens."""
    import torch

    from minifloat.export.gguf.write import FILE, export_gguf
    from minifloat.export.native import save
    from minifloat.export.read import read_folder
    from minifloat.method import Method, quantize
    from minifloat.models.load import load_model, read_tokens
    from minifloat.passes.assign import assign_scales, round_to_nearest
    from minifloat.plan import Plan

    for name, spec in specs().items():
        model, tokenizer = load_model(model_name, dtype="float32")
        tokens = read_tokens(tokenizer, None, default="heldout")[: WINDOW * WINDOWS]
        windows = tokens.view(WINDOWS, WINDOW).tolist()
        (folder / "windows.json").write_text(json.dumps(windows))
        (folder / "text.txt").write_text(tokenizer.decode(tokens))
        plan = Plan((("*", spec),))
        method = Method("nearest", "", plan, (assign_scales(), round_to_nearest()))
        quantize(model, method, [torch.tensor([windows[0][:32]])])
        native = folder / "native" / name
        native.mkdir(parents=True)
        save(model, plan, native)
        tokenizer.save_pretrained(str(native))
        export_gguf(native, folder / "gguf" / name, weights_only=True)
        read_folder(folder / "gguf" / name / FILE, folder / "imported" / name)
        print(name, "written", flush=True)


def ours(model_name: str, folder: Path) -> None:
    """Log-probabilities of MODEL, of the imported files and of the same with 8-bit inputs."""
    windows = json.loads((folder / "windows.json").read_text())
    results = {"whole": _log_probabilities(model_name, windows)}
    for name in specs():
        for kind in ("native", "imported"):
            results[f"{kind} {name}"] = _log_probabilities(str(folder / kind / name), windows)
            (folder / "ours.json").write_text(json.dumps(results))
            print(kind, name, flush=True)


def score(folder: Path) -> None:
    """Perplexities of both sides and the differences of single log-probabilities, as a table."""
    import numpy as np

    results = json.loads((folder / "llama_cpp.json").read_text())
    found = {k: np.array(v) for k, v in json.loads((folder / "ours.json").read_text()).items()}
    windows = json.loads((folder / "windows.json").read_text())
    same = results["tokens"] == [token for window in windows for token in window]
    whole = found["whole"]
    print(f"llama.cpp {results['llama.cpp']} tokenizes {'as we do' if same else 'in another way'}")
    print(f"full precision: perplexity {np.exp(-whole.mean()):.4f}, {len(whole)} tokens")
    print(
        "| blocks | llama.cpp | ours, 8-bit inputs | ours | llama.cpp to ours, 8-bit inputs", end=""
    )
    print(" | to ours | to full precision |\n|---|---|---|---|---|---|---|")
    for name in specs():
        theirs = np.array(results[name])
        sides = [found[f"{kind} {name}"] for kind in ("native", "imported")]
        values = [f"{np.exp(-side.mean()):.4f}" for side in (theirs, *sides)]
        apart = [f"{np.abs(theirs - side).mean():.4f}" for side in (*sides, whole)]
        print(f"| {' | '.join((name, *values, *apart))} |")


def _log_probabilities(source: str, windows: list[list[int]]) -> list[float]:
    """A model's log-probability of every token but the windows' first."""
    import torch

    from minifloat.layers import weights_held
    from minifloat.models.load import load_model

    model, _ = load_model(source, dtype="float32")
    found: list[float] = []
    with torch.inference_mode(), weights_held(model):
        for window in windows:
            tokens = torch.tensor([window])
            logits = model(tokens).logits[0, :-1].double()
            found += logits.log_softmax(1).gather(1, tokens[0, 1:, None])[:, 0].tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "ours", "score"):
        command = commands.add_parser(name)
        if name != "score":
            command.add_argument("model")
        command.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "score":
        score(arguments.folder)
    else:
        {"prepare": prepare, "ours": ours}[arguments.command](arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
