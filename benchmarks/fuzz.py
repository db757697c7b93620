"""Mutated checkpoints, configurations and plans: every one loads or is refused in one sentence.

    python -m benchmarks.fuzz --cases 10000 [--seed 0]

A case takes a small valid folder, changes one file (bytes or JSON nodes) and reads it as users do:
our own folder with every layer, a folder of compressed-tensors through `verify` and `import`, a plan,
and, now and then because transformers is slow, a whole packed model and a GGUF file.
It fails if anything but a `UserError` comes out, takes ten seconds or four gigabytes, or appears
outside its folder.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minifloat.errors import UserError
from minifloat.export.gguf.write import export_gguf
from minifloat.export.native import configuration, save
from minifloat.export.native_folder import open_native
from minifloat.export.read import read_folder
from minifloat.export.stored import Stored
from minifloat.export.verify import verify
from minifloat.export.write import export
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.load import load_model
from minifloat.models.zoo import locate
from minifloat.plan import Plan
from minifloat.qtensor import encode
from minifloat.shards import write
from minifloat.spec import FP8_CHANNEL, FP8_TOKEN, SPECS, LayerSpec

PLAN = Plan((("*", LayerSpec(weight=FP8_CHANNEL, input=FP8_TOKEN)),))
NAMES = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj")
SECONDS, BYTES = 10, 4 << 30

Case = Callable[[random.Random, Path], None]


def native(folder: Path) -> None:
    """A checkpoint of ours with two small layers."""
    torch.manual_seed(0)
    layers = {}
    for name in NAMES:
        spec = PLAN.spec_of(name)
        assert spec is not None and spec.weight is not None
        q = encode(nn.Linear(32, 32).weight.detach(), spec.weight)
        layers[name] = QLinear.pack(q, spec, None, torch.float32)
    folder.mkdir()
    tensors = {
        f"{n}.{key}": t for n, layer in layers.items() for key, t in layer.state_dict().items()
    }
    write(folder, [*tensors.items(), ("model.norm.weight", torch.ones(32))])
    stored = {name: Stored.of(layer) for name, layer in layers.items()}
    config = {"model_type": "llama", "dtype": "float32", "architectures": ["LlamaForCausalLM"]}
    config["quantization_config"] = configuration(PLAN, stored)
    (folder / "config.json").write_text(json.dumps(config))


# --- mutations ------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e308, float("nan"), 0.5),
    *("", "x", "e9m9", "e2m1", "../../etc/passwd", "*", "[", "a" * 5000, "\u0000"),
    *([], [[]], [1], [1, 2, 3], [-1, -1], ["*", {}], {}, {"a": 1}, {"weight": 3}, [None] * 50),
)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """The value with one to three of its nodes replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        owner, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.6:
            owner[key] = copy.deepcopy(rng.choice(ODD))
        elif kind < 0.8:
            del owner[key]
        elif isinstance(owner, dict):
            owner[rng.choice((*map(str, owner), "other"))] = owner.pop(key)
        else:
            owner.insert(key, copy.deepcopy(rng.choice(ODD)))
    return value


def _places(value: Any) -> Any:
    """Every (container, key) inside a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value) if _is_list(value) else 0)
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, inserted or repeated bytes, mostly where headers lie."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        place = rng.randrange(min(len(changed), rng.choice((16, 600, 1 << 20))) or 1)
        kind = rng.random()
        if kind < 0.5 and changed:
            changed[place] = rng.randrange(256)
        elif kind < 0.7:
            del changed[place:]
        elif kind < 0.85:
            del changed[place : place + rng.choice((1, 8, 64))]
        else:
            changed[place:place] = rng.randbytes(rng.choice((1, 8, 64)))
    return bytes(changed)


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose JSON header is changed and still parses."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _change_file(path: Path, rng: random.Random) -> None:
    if path.suffix == ".json":
        text = json.dumps(mutate_json(json.loads(path.read_text()), rng))
        path.write_bytes(text.encode() if rng.random() < 0.8 else mutate_bytes(text.encode(), rng))
    else:
        change = mutate_header if rng.random() < 0.6 else mutate_bytes
        path.write_bytes(change(path.read_bytes(), rng))


# --- cases ----------------------------------------------------------------------------------------


def read_native(rng: random.Random, folder: Path) -> None:
    """Our own folder, every layer and tensor of it."""
    _change_file(folder / rng.choice(("config.json", "model.safetensors")), rng)
    found = open_native(folder)
    for name in found.specs:
        found.layer(name)
    for name in found.others():
        found.entries[name].read()


def read_export(rng: random.Random, folder: Path) -> None:
    """A folder of compressed-tensors: verified and imported."""
    _change_file(folder / rng.choice(("config.json", "model.safetensors")), rng)
    verify(folder, None)
    read_folder(folder, folder / "imported")


def read_plan(rng: random.Random, folder: Path) -> None:
    """A plan that a user has edited."""
    path = folder / "plan.json"
    path.write_text(json.dumps(PLAN.to_json()))
    _change_file(path, rng)
    Plan.read(path).resolve(NAMES)


def read_model(rng: random.Random, folder: Path) -> None:
    """A packed model through transformers, with its tokenizer."""
    _change_file(folder / rng.choice(("config.json", "model.safetensors")), rng)
    load_model(str(folder))


def read_gguf(rng: random.Random, folder: Path) -> None:
    """A GGUF file: verified and imported, or through transformers."""
    path = folder / "model.gguf"
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    if rng.random() < 0.5:
        load_model(str(path))
    else:
        verify(path)
        read_folder(path, folder / "imported")


# What reads, from which folder, and how often.
CASES: dict[str, tuple[Case, str, int]] = {
    "own folder": (read_native, "native", 100),
    "export": (read_export, "export", 100),
    "plan": (read_plan, "native", 100),
    "model": (read_model, "model", 40),
    "gguf": (read_gguf, "gguf", 10),
}


def whole_models(root: Path) -> None:
    """The zoo's small Llama, packed, and as GGUF."""
    plan = Plan((("*", LayerSpec(weight=SPECS["mxfp4"])),))
    model, tokenizer = load_model(locate("llama-tiny"))
    method = replace(build("zeroquant-fp", {"solver": "nearest", "rank": "0"}), plan=plan)
    report = quantize(model, method, [torch.arange(3, 35)[None]])
    (root / "model").mkdir()
    save(model, Plan.from_json(report["plan"]), root / "model")
    tokenizer.save_pretrained(str(root / "model"))
    export_gguf(root / "model", root / "gguf")


def _too_slow(number: int, frame: object) -> None:
    raise TimeoutError(f"a case took more than {SECONDS} s")


def fuzz(cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many cases of each kind loaded and were refused, and what failed."""
    outcomes: Counter[str] = Counter()
    failures = []
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        native(root / "native")
        export(root / "native", "compressed-tensors", root / "export")
        whole_models(root)
        sources = {path.name for path in root.iterdir()}
        for number in range(cases):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choices(list(CASES), [often for *_, often in CASES.values()])[0]
            case, source, _ = CASES[kind]
            shutil.copytree(root / source, root / "case")
            signal.alarm(SECONDS)
            try:
                case(rng, root / "case")
                outcomes[f"{kind}: loaded"] += 1
            except UserError:
                outcomes[f"{kind}: refused"] += 1
            except Exception as error:
                failures.append(f"{kind} {number}: {type(error).__name__}: {error}")
            finally:
                signal.alarm(0)
            shutil.rmtree(root / "case")
            if {path.name for path in root.iterdir()} != sources:
                failures.append(f"{kind} {number}: wrote outside its folder")
                break
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    outcomes, failures = fuzz(args.cases, args.seed)
    for kind, count in sorted(outcomes.items()):
        print(f"{kind}: {count}")
    print(f"{len(failures)} failures")
    print("\n".join(failures[:40]))


if __name__ == "__main__":
    main()
