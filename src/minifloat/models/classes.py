"""Which automatic class of transformers a checkpoint asks for."""

from typing import Any


def auto_class(config: Any) -> Any:
    """`AutoModelForImageTextToText` for a vision-language model, else `AutoModelForCausalLM`.

    Some configurations serve both (Gemma 3, Llama 4): there the checkpoint's own class decides.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    names = getattr(config, "architectures", None) or [""]
    reads_pictures = type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if reads_pictures and not names[0].endswith("ForCausalLM"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM
