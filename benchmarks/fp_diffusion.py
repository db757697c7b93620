"""Low-bit floating point on U-Nets: formats x rounding x granularity.

    python -m benchmarks.fp_diffusion --pipeline zoo/unet-text --rows results.jsonl [--arms NAME ...]
    python -m benchmarks.fp_diffusion --rows results.jsonl [--arms NAME ...]    the terrain U-Net
    python -m benchmarks.fp_diffusion --rows results.jsonl --table

Every row is one run (`benchmarks/diffusion.py`). Of terrain they hold PSNR of images against the
full-precision model's from the same noise, after one and two steps of its sampler (peak to peak 2), and
the SQNR of the network's output by noise level; the noise that is judged on is the same in all.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diffusion import OTHER_NOISE, Pipeline, Study, arguments, go, show
from minifloat.calibrate.stats import sqnr
from minifloat.models.adapter import Adapter
from zoo import terrain_adapter, terrain_weights
from zoo.terrain import sample

INT = {"family": "int"}
FP8 = {"weight_bits": "8", "rounding": "nearest"}
NEAREST = {"weight_bits": "4", "rounding": "nearest"}
GPTQ = {"weight_bits": "4", "rounding": "gptq"}
ADAROUND = {"weight_bits": "4", "start": "nearest", "steps": "150"}  # needs more of them
LEARNED = {"weight_bits": "4"}
ALONE = {"activation_bits": "16"}
BOTH: dict[str, dict[str, str]] = {
    "FP8/FP8": FP8,
    "INT8/INT8": FP8 | INT,
    "FP4/FP8 learned": LEARNED,
    "INT4/INT8 learned": LEARNED | INT,
    "INT4/INT8 AdaRound": ADAROUND | INT,
    "FP4/FP8 nearest": NEAREST,
    "INT4/INT8 nearest": NEAREST | INT,
    "FP4/FP8 GPTQ": GPTQ,
    "INT4/INT8 GPTQ": GPTQ | INT,
}
ARMS: dict[str, dict[str, str]] = {
    **BOTH,
    **{f"g64 {name}": settings | {"group_size": "64"} for name, settings in BOTH.items()},
    OTHER_NOISE: {},
    "FP8 weights alone": FP8 | ALONE,
    "FP8 weights alone, tensor objective": FP8 | ALONE | {"objective": "tensor"},
    "FP8/FP8 tensor objective": FP8 | {"objective": "tensor"},
    "FP4/FP8 learned, windows of 2": LEARNED | {"window": "2"},
    "FP8/FP8 signed only": FP8 | {"unsigned": "false"},
    "INT8/INT8 signed only": FP8 | INT | {"unsigned": "false"},
    "FP8/FP8 unsearched clip": FP8 | {"search": "false"},
    "FP8/FP8 E4M3, unsearched clip": FP8 | {"search": "false", "formats": "e4m3"},
}
SIGMAS = (20.0, 40.0, 80.0)  # between which terrain's sampler works
JUDGED = (1, 2)  # seeds of the noise, four difficulties each


class TerrainStudy:
    """The pretrained U-Net; runs of two steps calibrate it."""

    def __init__(self, runs: int, batch: int) -> None:
        self.runs, self.batch = runs, batch
        self.model = terrain_weights.load()
        self.network: nn.Module = self.model.network
        self.features: dict[str, Tensor] = {}
        self.expected = self.answers(self.network)

    def adapter(self, network: nn.Module) -> Adapter:
        """Its own; layers that see concatenations are split."""
        found = terrain_adapter.adapter(network)
        found.split(network)
        return found

    def calibration(self, seed: int) -> list[dict[str, Any]]:
        """Calls along trajectories of noise that is not judged."""
        return terrain_adapter.trajectories(self.model, runs=self.runs, batch=self.batch, seed=seed)

    def judge(self, network: nn.Module, arm: str, seed: int) -> dict[str, float]:
        """PSNR in dB, the mean over images, and SQNR in dB."""
        figures = {}
        found = self.answers(network)
        for name, reference in self.expected.items():
            error = found[name] - reference
            if name.startswith("psnr"):
                each = 10 * torch.log10(4 / error.square().mean((1, 2, 3)))
                figures[name] = float(each.mean())
            else:
                figures[name] = sqnr(reference, error)
        return figures

    @torch.inference_mode()
    def answers(self, network: nn.Module) -> dict[str, Tensor]:
        """What is judged: images after one and two steps, and outputs by noise level."""
        difficulty = torch.linspace(0, 1, 4)
        own, self.model.network = self.model.network, network
        found = {
            f"psnr{steps}": torch.cat([sample(self.model, s, difficulty, steps) for s in JUDGED])
            for steps in (1, 2)
        }
        self.model.network = own
        clean = found["psnr2"][:4]
        for sigma in SIGMAS:
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
            scale = (sigma**2 + 0.25) ** -0.5
            time_ = torch.full((4,), 250 * torch.tensor(sigma).log())
            noisy = (clean + sigma * noise) * scale
            found[f"sqnr{sigma:g}"] = network(noisy, time_, difficulty)
        return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=6, help="terrain's calibration runs")
    parser.add_argument("--batch", type=int, default=2, help="images in one of them")
    args = parser.parse_args()
    if args.table:
        show(ARMS, args)
        return
    study: Study
    if args.pipeline:
        study = Pipeline(args.pipeline, args.guidance, args.judged)
    else:
        study = TerrainStudy(args.runs, args.batch)
    go(study, "fp-diffusion", ARMS, args)


if __name__ == "__main__":
    main()
