"""State-space language models of transformers: Mamba, Mamba-2, Falcon-Mamba, and hybrids with attention.

Jamba, Bamba, Falcon-H1, Nemotron-H and Granite hybrids are chains of blocks like any language model.
Zamba2 calls one shared transformer from many places: it stays in full precision, since a block that is
called twice has no single input to calibrate with, and the Mamba layers around it are walked.
"""

from torch import Tensor, nn

from minifloat.models.llama import decoder_blocks, decoder_of
from minifloat.models.seam import Seam
from minifloat.models.stack import language_seams


class MambaAdapter:
    """Adapter of state-space language models and hybrids; batches are token ids [batch, length]."""

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Whether a model has a Mamba mixer."""
        return any(hasattr(module, "A_log") for module in model.modules())

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        found = {}
        for name, block in decoder_blocks(model).items():
            if hasattr(block, "shared_transformer"):
                found[f"{name}.mamba_decoder"] = block.get_submodule("mamba_decoder")
            else:
                found[name] = block
        return found

    def run(self, model: nn.Module, batch: Tensor) -> None:
        decoder_of(model)(input_ids=batch, use_cache=False)

    def seams(self, model: nn.Module) -> list[Seam]:
        """Where maps of channels cancel: orders of channels, heads and states, norms, the stream."""
        return language_seams(model, decoder_blocks(model))
