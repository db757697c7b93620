"""terrain: the pretrained consistency U-Net of `adaptive-terrain-diffusion`, in plain torch.

Why this file exists: the claims about diffusion models need a real U-Net, with skip concatenations,
attention and conditioning by noise level, whose weights somebody else has trained. The network is
the U-Net of ADM (Dhariwal and Nichol, 2021); it turns noise into a height field of 128 x 128 in one
evaluation, or in a few. `zoo.terrain_weights` loads the weights, the card has the measurements.

Layers are registered in the order in which data meets them. The conversion of the weights relies on
that, and a quantizer can walk `down_blocks`, `mid_block` and `up_blocks` one block after the other.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

SIZE = 128  # pixels a side
CHANNELS = (32, 32, 64, 96, 128)  # by level, 128 pixels down to 8
BLOCKS = 4  # in each level, on the way down
FIRST_ATTENTION = 2  # the first level with attention: 32 pixels a side
HEAD = 32  # channels of one attention head
GROUPS = 32
EMBEDDING = 128
FREQUENCIES = 16

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
SIGMA_LAST = 20.0  # of several steps; at smaller ones these weights leave grain in the image
SIGMA_DATA = 0.5


class Attention(nn.Module):
    """Self-attention over the pixels of an image, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [batch, channels, height, width] to the same shape."""
        qkv = self.qkv(self.norm(x)).unflatten(1, (3, -1, HEAD)).flatten(4).transpose(3, 4)
        query, key, value = qkv.unbind(1)  # [batch, heads, pixels, HEAD] each
        mixed = scaled_dot_product_attention(query, key, value)
        out: Tensor = x + self.out(mixed.transpose(2, 3).reshape(x.shape))
        return out


class Block(nn.Module):
    """A residual block that the embedding scales and shifts, then attention if its level has any.

    In the up path the last `skip_channels` of the input are an output of the down path. Two layers
    see them, `conv_in` after the norm and `shortcut` without, so a quantizer that gives the two
    parts scales of their own finds all it needs in the block.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        skip_channels: int = 0,
        attends: bool = False,
        resize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.skip_channels = skip_channels
        inputs += skip_channels
        self.resize = resize or nn.Identity()
        self.norm_in = nn.GroupNorm(GROUPS, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.scale_shift = nn.Linear(EMBEDDING, 2 * outputs)
        self.norm_out = nn.GroupNorm(GROUPS, outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map x [batch, inputs, height, width] to [batch, outputs, height, width], or resized.

        The embedding is [batch, EMBEDDING], the skip [batch, skip_channels, height, width].
        """
        if skip is not None:
            x = torch.cat([x, skip], 1)
        hidden = self.conv_in(self.resize(silu(self.norm_in(x))))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, 1)
        hidden = silu(self.norm_out(hidden) * (1 + scale) + shift)
        out: Tensor = self.attention(self.shortcut(self.resize(x)) + self.conv_out(hidden))
        return out


def down_path() -> tuple[nn.ModuleList, list[int]]:
    """The 24 blocks on the way down and the channels of the 25 skips, the first convolution's too.

    Between two levels stands a block that halves the image.
    """
    blocks = nn.ModuleList()
    width = CHANNELS[0]
    skips = [width]
    for level, channels in enumerate(CHANNELS):
        if level:
            blocks.append(Block(width, width, resize=nn.AvgPool2d(2)))
            skips.append(width)
        for _ in range(BLOCKS):
            blocks.append(Block(width, channels, attends=level >= FIRST_ATTENTION))
            width = channels
            skips.append(width)
    return blocks, skips


def up_path(skips: list[int]) -> nn.ModuleList:
    """The 29 blocks on the way up: one for each skip, and 4 between levels that double the image."""
    blocks = nn.ModuleList()
    width = CHANNELS[-1]
    waiting = list(skips)
    for level in reversed(range(len(CHANNELS))):
        channels, attends = CHANNELS[level], level >= FIRST_ATTENTION
        for _ in range(BLOCKS + 1):
            blocks.append(Block(width, channels, skip_channels=waiting.pop(), attends=attends))
            width = channels
        if level:
            blocks.append(Block(width, width, resize=nn.Upsample(scale_factor=2.0)))
    return blocks


def embedder(inputs: int) -> nn.Sequential:
    """A small network that embeds one of the conditions, [batch, inputs] to [batch, EMBEDDING]."""
    return nn.Sequential(nn.Linear(inputs, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))


def waves(time: Tensor) -> Tensor:
    """Cosines, then sines, of time [batch] at wavelengths up to 10,000: [batch, 2 * FREQUENCIES]."""
    exponents = torch.arange(FREQUENCIES, dtype=time.dtype, device=time.device) / FREQUENCIES
    angles = time[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], 1)


class UNet(nn.Module):
    """The network alone: images, times and difficulties to images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_time = embedder(2 * FREQUENCIES)
        self.embed_difficulty = embedder(1)
        self.conv_in = nn.Conv2d(1, CHANNELS[0], 3, padding=1)
        self.down_blocks, skips = down_path()
        width = CHANNELS[-1]
        self.mid_block = nn.ModuleList([Block(width, width, attends=True), Block(width, width)])
        self.up_blocks = up_path(skips)
        self.norm_out = nn.GroupNorm(GROUPS, CHANNELS[0])
        self.conv_out = nn.Conv2d(CHANNELS[0], 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, difficulty: Tensor) -> Tensor:
        """Map x [batch, 1, height, width] to the same shape; sides are multiples of 16.

        Time and difficulty are [batch].
        """
        embedding = self.embed_time(waves(time)) + self.embed_difficulty(difficulty[:, None])
        embedding = silu(embedding)  # every block would do this first
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, embedding)
            skips.append(x)
        for block in self.mid_block:
            x = block(x, embedding)
        for block in self.up_blocks:
            x = block(x, embedding, skips.pop() if block.skip_channels else None)
        out: Tensor = self.conv_out(silu(self.norm_out(x)))
        return out


class Terrain(nn.Module):
    """The consistency function: from any noise level to the clean image in one evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet()

    def forward(self, noisy: Tensor, sigma: Tensor, difficulty: Tensor) -> Tensor:
        """Denoise noisy [batch, 1, height, width] to heights in -1..1 of the same shape.

        Sigma [batch] is the standard deviation of the noise, SIGMA_MIN..SIGMA_MAX; difficulty
        [batch] is 0..1. At SIGMA_MIN the weight of the network is zero and that of `noisy` one,
        which makes the image its own denoised image: the boundary condition of consistency models.
        """
        data = SIGMA_DATA**2
        deviation = (sigma**2 + data).sqrt()
        keep = data / ((sigma - SIGMA_MIN) ** 2 + data)
        change = (sigma - SIGMA_MIN) * SIGMA_DATA / deviation
        found = self.network(noisy / spread(deviation), 250 * sigma.log(), difficulty)
        clean: Tensor = spread(keep) * noisy + spread(change) * found
        return clean.clamp(-1, 1)


def spread(factor: Tensor) -> Tensor:
    """A factor [batch] as [batch, 1, 1, 1]."""
    return factor[:, None, None, None]


def noise_levels(steps: int) -> Tensor:
    """Sigmas [steps] that fall from SIGMA_MAX to SIGMA_LAST by equal factors."""
    return torch.logspace(0, 1, steps, SIGMA_LAST / SIGMA_MAX) * SIGMA_MAX


@torch.inference_mode()
def sample(model: nn.Module, seed: int, difficulty: Tensor, steps: int = 1) -> Tensor:
    """Draw one terrain for each difficulty [batch] in 0..1: [batch, 1, SIZE, SIZE] in -1..1.

    Every step denoises fully and all but the last add noise of the next level. The noise is drawn
    on the CPU from the seed alone, so two models that get the same seed get the same noise.
    """
    generator = torch.Generator().manual_seed(seed)
    clean: Tensor = torch.zeros(len(difficulty), 1, SIZE, SIZE, device=difficulty.device)
    for sigma in noise_levels(steps).to(difficulty.device):
        noise = torch.randn(clean.shape, generator=generator).to(difficulty.device)
        # What is clean still has the deviation SIGMA_MIN, by definition.
        noisy = clean + (sigma**2 - SIGMA_MIN**2).sqrt() * noise
        clean = model(noisy, sigma.expand(len(difficulty)), difficulty)
    return clean


def metres(heights: Tensor) -> Tensor:
    """Heights in -1..1 as metres in 0..22.17: the training data was compressed by asinh."""
    highest = math.asinh(22.16864013671875 / 0.1)
    return 0.1 * torch.sinh((heights + 1) / 2 * highest)
