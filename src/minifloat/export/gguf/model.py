"""The sizes of a Llama: transformers' config.json to GGUF's fields and back."""

from typing import Any

from minifloat.errors import UserError

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}


def to_fields(config: dict[str, Any]) -> dict[str, int | float]:
    """`llama.*` of a model's configuration; floats are stored in fp32.

    Raises:
        UserError: another architecture, or scaled rotary embeddings.
    """
    if config.get("model_type") != "llama":
        raise UserError(f"GGUF is written for Llama models, not {config.get('model_type')}")
    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"GGUF is written without rope scaling, not with {rope['rope_type']!r}")
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return {
        **{theirs: config[ours] for theirs, ours in _SIZES.items()},
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
    }


def from_fields(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """config.json of a file's fields and of the tensors that it has.

    Raises:
        UserError: something that a Llama of transformers has not.
    """
    sizes = {ours: _count(fields, theirs) for theirs, ours in _SIZES.items()}
    heads = sizes["num_attention_heads"]
    head = _count(fields, "attention.key_length", sizes["hidden_size"] // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.get(key, head) != head:
            raise UserError(f"the GGUF file has {key} {fields[key]!r} with heads of {head}")
    for key in ("rope.scaling.type", "expert_count"):
        if fields.get(key) not in (None, 0, "none"):
            raise UserError(f"a GGUF file with {key} {fields[key]!r} is not read")
    epsilon, theta = (
        fields.get("attention.layer_norm_rms_epsilon"),
        fields.get("rope.freq_base", 1e4),
    )
    if not isinstance(epsilon, float) or not isinstance(theta, float):
        raise UserError(
            f"the GGUF file says {epsilon!r} of its norms and {theta!r} of its rotation"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes,
        "num_key_value_heads": _count(fields, "attention.head_count_kv", heads),
        "head_dim": head,
        "rms_norm_eps": epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": "lm_head.weight" not in names,
        "attention_bias": any(name.endswith("q_proj.bias") for name in names),
        "mlp_bias": any(name.endswith("up_proj.bias") for name in names),
        "hidden_act": "silu",
        "dtype": "float32",
    }


def _count(fields: dict[str, Any], key: str, default: int | None = None) -> int:
    value = fields.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"the GGUF file says {value!r} of llama.{key}, which is no size")
    return value
