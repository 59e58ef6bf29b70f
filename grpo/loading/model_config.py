"""The config of a model, read before its weights. Imports no torch, so that `--plan` answers at once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grpo.options.refusal import SHORT, refuse, refusing
from grpo.sampler.supported import MODEL_TYPES, check_supported

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SAVED_MODEL = "a folder that save_pretrained wrote, or a Hub name"
NF4_BLOCK = 64  # weights that share one scale
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size")
# What else a plain config.json may hold: a setting with another type, or another value than these, is not plain.
PLAIN_TYPES = {
    "architectures": (list,), "attention_bias": (bool,), "attention_dropout": (float, int),
    "bos_token_id": (int, type(None)), "dtype": (str,), "eos_token_id": (int,), "head_dim": (int,),
    "hidden_act": (str,), "initializer_range": (float,), "layer_types": (list,), "max_position_embeddings": (int,),
    "max_window_layers": (int,), "mlp_bias": (bool,), "model_type": (str,), "pad_token_id": (int, type(None)),
    "pretraining_tp": (int,), "rms_norm_eps": (float,), "rope_parameters": (dict,), "rope_scaling": (type(None),),
    "rope_theta": (float, int), "sliding_window": (int, type(None)), "tie_word_embeddings": (bool,),
    "torch_dtype": (str,), "transformers_version": (str,), "use_cache": (bool,), "use_mrope": (bool,),
    "use_sliding_window": (bool,), **dict.fromkeys(SIZES, (int,)),
}
FLOATS = ("bfloat16", "float16", "float32")
PLAIN_VALUES = {"dtype": FLOATS, "hidden_act": ("silu",), "initializer_range": (0.02,), "model_type": MODEL_TYPES,
                "torch_dtype": FLOATS, "use_sliding_window": (False,)}


def read_config(name: str, *, load_in_4bit: bool, **hub: Any) -> "PretrainedConfig":
    """The model's config, without weights.

    Raises:
        ValueError: no model, one that brings code, that the sampler does not implement, that is quantised in another
            way than NF4, or whose sizes NF4 cannot pack.
    """
    from transformers import AutoConfig  # here, because it takes 5 s, and a plan mostly does without

    with refusing("model_name_or_path", name, "is no model", SAVED_MODEL):
        model_config = AutoConfig.from_pretrained(name, **hub)
    check_code("model_name_or_path", name, model_config.to_dict(), trusted=hub.get("trust_remote_code", False))
    check_supported(model_config)
    _check_quantised(name, model_config.to_dict(), load_in_4bit=load_in_4bit)
    if load_in_4bit:
        _check_dimensions(model_config)
    return model_config


def read_sizes(name: str, *, load_in_4bit: bool, **hub: Any) -> "PretrainedConfig | SimpleNamespace":
    """The config as far as the ledger reads it: from config.json alone where that is plain, else as `read_config`.

    Raises:
        ValueError: as `read_config`.
    """
    plain = _plain(Path(name) / "config.json")
    if plain is None:
        return read_config(name, load_in_4bit=load_in_4bit, **hub)
    config = SimpleNamespace(**plain)
    if load_in_4bit:
        _check_dimensions(config)
    return config


def check_code(name: str, value: str, settings: dict[str, Any], *, trusted: bool) -> None:
    """Refuse files whose config.json or tokenizer_config.json (`settings`) names code to run, unless it is trusted."""
    if settings.get("auto_map") and not trusted:
        refuse(name, value, "brings its own code (auto_map), which is not run",
               "a model without code, or trust_remote_code=True")


def _plain(path: Path) -> dict[str, Any] | None:
    """The settings of a file where transformers would add nothing that the ledger reads, nor refuse any; else None.

    No default of transformers is repeated here: a file that leaves a size to them is not plain.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if type(found) is not dict or not {"model_type", "tie_word_embeddings", *SIZES} <= found.keys():
        return None
    if any(type(value) not in PLAIN_TYPES.get(name, ()) or value not in PLAIN_VALUES.get(name, (value,))
           for name, value in found.items()):
        return None
    heads, rest = divmod(found["hidden_size"], max(found["num_attention_heads"], 1))
    head_dim = found.get("head_dim", None if found["model_type"] == "qwen3" else heads)
    rope = found.get("rope_parameters", {"rope_type": "default", "rope_theta": 1.0})
    plain = (
        min(found[name] for name in SIZES) > 0 and rest == 0 and head_dim and head_dim % 2 == 0
        and set(map(type, found.get("architectures", []))) <= {str}
        and found.get("layer_types") in (None, ["full_attention"] * found["num_hidden_layers"])
        and rope.keys() == {"rope_type", "rope_theta"} and rope["rope_type"] == "default"
        and type(rope["rope_theta"]) in (int, float))
    return found if plain else None


def _check_quantised(name: str, settings: dict[str, Any], *, load_in_4bit: bool) -> None:
    """Refuse files that are quantised, apart from those in NF4 as `grpo.loading.model.quantization` makes it."""
    found = settings.get("quantization_config") or settings.get("compression_config")
    if not found:
        return
    method = found.get("quant_method") or "a method that it does not name"
    if found.get("load_in_8bit"):
        method += " in 8 bits"
    elif found.get("load_in_4bit"):
        kind, twice = found.get("bnb_4bit_quant_type", "fp4"), found.get("bnb_4bit_use_double_quant", False)
        apart = [one for one in found.get("llm_int8_skip_modules") or [] if one != "lm_head"]
        if kind == "nf4" and twice and not apart:
            if not load_in_4bit:
                refuse("load_in_4bit", False, f"is not true of {name}, whose files hold NF4 already", True)
            return
        without = "" if twice else " without double quantisation"
        method += f" in {kind}{without}" + (f", apart from {SHORT.repr(apart)}" if apart else "")
    refuse("model_name_or_path", name, f"is quantised by {method}, which is not implemented",
           "the model that it was made from; load_in_4bit makes it NF4 with double quantisation")


def _check_dimensions(model_config: Any) -> None:
    for field in ("hidden_size", "intermediate_size"):
        value = getattr(model_config, field)
        if value % NF4_BLOCK:
            refuse("load_in_4bit", True,
                   f"needs a {field} that is a multiple of {NF4_BLOCK}; the model has {field}={value}", False)
