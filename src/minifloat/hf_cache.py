"""A KV cache in few bits for transformers: `generate(..., past_key_values=QuantizedCache(config))`.

Attention sees what is kept, the newest tokens too. A model's outputs therefore do not depend on how a
text came to it, and the perplexity of a forward pass over a window is that of generation. QServe (arXiv
2405.04532) attends to fresh keys and values in full precision while it reads the prompt.

Under `model.set_attn_implementation("minifloat")` the codes themselves go to attention, and a kernel
decodes them in registers (`attention_kv` in `kernels/table.py`); under any other, decoded tensors do.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minifloat.errors import UserError
from minifloat.kernels.states import FixedStates, GrowingStates, States
from minifloat.kernels.table import pick, pick_attention
from minifloat.spec import CacheSpec, QuantSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION = "minifloat"
# New tokens, at most, that attend to codes: beyond them to decode the layer once is cheaper.
FEW = 8


class QuantizedLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values of one layer. A sliding window's are kept too when it has gone on."""

    is_croppable = True

    def __init__(
        self, spec: CacheSpec, config: "PreTrainedConfig", capacity: int | None = None
    ) -> None:
        super().__init__()
        self.spec, self.config, self.capacity = spec, config, capacity
        self.is_compileable = capacity is not None
        self.latent = hasattr(config, "kv_lora_rank")  # keys are made of what is kept
        self.reset()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.put = pick("states", self.spec, self.device.type).run
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Any, Any]:
        """Keep [batch, heads, tokens, width], and return all that attention is to see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = self.keys.append(key_states, self.spec.keys, self.put)
        values = self.values.append(value_states, self.spec.values, self.put)
        if not self.latent and self.config._attn_implementation == ATTENTION:
            return keys, values
        return keys.decoded(key_states.dtype), values.decoded(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.visible(query_length), 0

    def get_seq_length(self) -> int | Tensor:
        return self.keys.tokens

    def get_max_length(self) -> int:
        return -1 if self.capacity is None else self.capacity

    def reset(self) -> None:
        self.keys, self.values = self._empty(), self._empty()
        self.is_initialized = False

    def _empty(self) -> GrowingStates | FixedStates:
        return GrowingStates() if self.capacity is None else FixedStates(self.capacity)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens; the number is negative, as transformers has it."""
        for states in (self.keys, self.values):
            states.crop(max(0, int(states.tokens) - abs(tokens_to_remove)))

    def batch_select_indices(self, indices: Tensor) -> None:
        for states in (self.keys, self.values):
            states.select(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.keys.held is not None:
            batch = torch.arange(len(self.keys.held.codes))
            self.batch_select_indices(batch.repeat_interleave(repeats))

    def offload(self) -> None:
        raise UserError("a QuantizedCache stays on its device; make it without offloading")

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are there."""
        return sum(s.held.nbytes for s in (self.keys, self.values) if s.held is not None)


class QuantizedCache(Cache):  # type: ignore[misc]
    """Keys and values of attention in codes of at most 8 bits, with scales for each token and head.

    Args:
        config: the model's. Layers that keep other states than keys and values keep them as they are.
        keys: a `QuantSpec` or the name of one, for heads' features: tiles of (1, -1) or (1, features).
            The default is QoQ's: 4 bits with a zero point.
        values: the same for the values; that of the keys if None.
        capacity: the most tokens that there will be. Their room is made at once and stays where it is,
            so that the step of a token can be compiled; without it, room grows with the tokens.

    Raises:
        UserError: a spec that a cache cannot have, or layers that keep more than keys and values.
    """

    def __init__(
        self,
        config: "PreTrainedConfig",
        keys: QuantSpec | str = "uint4-token",
        values: QuantSpec | str | None = None,
        capacity: int | None = None,
    ) -> None:
        self.spec = CacheSpec(_spec(keys), _spec(keys if values is None else values))
        text = config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        super().__init__(layers=[_layer(layer, self.spec, text, capacity) for layer in layers])

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are there, in all layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, QuantizedLayer))


def _spec(given: QuantSpec | str) -> QuantSpec:
    return QuantSpec.from_json(given) if isinstance(given, str) else given


def _layer(layer: Any, spec: CacheSpec, config: "PreTrainedConfig", capacity: int | None) -> Any:
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return QuantizedLayer(spec, config, capacity)
    if type(layer) in (LinearAttentionLayer, DummyLayer):
        return layer
    raise UserError(f"a {type(layer).__name__} keeps more than keys and values; use its own cache")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | States,
    value: Tensor | States,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function "minifloat" of transformers: [batch, queries, heads, width].

    A few queries take turns with the codes; more of them, and tensors in place of codes, take torch's
    own attention, for which a layer is decoded.
    """
    extra = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if extra:
        raise UserError(f"this model's attention asks for {extra[0]}; use its own implementation")
    if not isinstance(key, States) or not isinstance(value, States):
        assert isinstance(key, Tensor) and isinstance(value, Tensor)
        return _plain(module, query, key, value, attention_mask, scaling, others)
    queries = query.shape[2]
    row = pick_attention(key.spec, value.spec, query.device.type)
    most = 1 if row.name == "reference" else FEW  # the reference decodes at every call
    if queries > most or not _hides_tokens(attention_mask, queries):
        tensors = key.decoded(query.dtype), value.decoded(query.dtype)
        return _plain(module, query, *tensors, attention_mask, scaling, others)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    found = []
    for i in range(queries):
        seen = None if attention_mask is None else attention_mask[:, 0, i].expand(len(query), -1)
        found.append(row.run(query[:, :, i : i + 1], key, value, seen, scale))
    return (torch.cat(found, 2) if queries > 1 else found[0]).transpose(1, 2), None


def _hides_tokens(mask: Tensor | None, queries: int) -> bool:
    """Whether a mask says which tokens all heads see; without one, a single query sees all."""
    return queries == 1 if mask is None else mask.dtype == torch.bool and mask.shape[1] == 1


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    others: dict[str, Any],
) -> tuple[Tensor, None]:
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, mask, scaling=scaling, **others
    )
    return found


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
