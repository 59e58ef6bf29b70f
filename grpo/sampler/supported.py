"""What the sampler implements. Imports no torch, so that `--plan` answers at once."""

from typing import Any

MODEL_TYPES = ("qwen2", "qwen3", "llama")
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFILL_TOKENS = 4096  # of one forward over the rests of prompts: bounds its activations


def check_supported(config: Any) -> None:
    """ValueError for what the sampler would silently compute wrong; a config as transformers or `--plan` reads it."""
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"model_type={config.model_type!r} is not one of {', '.join(MODEL_TYPES)}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError("use_sliding_window=True is not implemented in the sampler; set use_sliding_window to False")
    if (rope_type := config.rope_parameters["rope_type"]) not in ("default", "llama3"):
        raise ValueError(f"rope_type={rope_type!r} is not implemented in the sampler; use 'default' or 'llama3'")
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act={config.hidden_act!r} is not implemented in the sampler; use 'silu'")
