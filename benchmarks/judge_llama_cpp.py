"""A real llama.cpp runs our GGUF files: does it find the perplexity that we find?

    python -m benchmarks.judge_llama_cpp prepare MODEL DIR
    LLAMA_PYTHON benchmarks/judge_llama_cpp.py serve DIR
    python -m benchmarks.judge_llama_cpp score MODEL DIR

`prepare` rounds MODEL to nearest in Q8_0, Q4_0 and MXFP4 and writes GGUF files and windows of our
held-out text; `serve` runs in an environment with llama-cpp-py-sync, which carries llama.cpp as it is
(one thread, fp32 cache), and writes the log-probability of every token; `score` does the same with our
packed model, imported from the very files. llama.cpp rounds the inputs of quantized layers to 8 bits,
an fp16 scale for each 32, so that ours are run in two ways: with full inputs, and with such ones.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

WINDOW, WINDOWS = 512, 8


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


def serve(folder: Path) -> None:
    """llama.cpp's log-probabilities for every file, and its tokens of the text; without minifloat."""
    from llama_cpp_py_sync import __version__
    from llama_cpp_py_sync._cffi_bindings import get_lib

    lib = get_lib()
    lib.llama_backend_init()
    windows = json.loads((folder / "windows.json").read_text())
    text = (folder / "text.txt").read_bytes()
    results: dict[str, Any] = {"llama-cpp-py-sync": __version__}
    for path in sorted((folder / "gguf").iterdir()):
        file = str(path / "model.gguf").encode()
        model = lib.llama_model_load_from_file(file, lib.llama_model_default_params())
        vocabulary = lib.llama_model_get_vocab(model)
        results["tokens"] = _tokens(lib, vocabulary, text)
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = WINDOW
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # fp32
        context = lib.llama_init_from_model(model, settings)
        size = lib.llama_vocab_n_tokens(vocabulary)
        results[path.name] = [x for tokens in windows for x in _served(lib, context, tokens, size)]
        lib.llama_free(context)
        lib.llama_model_free(model)
        (folder / "llama_cpp.json").write_text(json.dumps(results))
        print(path.name, "served", flush=True)


def _tokens(lib: Any, vocabulary: Any, text: bytes) -> list[int]:
    """The tokens of a text by llama.cpp's own tokenizer."""
    from llama_cpp_py_sync._cffi_bindings import ffi

    found = ffi.new("int32_t[]", len(text))
    count = lib.llama_tokenize(vocabulary, text, len(text), found, len(text), False, True)
    return list(found[0:count])


def _served(lib: Any, context: Any, tokens: list[int], size: int) -> list[float]:
    """The log-probability of every token but the first."""
    import numpy as np
    from llama_cpp_py_sync._cffi_bindings import ffi

    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
    if lib.llama_decode(context, batch):
        raise RuntimeError("llama_decode failed")
    raw = ffi.buffer(lib.llama_get_logits(context), len(tokens) * size * 4)
    logits = np.frombuffer(raw, np.float32).reshape(len(tokens), size)[:-1].astype(np.float64)
    lib.llama_batch_free(batch)
    top = logits.max(1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    return (np.take_along_axis(logits, np.array(tokens[1:])[:, None], 1)[:, 0] - total).tolist()


def score(model_name: str, folder: Path) -> None:
    """Perplexities of both sides and the differences of single log-probabilities, as a table."""
    import torch

    results = json.loads((folder / "llama_cpp.json").read_text())
    windows = json.loads((folder / "windows.json").read_text())
    same = results["tokens"] == [token for window in windows for token in window]
    print(f"llama.cpp tokenizes the text {'as we do' if same else 'in another way'}")
    whole = _log_probabilities(model_name, windows)
    print(f"full precision: perplexity {_perplexity(whole):.4f}, {whole.numel()} tokens")
    print(
        "| blocks | llama.cpp | ours, 8-bit inputs | ours | llama.cpp to ours, 8-bit inputs", end=""
    )
    print(" | to ours | to full precision |\n|---|---|---|---|---|---|---|")
    for name in specs():
        theirs = torch.tensor(results[name], dtype=torch.float64)
        ours = [_log_probabilities(str(folder / k / name), windows) for k in ("native", "imported")]
        values = [f"{_perplexity(found):.4f}" for found in (theirs, *ours)]
        apart = [f"{float((theirs - found).abs().mean()):.4f}" for found in (*ours, whole)]
        print(f"| {' | '.join((name, *values, *apart))} |", flush=True)


def _log_probabilities(source: str, windows: list[list[int]]) -> Any:
    """A model's log-probability of every token but the windows' first."""
    import torch

    from minifloat.layers import weights_held
    from minifloat.models.load import load_model

    model, _ = load_model(source, dtype="float32")
    found = []
    with torch.inference_mode(), weights_held(model):
        for window in windows:
            tokens = torch.tensor([window])
            logits = model(tokens).logits[0, :-1].double()
            found.append(logits.log_softmax(1).gather(1, tokens[0, 1:, None])[:, 0])
    return torch.cat(found)


def _perplexity(logs: Any) -> float:
    return float((-logs.mean()).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "serve", "score"):
        command = commands.add_parser(name)
        if name != "serve":
            command.add_argument("model")
        command.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "serve":
        serve(arguments.folder)
    else:
        {"prepare": prepare, "score": score}[arguments.command](arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
