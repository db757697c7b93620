"""How the walk sees `zoo.terrain`: its blocks, its concatenations, and its sampler's trajectories."""

from typing import Any

import torch
from torch import nn

from minifloat.calibrate.trajectories import record
from minifloat.models.unet import UNetAdapter
from zoo.terrain import Block, Terrain, UNet, sample


def adapter(network: UNet) -> UNetAdapter:
    """The adapter of the network; in the up path two layers of a block see the concatenation."""
    splits = {}
    for name, block in network.named_modules():
        if isinstance(block, Block) and block.skip_channels:
            spans = [block.conv_in.in_channels - block.skip_channels, block.skip_channels]
            splits[f"{name}.conv_in"] = spans
            if isinstance(block.shortcut, nn.Conv2d):
                splits[f"{name}.shortcut"] = spans
    return UNetAdapter(names=("Block",), splits=splits)


def trajectories(model: Terrain, *, runs: int, batch: int, seed: int) -> list[dict[str, Any]]:
    """What the network is fed in several runs of the sampler of two steps, at random difficulties."""

    def draw() -> None:
        for run in range(runs):
            own = seed * 10_000 + run  # far from the seeds that results are judged on
            difficulty = torch.rand(batch, generator=torch.Generator().manual_seed(own))
            sample(model, own, difficulty, steps=2)

    return record(model.network, draw)
