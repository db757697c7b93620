"""Packed embeddings, and output layers that multiply with an embedding's own codes.

A tied pair is one set of tensors: the embedding holds them, and the head holds the embedding. So they
are saved, moved and decoded once.
"""

from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.kernels.table import pick
from minifloat.layers import QLayer
from minifloat.spec import LayerSpec


class QEmbedding(QLayer):
    """A table [entries, features] of which only the rows that are looked up are decoded."""

    op = "embedding"

    def __init__(self, like: nn.Embedding, spec: LayerSpec) -> None:
        shape, dtype = (like.num_embeddings, like.embedding_dim), like.weight.dtype
        super().__init__(shape, shape[1], spec, bias=False, rank=0, dtype=dtype)
        self.num_embeddings, self.embedding_dim = shape

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., features] of ids [...]."""
        y: Tensor = self.kernel(ids.device.type).run(ids, self.packed())
        return y


class TiedHead(nn.Module):
    """An output layer whose weight is an embedding's; it has no tensor of its own but the bias."""

    def __init__(self, table: QEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple it is no child, whose tensors would be saved twice
        self.bias = bias
        self.out_features, self.in_features = table.shape

    @property
    def table(self) -> QEmbedding:
        """The embedding whose codes these are."""
        return self._table[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., entries] of states [..., features]."""
        layer = self.table.packed()._replace(bias=self.bias)
        y: Tensor = pick("linear", layer.spec, x.device.type).run(x, layer)
        return self.table.on_grid(y)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, tied"


def tie(model: nn.Module, head: str, table: str) -> None:
    """Let the output layer `head` multiply with the codes of the packed embedding `table`.

    Raises:
        UserError: the two are no such layers.
    """
    old, new = model.get_submodule(head), model.get_submodule(table)
    if not isinstance(new, QEmbedding) or getattr(old, "out_features", None) != new.shape[0]:
        raise UserError(f"{head} cannot share the codes of {table}: it is another size or kind")
    model.set_submodule(head, TiedHead(new, getattr(old, "bias", None)))
    # transformers would give the head the embedding's codes as a parameter
    getattr(model, "all_tied_weights_keys", {}).pop(f"{head}.weight", None)
