"""A network that looks at images: any vision model of transformers, or the tower of a larger one.

Distances of images through a network say as much as the network knows. None comes with minifloat,
since none that is free to ship knows photographs; CLIP, SigLIP or DINOv2 are a hub name away, and the
zoo's `vlm` has a tower that knows emoji. The Inception network of the usual FID comes in a pickle only.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from minifloat.errors import UserError
from minifloat.models.load import locate, quiet
from minifloat.models.zoo import resolve

_DEPTHS = 4  # maps that are kept, at equal distances


class Seen(NamedTuple):
    """What a network made of n images: means over positions [n, d], and maps [n, c, positions]."""

    features: Tensor
    maps: list[Tensor]


class Eyes:
    """A vision model with its preprocessing; one with a text tower (CLIP) also reads captions."""

    def __init__(self, source: str) -> None:
        """Open the model of a folder, a hub name or `zoo:NAME`, from safetensors alone."""
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise UserError("features need transformers; pip install 'minifloat[hf]'") from error
        where, extra, _ = locate(resolve(source))
        try:
            with quiet():  # a tower alone leaves the rest of a larger model's weights over
                model = AutoModel.from_pretrained(where, dtype=torch.float32, **extra)
                self.model: Any = model.eval()
                self.processor: Any = AutoImageProcessor.from_pretrained(where)
        except (
            Exception
        ) as error:  # transformers has errors of its own for whatever a file may hold
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source!r} is no vision model of transformers ({first})") from error
        towers = (getattr(self.model, name, None) for name in ("vision_tower", "vision_model"))
        self.tower: Any = next((tower for tower in towers if tower is not None), self.model)
        self.where = where

    @torch.no_grad()
    def see(self, images: Tensor, batch: int = 32) -> Seen:
        """Look at images [n, 3, height, width] in 0..1."""
        seen = [self._see(part) for part in torch.split(images, batch)]
        maps = [torch.cat(depth) for depth in zip(*(one.maps for one in seen), strict=True)]
        return Seen(torch.cat([one.features for one in seen]), maps)

    def _see(self, images: Tensor) -> Seen:
        states = self.tower(self._pixels(images), output_hidden_states=True).hidden_states
        if states is None:
            raise UserError(f"{type(self.tower).__name__} does not return its hidden states")
        # Tokens come as [n, positions, c], pixels as [n, c, height, width].
        found = [s.transpose(1, 2) if s.ndim == 3 else s.flatten(2) for s in states[1:]]
        places = torch.linspace(0, len(found) - 1, min(_DEPTHS, len(found))).round().int().tolist()
        return Seen(found[-1].mean(2), [found[i] for i in places])

    @torch.no_grad()
    def match(self, images: Tensor, captions: list[str]) -> Tensor | None:
        """Cosine [n] of each image and its caption; None if the model has no text tower."""
        if not hasattr(self.model, "get_text_features"):
            return None
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self.where)
        words = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        text = _pooled(self.model.get_text_features(**words))
        seen = _pooled(self.model.get_image_features(pixel_values=self._pixels(images)))
        return (normalize(text) * normalize(seen)).sum(1)

    def _pixels(self, images: Tensor) -> Tensor:
        """Images as the model wants them."""
        levels = (255 * images.expand(-1, 3, -1, -1)).round().byte().movedim(1, -1).numpy()
        pixels: Tensor = self.processor(images=list(levels), return_tensors="pt")["pixel_values"]
        return pixels


def _pooled(output: Any) -> Tensor:
    """A tower's vector [n, d]: transformers returns it bare or in a record, by version."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found
