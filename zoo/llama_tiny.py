"""llama-tiny: a 4 M parameter Llama trained from scratch on State of the Union addresses.

Why this file exists: quantization claims need a trained language model, since random weights have
no perplexity to lose, and unit tests need one that loads and runs in a second. Model, data order,
training loop and measurement are one straight file; the card beside the checkpoint has the results.

The embeddings are untied on purpose: the larger test model, SmolLM2, has tied ones, and a quantizer
must handle both. A run is a pure function of the recipe: the batch of a step depends on seed and
step alone, so a stopped run that resumes takes the same steps that an unstopped one would take.

    python -m zoo.train llama-tiny --out DIR            train (resumable)
    python -m zoo.llama_tiny DIR                        measure a finished checkpoint
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo import corpora

if TYPE_CHECKING:  # transformers takes ten seconds to import, so only the functions that need it do
    from transformers import LlamaForCausalLM

END = "<|endoftext|>"
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run; two runs of one recipe on one machine agree bit for bit."""

    vocab: int = 2048
    hidden: int = 256
    intermediate: int = 704
    blocks: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 256

    steps: int = 3200
    batch: int = 8
    peak_rate: float = 2e-3
    final_rate: float = 0.0
    warmup: int = 150
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    log_every: int = 50
    validate_every: int = 400
    checkpoint_seconds: float = 120.0


# --- text ---------------------------------------------------------------------------------------


def train_tokenizer(text: str, vocab: int) -> Tokenizer:
    """Return a byte-level BPE: no text is out of its vocabulary, whatever the tests feed it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpora.split(text), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Return one stream of token ids in which END opens every speech."""
    end = tokenizer.token_to_id(END)
    speeches = tokenizer.encode_batch(corpora.split(text))
    return torch.tensor([token for speech in speeches for token in (end, *speech.ids)])


def draw_batch(tokens: Tensor, step: int, recipe: Recipe) -> Tensor:
    """Return the windows of one step, [batch, context + 1], as a function of seed and step.

    An epoch visits every window once in random order; a new random shift per epoch moves the
    window borders, so that no token always stands at the start of a window.
    """
    per_epoch = (len(tokens) - 1 - recipe.context) // recipe.context // recipe.batch
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
    shift = torch.randint(recipe.context, (), generator=generator)
    order = torch.randperm(per_epoch * recipe.batch, generator=generator)
    starts = order[index * recipe.batch :][: recipe.batch] * recipe.context + shift
    return tokens[starts[:, None] + torch.arange(recipe.context + 1)]


# --- model and optimizer ------------------------------------------------------------------------


def build_model(recipe: Recipe) -> "LlamaForCausalLM":
    """Return a freshly initialised LlamaForCausalLM of the recipe."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays the matrices only: shrinking a norm's gain helps nobody."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the rate of a step: linear warm-up, then a cosine from peak to final."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * cosine


def window_loss(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of each next token of windows [n, context + 1]."""
    logits = model(input_ids=windows[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def train_step(
    model: nn.Module, optimizer: torch.optim.AdamW, windows: Tensor, step: int, recipe: Recipe
) -> float:
    """Take one step of descent and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe)
    loss = window_loss(model, windows)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


# --- checkpoints --------------------------------------------------------------------------------


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the moments under the names of their parameters; empty before the first step."""
    return {
        f"{key}/{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        for key in optimizer.state.get(parameter, {})
    }


def save_checkpoint(
    out: Path, model: nn.Module, optimizer: torch.optim.AdamW, progress: Progress, recipe: Recipe
) -> None:
    """Replace the checkpoint in one move: a stop at any moment leaves the old or the new one.

    Progress and recipe ride in the same file as the tensors, as JSON, so they cannot disagree.
    """
    tensors = optimizer_tensors(model, optimizer)
    tensors |= {f"model/{name}": value.detach() for name, value in model.named_parameters()}
    metadata = {"progress": json.dumps(progress._asdict()), "recipe": json.dumps(asdict(recipe))}
    partial = out / (CHECKPOINT + ".partial")
    save_file(tensors, partial, metadata)
    partial.replace(out / CHECKPOINT)


def load_checkpoint(
    out: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: Recipe
) -> Progress:
    """Restore weights and moments in place and return the progress."""
    with safe_open(out / CHECKPOINT, framework="pt") as file:
        metadata = file.metadata()
        saved = json.loads(metadata["recipe"])
        changed = [k for k, v in asdict(recipe).items() if saved.get(k) != v]
        if changed:
            raise ValueError(f"{out / CHECKPOINT} was made with another {', '.join(changed)}")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"model/{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return Progress(**json.loads(metadata["progress"]))


# --- the run ------------------------------------------------------------------------------------


def fit(
    text: dict[str, str], out: Path, recipe: Recipe, resume: bool = False, stop: int | None = None
) -> list[float]:
    """Train in `out` and return the loss of every step taken; `stop` ends early, as a kill would.

    The schedule follows `recipe.steps` even when `stop` is smaller, so that resuming continues it.
    """
    tokenizer = prepare(text["train"], out, recipe, resume)
    tokens, held = encode(tokenizer, text["train"]), encode(tokenizer, text["validation"])
    model = build_model(recipe)
    optimizer = build_optimizer(model, recipe)
    progress = Progress()
    if resume:
        progress = load_checkpoint(out, model, optimizer, recipe)
        rewind_log(out, progress.step)

    losses: list[float] = []
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    end = recipe.steps if stop is None else stop
    for step in range(progress.step, end):
        losses.append(train_step(model, optimizer, draw_batch(tokens, step, recipe), step, recipe))
        done = step + 1
        progress = Progress(done, time.monotonic() - started)
        if done % recipe.log_every == 0 or done == end:
            write_log(out, progress, losses[-recipe.log_every :], model, held, recipe)
        if time.monotonic() - last_saved > recipe.checkpoint_seconds or done == end:
            save_checkpoint(out, model, optimizer, progress, recipe)
            last_saved = time.monotonic()
    if end == recipe.steps:
        export(model, out)
    return losses


def prepare(text: str, out: Path, recipe: Recipe, resume: bool) -> Tokenizer:
    """Make the folder and the tokenizer of a new run, or read what the stopped run left."""
    if resume:
        return Tokenizer.from_file(str(out / "tokenizer.json"))
    if (out / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a run already: pass --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(text, recipe.vocab)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / LOG).write_text("", encoding="utf-8")
    return tokenizer


def rewind_log(out: Path, step: int) -> None:
    """Drop the lines of steps that a stopped run took after its last checkpoint."""
    lines = (out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (out / LOG).write_text("".join(kept), encoding="utf-8")


def write_log(
    out: Path,
    progress: Progress,
    losses: list[float],
    model: nn.Module,
    held: Tensor,
    recipe: Recipe,
) -> None:
    """Append one JSON line: mean loss since the last line and, now and then, validation."""
    mean = sum(losses) / len(losses)
    line = {"step": progress.step, "seconds": round(progress.seconds, 1), "loss": round(mean, 4)}
    if progress.step % recipe.validate_every == 0:
        line["validation_perplexity"] = round(perplexity(model, held, recipe.context), 3)
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def export(model: "LlamaForCausalLM", out: Path) -> None:
    """Save what `from_pretrained` reads, in fp16: half the size, and 4 M weights fit its range."""
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    model.config.use_cache = model.generation_config.use_cache = True
    model.half().save_pretrained(out)


# --- measurement --------------------------------------------------------------------------------


def token_windows(tokens: Tensor, context: int, batch: int = 8) -> Iterator[Tensor]:
    """Yield batches of windows [n, context + 1] that predict every token but the first once."""
    windows = tokens.unfold(0, context + 1, context)
    yield from windows.split(batch)


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor, context: int) -> float:
    """Return exp of the mean loss over whole windows; a rest shorter than a window is dropped."""
    losses = [window_loss(model, w, "none") for w in token_windows(tokens, context)]
    return math.exp(torch.cat(losses).double().mean().item())


class Peaks(NamedTuple):
    """How far a matrix's largest entries stand out; a Gaussian one has about 4 to 5, and 1.1.

    Rows are a weight's output channels or an input's tokens; columns are the input channels.
    """

    whole: float  # largest entry / rms of the matrix
    in_row: float  # the worst row's largest entry / its own rms: what a per-row scale must span
    in_column: float  # the same by column
    between_rows: float  # largest row rms / median row rms: what one scale for all rows must span
    between_columns: float  # the same by column


def peaks(matrix: Tensor) -> Peaks:
    """Measure the outliers of a matrix [rows, columns]."""
    size = matrix.float().abs()
    row, column = (size.square().mean(axis).sqrt() for axis in (1, 0))
    return Peaks(
        (size.amax() / size.square().mean().sqrt()).item(),
        (size.amax(1) / row).amax().item(),
        (size.amax(0) / column).amax().item(),
        (row.amax() / row.median()).item(),
        (column.amax() / column.median()).item(),
    )


def record_inputs(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """Return each Linear's input [tokens, channels], and the residual stream before each norm."""
    seen: dict[str, Tensor] = {}
    watched = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or name.endswith("norm")
    ]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].flatten(0, 1)})
        )
        for name, module in watched
    ]
    with torch.inference_mode():
        model(input_ids=windows)
    for hook in hooks:
        hook.remove()
    return seen


def print_peaks(title: str, matrices: dict[str, Tensor]) -> None:
    """Print the worst figures over the blocks for each role, as a Markdown table."""
    roles: dict[str, list[Peaks]] = {}
    for name, matrix in matrices.items():
        roles.setdefault(name.removesuffix(".weight").split(".")[-1], []).append(peaks(matrix))
    print(f"\n| {title} | " + " | ".join(f.replace("_", " ") for f in Peaks._fields) + " |")
    print("|---" * (1 + len(Peaks._fields)) + "|")
    for role, found in roles.items():
        worst = (max(column) for column in zip(*found, strict=True))
        print(f"| {role} | " + " | ".join(f"{value:.1f}" for value in worst) + " |")


def sample(model: Any, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    """Continue a prompt by sampling from the 40 likeliest tokens, seed 0."""
    torch.manual_seed(0)
    start = torch.tensor([tokenizer.encode(prompt).ids])
    tokens = model.generate(start, do_sample=True, top_k=40, max_new_tokens=length, pad_token_id=0)
    return tokenizer.decode(tokens[0].tolist())


def measure(folder: Path, cache: Path) -> None:
    """Print what the card states: held-out perplexities, outliers and a sample."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    context = model.config.max_position_embeddings
    text = corpora.load(cache)
    for name in ("validation", "heldout", "moby_dick"):
        tokens = encode(tokenizer, text[name])
        value = perplexity(model, tokens, context)
        bits = math.log2(value) * len(tokens) / len(text[name].encode())
        print(f"{name}: perplexity {value:.3f} over {len(tokens):,} tokens, {bits:.3f} bits a byte")

    windows = encode(tokenizer, text["heldout"])[: 8 * context].view(8, context)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.ndim == 2}
    print_peaks("weight", weights)
    print_peaks("input of", record_inputs(model, windows))
    print("\n" + sample(model, tokenizer, "My fellow Americans, the state of our Union", 120))


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`, on one thread so that sums keep their order."""
    torch.set_num_threads(1)
    recipe = Recipe() if options.steps is None else Recipe(steps=options.steps)
    text = corpora.load(options.cache)
    fit(text, options.out, recipe, options.resume)


def main() -> None:
    """Measure a finished checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m zoo.llama_tiny", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of config.json and model.safetensors")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE, help="corpora folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options.folder, options.cache)


if __name__ == "__main__":
    main()
