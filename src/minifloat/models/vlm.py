"""Vision-language models of transformers: a vision tower, a projector and a language model.

LLaVA, LLaVA-OneVision, Qwen2-VL to Qwen3-VL, InternVL, SmolVLM, PaliGemma, Gemma 3: the towers are known
by the names that transformers gives them, their blocks by the tower's list of modules. A batch runs
through the model's own forward, so pixel shuffling, token merging and positions need no code here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.errors import UserError, unknown
from minifloat.models.llama import LlamaAdapter
from minifloat.models.projector import projector_seams, projector_writers
from minifloat.models.seam import Seam
from minifloat.models.stack import language_seams, stack_seams

TOWERS = ("vision", "projector", "language")
_VISION = ("vision_tower", "visual", "vision_model")
_PROJECTORS = ("multi_modal_projector", "connector", "merger")
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id")


@dataclass(frozen=True)
class VLMAdapter:
    """Adapter of vision-language models; a batch is a dict of the model's arguments.

    Attributes:
        towers: which of vision, projector and language are walked; MBQ (arXiv 2412.19509) takes the
            language tower alone. Batches without pictures reach no other.
    """

    towers: Sequence[str] = TOWERS

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Whether a model has a vision tower and a language model."""
        return _vision(model) is not None and callable(getattr(model, "get_decoder", None))

    @staticmethod
    def unread_towers(model: nn.Module) -> dict[str, str]:
        """The towers that batches of text alone do not reach, with the reason for the ledger."""
        names = (_vision_tower(model)[0], *_projectors(model))
        return dict.fromkeys(names, "text alone calibrated, and reaches no vision tower")

    def tower(self, model: nn.Module, name: str) -> dict[str, nn.Module]:
        """The blocks of one tower by full name."""
        if name not in TOWERS:
            raise unknown("tower", name, TOWERS)
        if name == "language":
            return LlamaAdapter().blocks(model)
        if name == "projector":
            return _projectors(model)
        root, vision = _vision_tower(model)
        for inner, module in vision.named_modules():
            if isinstance(module, nn.ModuleList) and len(module):
                return {f"{root}.{inner}.{i}": block for i, block in enumerate(module)}
        raise UserError(f"{root} has no list of blocks")

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {n: block for t in self.towers for n, block in self.tower(model, t).items()}

    def run(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        model(**batch, use_cache=False)

    def masks(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Tokens by modality, bool [batch, length]: vision, language, and answer where labels say.

        Padding is in none of them; the answer is part of the language.
        """
        ids: Tensor = batch["input_ids"]
        vision = torch.zeros_like(ids, dtype=torch.bool)
        for number in _image_tokens(model):
            vision |= ids == number
        present = batch.get("attention_mask", torch.ones_like(ids)).bool()
        masks = {"vision": vision & present, "language": ~vision & present}
        if batch.get("labels") is not None:
            masks["answer"] = masks["language"] & (batch["labels"] >= 0)
        return masks

    def seams(self, model: nn.Module) -> list[Seam]:
        """Seams of all three towers; the projector writes to the language model's stream."""
        config: Any = _vision_tower(model)[1].config
        found = stack_seams(self.tower(model, "vision"), config)
        for name, projector in _projectors(model).items():
            found += projector_seams(name, projector)
        writers = projector_writers(model, _projectors(model))
        return found + language_seams(model, self.tower(model, "language"), writers)


def _vision(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The vision tower by its full name, the outermost of that name."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _VISION and hasattr(module, "config"):
            return name, module
    return None


def _vision_tower(model: nn.Module) -> tuple[str, nn.Module]:
    found = _vision(model)
    if found is None:
        raise UserError(
            f"{type(model).__name__} has no vision tower ({', '.join(_VISION)}); "
            "a language model is walked by LlamaAdapter"
        )
    return found


def _projectors(model: nn.Module) -> dict[str, nn.Module]:
    """What takes the vision tower's output to the language model, also from its middle (Qwen3-VL)."""
    found = {}
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if leaf in _PROJECTORS or parent.endswith("deepstack_merger_list"):
            found[name] = module
    if not found:
        raise UserError(f"{type(model).__name__} has no projector ({', '.join(_PROJECTORS)})")
    return found


def _image_tokens(model: nn.Module) -> list[int]:
    config = getattr(model, "config", None)
    found = [getattr(config, name, None) for name in _IMAGE_TOKENS]
    return [number for number in found if isinstance(number, int)]
