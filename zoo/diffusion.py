"""Train a text-to-image model on captioned emoji: one loop for the zoo's U-Net and its DiT.

Why this file exists: a quantizer must be shown on a U-Net and on a transformer, and the two are only
comparable if they saw the same pictures, prompts and objective. The objective is the velocity of
progressive distillation (Salimans and Ho, arXiv:2202.00512, section 4 and appendix D) under the cosine
schedule; one prompt in ten loses its words, for classifier-free guidance (Ho and Salimans,
arXiv:2207.12598). What is exported is the moving average of the weights.

A run is a pure function of its recipe: the batch of a step depends on seed and step alone, so a run
that was stopped and resumes takes the steps of one that was not. The rate is flat and falls only at
the end, so that a run can be lengthened until the fall begins.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from zoo import emoji, prompts

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
PIPELINE = "pipeline"  # the folder of the model that came out
TIMES = 1000


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0


class Maker(NamedTuple):
    """How a model is made, and the pipeline of diffusers that samples with it."""

    build: Callable[[], Any]  # a fresh model
    pipeline: Callable[[Any, DDIMScheduler], Any]


class Data(NamedTuple):
    """Pictures and their prompts, all of one length and on one device."""

    images: Tensor  # uint8 [n, 3, 32, 32]
    text: Tensor  # fp16 [n, tokens, width]
    mask: Tensor  # bool [n, tokens]


class Batch(NamedTuple):
    """What one step learns from."""

    noisy: Tensor  # [batch, 3, 32, 32]
    times: Tensor  # [batch]
    text: Tensor  # [batch, tokens, width]
    mask: Tensor  # [batch, tokens]
    velocity: Tensor  # [batch, 3, 32, 32]


@dataclass(frozen=True)
class Recipe:
    """Everything but the model that decides a run."""

    steps: int = 4000
    batch: int = 32
    peak_rate: float = 1e-3
    warmup: int = 200
    fall: float = 0.3  # part of the run over which the rate falls to zero
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.998
    wordless: float = 0.1
    seed: int = 0
    low: bool = False  # bf16 autocast
    masked: bool = (
        True  # hide the padding of prompts, as PixArt's pipeline does and the older one not
    )

    log_every: int = 50
    validate_every: int = 500
    checkpoint_seconds: float = 300.0


def scheduler() -> DDIMScheduler:
    """The noise of training and the way back; the last time has no signal, so samples begin there."""
    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,  # this and the next are what diffusers' older pipeline insists on
        steps_offset=1,
    )


# --- data ---------------------------------------------------------------------------------------


def load_data(cache: Path, source: str | None, device: str) -> tuple[Data, Data]:
    """Pictures and prompts to train on, and the held-out ones."""
    pictures = emoji.load(cache)
    read = prompts.cached([one.caption for one in pictures.emoji], cache, source)
    held = torch.tensor([emoji.is_held_out(one.name) for one in pictures.emoji])
    whole = (pictures.images, read.text, read.mask)
    train, test = (Data(*(x[side].to(device) for x in whole)) for side in (~held, held))
    return train, test


def normed(images: Tensor) -> Tensor:
    """Pixels 0..255 as -1..1."""
    return images.float() / 127.5 - 1


def without_words(mask: Tensor, chosen: Tensor) -> Tensor:
    """The mask [n, tokens] with all but the first token hidden where `chosen` [n] is true."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask & (first | ~chosen[:, None])


def noised(data: Data, places: Tensor, mask: Tensor, generator: torch.Generator) -> Batch:
    """Pictures at random times with random noise, drawn on the CPU whatever the device."""
    device = data.images.device
    places = places.to(device)
    clean = normed(data.images[places])
    times = torch.randint(TIMES, (len(places),), generator=generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    plan = scheduler()
    noisy, velocity = plan.add_noise(clean, noise, times), plan.get_velocity(clean, noise, times)
    # Hidden tokens are zero as well, as those behind the end of a prompt are.
    text = data.text[places].float() * mask[..., None]
    return Batch(noisy, times, text, mask, velocity)


def draw(data: Data, step: int, recipe: Recipe) -> Batch:
    """The batch of a step as a function of seed and step; an epoch visits every picture once."""
    per_epoch = len(data.images) // recipe.batch
    epoch, index = divmod(step, per_epoch)
    order = torch.randperm(len(data.images), generator=seeded(recipe.seed, epoch))
    places = order[index * recipe.batch :][: recipe.batch]
    generator = seeded(recipe.seed + 1, step)
    chosen = torch.rand(recipe.batch, generator=generator) < recipe.wordless
    device = data.images.device
    mask = without_words(data.mask[places.to(device)], chosen.to(device))
    return noised(data, places, mask, generator)


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU for a pair of small numbers."""
    stream, index = numbers
    return torch.Generator().manual_seed(1_000_003 * stream + index)


# --- descent ------------------------------------------------------------------------------------


def predict(model: Any, batch: Batch, recipe: Recipe) -> Tensor:
    """The velocity that a U-Net or a transformer of diffusers expects, in fp32."""
    with torch.autocast(batch.noisy.device.type, torch.bfloat16, enabled=recipe.low):
        found: Tensor = model(
            batch.noisy,
            timestep=batch.times,
            encoder_hidden_states=batch.text,
            encoder_attention_mask=batch.mask if recipe.masked else None,
            return_dict=False,
        )[0]
    return found.float()


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only: shrinking a norm's gain helps nobody."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.99), fused=True)


def fall_begins(recipe: Recipe) -> int:
    """The step from which on the rate falls."""
    return round(recipe.steps * (1 - recipe.fall))


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of a step: linear warm-up, a flat part, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    begins = fall_begins(recipe)
    progress = max(0, step - begins) / max(1, recipe.steps - begins)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train_step(
    model: nn.Module, optimizer: torch.optim.AdamW, batch: Batch, step: int, recipe: Recipe
) -> float:
    """Take one step of descent and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe)
    loss = mse_loss(predict(model, batch, recipe), batch.velocity)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


Average = dict[str, Tensor]  # the moving average of the weights, by name


@torch.no_grad()
def follow(average: Average, model: nn.Module, step: int, recipe: Recipe) -> None:
    """Move the average towards the weights; early ones are forgotten sooner."""
    keep = min(recipe.average, (1 + step) / (10 + step))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - keep)


@torch.no_grad()
def validation(model: nn.Module, average: Average, held: Data, recipe: Recipe) -> dict[str, float]:
    """The averaged model's loss on held-out pictures, with their prompts and with those of others.

    The difference is what the prompt tells the model about a picture that it has never seen.
    """
    losses = {}
    for name, shift in (("validation", 0), ("other_prompts", 7)):
        others = held._replace(text=held.text.roll(shift, 0), mask=held.mask.roll(shift, 0))
        places, generator = torch.arange(min(256, len(held.images))), seeded(recipe.seed + 2, 0)
        batch = noised(others, places, others.mask[places], generator)
        caller = Averaged(model, average)
        found = [
            mse_loss(predict(caller, Batch(*part), recipe), part[-1], reduction="none")
            for part in zip(*(x.split(64) for x in batch), strict=True)
        ]
        losses[name] = round(torch.cat(found).mean().item(), 5)
    return losses


class Averaged(NamedTuple):
    """A model called with its averaged weights."""

    model: nn.Module
    average: Average

    def __call__(self, *inputs: Tensor, **named: Any) -> Any:
        return functional_call(self.model, self.average, inputs, named)


# --- checkpoints --------------------------------------------------------------------------------


def save_checkpoint(
    out: Path,
    model: nn.Module,
    average: Average,
    optimizer: torch.optim.AdamW,
    progress: Progress,
    recipe: Recipe,
) -> None:
    """Replace the checkpoint in one move: a stop at any moment leaves the old or the new one."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"], tensors[f"average/{name}"] = parameter.detach(), average[name]
        for key, moment in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = moment
    metadata = {"progress": json.dumps(progress._asdict()), "recipe": json.dumps(asdict(recipe))}
    partial = out / (CHECKPOINT + ".partial")
    save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, partial, metadata)
    partial.replace(out / CHECKPOINT)


def load_checkpoint(
    out: Path, model: nn.Module, average: Average, optimizer: torch.optim.AdamW, recipe: Recipe
) -> Progress:
    """Restore weights, average and moments in place and return the progress."""
    with safe_open(out / CHECKPOINT, framework="pt") as file:
        metadata = file.metadata()
        progress = Progress(**json.loads(metadata["progress"]))
        check(out / CHECKPOINT, Recipe(**json.loads(metadata["recipe"])), recipe, progress.step)
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"model/{name}"))
            average[name].copy_(file.get_tensor(f"average/{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}/{name}").to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return progress


def check(path: Path, saved: Recipe, recipe: Recipe, step: int) -> None:
    """Refuse another recipe; another length is no other recipe while the rate has not fallen."""
    before, now = asdict(saved), asdict(recipe)
    changed = [key for key in now if before[key] != now[key] and key != "steps"]
    if changed:
        raise ValueError(f"{path} was made with another {', '.join(changed)}")
    if saved.steps != recipe.steps and step > min(fall_begins(saved), fall_begins(recipe)):
        raise ValueError(
            f"{path} is at step {step} of {saved.steps} and its rate has begun to fall; "
            f"go on with --steps {saved.steps}"
        )


def rewind_log(out: Path, step: int) -> None:
    """Drop the lines of steps that a stopped run took after its last checkpoint."""
    lines = (out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (out / LOG).write_text("".join(kept), encoding="utf-8")


def write_log(out: Path, progress: Progress, losses: list[float], extra: dict[str, float]) -> None:
    """Append one JSON line: the mean loss since the last line and, now and then, validation."""
    mean = round(sum(losses) / len(losses), 5)
    line = {"step": progress.step, "seconds": round(progress.seconds, 1), "loss": mean} | extra
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def export(maker: Maker, average: Average, out: Path) -> None:
    """Save a pipeline that `from_pretrained` reads: the averaged model in fp16, and the scheduler."""
    model = maker.build()
    model.load_state_dict(average)
    maker.pipeline(model.half(), scheduler()).save_pretrained(out / PIPELINE)


# --- the run ------------------------------------------------------------------------------------


def fit(
    maker: Maker,
    train: Data,
    held: Data,
    out: Path,
    recipe: Recipe,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train in `out` and return the loss of every step taken; `stop` ends early, as a kill would.

    Every checkpoint also leaves a model that loads.
    """
    prepare(out, resume)
    torch.manual_seed(recipe.seed)
    model = maker.build().to(train.images.device).train()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe)
    progress = Progress()
    if resume:
        progress = load_checkpoint(out, model, average, optimizer, recipe)
        rewind_log(out, progress.step)

    losses: list[float] = []
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    end = recipe.steps if stop is None else stop
    for step in range(progress.step, end):
        losses.append(train_step(model, optimizer, draw(train, step, recipe), step, recipe))
        follow(average, model, step, recipe)
        done = step + 1
        progress = Progress(done, time.monotonic() - started)
        if done % recipe.log_every == 0 or done == end:
            due = done % recipe.validate_every == 0 or done == recipe.steps
            extra = validation(model, average, held, recipe) if due else {}
            write_log(out, progress, losses[-recipe.log_every :], extra)
        if time.monotonic() - last_saved > recipe.checkpoint_seconds or done == end:
            save_checkpoint(out, model, average, optimizer, progress, recipe)
            export(maker, average, out)
            last_saved = time.monotonic()
    return losses


def prepare(out: Path, resume: bool) -> None:
    """Make the folder of a new run, and never write over an old one."""
    if resume:
        return
    if (out / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a run already: pass --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).write_text("", encoding="utf-8")


def run(maker: Maker, recipe: Recipe, options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    one_thread(options.device)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    train, held = load_data(options.cache, options.text_model, options.device)
    fit(maker, train, held, options.out, recipe, options.resume)


def one_thread(device: str) -> None:
    """Sums that threads share change their order between runs; denormals cost hundreds of cycles."""
    if device == "cpu":
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)
