"""Byte-level BPE tokenizers: tokenizer.json to GGUF's fields and back.

llama.cpp knows how text is split before BPE by a name alone, so that only splits with one are written.
"""

from typing import Any

from minifloat.errors import UserError

# GGUF's token types.
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# llama.cpp's name of a split (llama-vocab.cpp) and tokenizer.json's `pre_tokenizer`.
_SPLITS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
    },
}


def to_fields(found: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.ggml.*` of a tokenizer.json.

    Raises:
        UserError: it is no byte-level BPE, or splits text in a way without a name here.
    """
    model = found["model"]
    wanted = _plain(found.get("pre_tokenizer"))
    split = next((name for name, split in _SPLITS.items() if _plain(split) == wanted), None)
    if model["type"] != "BPE" or split is None or found.get("normalizer"):
        known = " or ".join(_SPLITS)
        raise UserError(
            f"GGUF is written with byte-level BPE tokenizers that split as {known} does"
        )
    added = {row["id"]: row["content"] for row in found.get("added_tokens", [])}
    by_id = {number: token for token, number in model["vocab"].items()} | added
    ids = range(config["vocab_size"])
    if max(by_id) not in ids:
        raise UserError(f"the tokenizer has {max(by_id) + 1} tokens and the model {len(ids)}")
    fields = {
        "model": "gpt2",
        "pre": split,
        "tokens": [by_id.get(i, f"[PAD{i}]") for i in ids],
        "token_type": [_CONTROL if i in added else _NORMAL if i in by_id else _UNUSED for i in ids],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
    }
    special = {key: config.get(f"{key}_id") for key in ("bos_token", "eos_token")}
    return fields | {f"{key}_id": i for key, i in special.items() if isinstance(i, int)}


def from_fields(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of GGUF's fields.

    Raises:
        UserError: a tokenizer of another kind.
    """
    if fields.get("model") != "gpt2" or fields.get("pre") not in _SPLITS:
        raise UserError(
            f"a tokenizer of the kind {fields.get('model')!r}, {fields.get('pre')!r} is not read from "
            "GGUF; put the model's tokenizer.json beside the file"
        )
    rows = list(zip(fields["tokens"], fields["token_type"], strict=True))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    keys = [key for key in ("bos_token", "eos_token") if f"{key}_id" in fields]
    special = {key: fields["tokens"][fields[f"{key}_id"]] for key in keys}
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True}
            for i, (token, kind) in enumerate(rows)
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": _SPLITS[fields["pre"]],
        "post_processor": None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, (token, kind) in enumerate(rows) if kind != _UNUSED},
            "merges": [merge.split(" ") for merge in fields.get("merges", ())],
        },
    }
    return content, {"tokenizer_class": "PreTrainedTokenizerFast", **special}


def _plain(split: Any) -> Any:
    """A pre-tokenizer without what does not change how text is split."""
    if not isinstance(split, dict):
        return split
    fields = {key: value for key, value in split.items() if key != "trim_offsets"}
    if fields.get("type") == "ByteLevel":
        fields.setdefault("use_regex", True)
    if "pretokenizers" in fields:
        fields["pretokenizers"] = [_plain(part) for part in fields["pretokenizers"]]
    return fields
