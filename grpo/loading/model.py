"""From a folder or Hub name to the model that trains, its tokenizer, and the sampler's copy of it."""

import timeit
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo.distributed import global_max
from grpo.loading.adapter import read_adapter, read_adapter_config
from grpo.loading.inspection import check_tokenizer, check_vocabulary, check_weights
from grpo.loading.model_config import SAVED_MODEL, check_code, read_config
from grpo.options.refusal import refusing
from grpo.sampler.decoder import Decoder
from grpo.sampler.linear import Branch, PackedWeight, Weight
from grpo.trainer.policy import REFERENCE, TRAINED, public_name, trainable

CLEARLY_FASTER = 1.5  # a ratio that noise in the measurement does not reach


def dtype_of(torch_dtype: str, device: torch.device) -> torch.dtype:
    """The type that the option names; auto is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return automatic if torch_dtype == "auto" else getattr(torch, torch_dtype)


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314)."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        # ZeRO-3 shards the packed bytes like any parameter. DeepSpeed casts a module to the engine's type and gathers
        # by type: packed bytes of another type are refused, or converted by value, which destroys the weights.
        bnb_4bit_quant_storage=dtype)


def load_base(
    name: str, *, load_in_4bit: bool, dtype: torch.dtype, device: torch.device, **hub: Any
) -> PreTrainedModel:
    """The frozen base model in train mode; `hub` is `revision` and `trust_remote_code`.

    Raises:
        ValueError: as `read_config`; or weights are missing, of another shape or not finite.
    """
    model_config = read_config(name, load_in_4bit=load_in_4bit, **hub)
    with refusing("model_name_or_path", name, "cannot be loaded", SAVED_MODEL):
        model, found = AutoModelForCausalLM.from_pretrained(
            name, config=model_config, dtype=dtype, attn_implementation="sdpa",
            quantization_config=quantization(dtype) if load_in_4bit else None,
            device_map={"": device} if load_in_4bit else None,
            use_safetensors=True,  # a .bin would be unpickled
            ignore_mismatched_sizes=True,  # check_weights names them
            output_loading_info=True, **hub)
    check_weights(name, model, found)
    # transformers ties by what the files hold: a head that differs from the embedding stays one of its own.
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # With AVX512-BF16 an eval-mode forward repacks the weight in place, but ZeRO-3 gathers the old one.
            module.support_avx512bf16_for_cpu = False
            # Files that hold NF4 bring types of their own, for the products and for the packed bytes.
            module.compute_dtype = dtype
            module.weight.data = module.weight.data.flatten().view(dtype)[:, None]
    return model.to(device).requires_grad_(False).train()


def load_tokenizer(name: str, *, chat_template: str | None = None, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name, with another chat template if one is given.

    Raises:
        ValueError: there is none, it has no vocabulary, or it brings code.
    """
    with refusing("tokenizer_name_or_path", name, "cannot be loaded", SAVED_MODEL):
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    check_code("tokenizer_name_or_path", name, tokenizer.init_kwargs, trusted=hub.get("trust_remote_code", False))
    check_tokenizer(name, tokenizer)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokenizer


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All tokens that end a text: the tokenizer's, and those of the generation config.

    Raises:
        ValueError: there is none, one is no token, or the tokenizer is larger than the model's vocabulary.
    """
    ids = model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    found = {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
    check_vocabulary(tokenizer, found, model.config.vocab_size)
    return found


def sampling_dtype(model: PreTrainedModel) -> tuple[torch.dtype, str]:
    """The type in which the sampler computes, and why: the model's, or float32 if a CPU is much faster in it.

    Collective: every rank, once; the slowest rank decides.
    """
    # float32 represents bfloat16 weights exactly: the same policy, less rounding. A float32 model is never rounded.
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        return model.dtype, "as the trainer"
    seconds = {}  # a CPU without bfloat16 instructions converts every factor
    for dtype in (torch.float32, torch.bfloat16):
        x_XH = torch.ones(64, model.config.hidden_size, dtype=dtype)
        weight_IH = torch.ones(model.config.intermediate_size, model.config.hidden_size, dtype=dtype)
        seconds[str(dtype)] = min(timeit.repeat(lambda: x_XH @ weight_IH.T, number=3, repeat=5))
    seconds = global_max(seconds)
    ratio = seconds["torch.bfloat16"] / seconds["torch.float32"]
    chosen = torch.float32 if ratio > CLEARLY_FASTER else torch.bfloat16
    return chosen, f"measured here: a product in bfloat16 takes {ratio:.2g} times as long as in float32"


@torch.no_grad()
def build_decoder(model: PreTrainedModel, *, form: str = "lora", dtype: torch.dtype | None = None) -> Decoder:
    """The sampler's copy of a model that is not sharded yet; `form` as for `grpo.sampler.linear.JoinedLinear`.

    `dtype` is that of the copy, see `sampling_dtype`; None: the model's.
    """
    dtype = dtype or model.dtype
    weight: dict[str, Weight] = {}
    lora: dict[str, Branch] = {}
    trained, seen = set(trainable(model)), set[nn.Parameter]()
    for name, module in model.named_modules():
        if "lora_" in name or ".original_module" in name or f".modules_to_save.{REFERENCE}" in name:
            continue
        if isinstance(module, LoraLayer):
            A_RI, B_OR = (parts[TRAINED].weight.data for parts in (module.lora_A, module.lora_B))
            lora[name] = A_RI.to(dtype), B_OR.to(dtype), module.scaling[TRAINED]
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter in seen:  # a head that is the embedding, which comes first
                continue
            seen.add(parameter)
            value = parameter.data
            packed = isinstance(parameter, bnb.nn.Params4bit)
            weight[public_name(f"{name}.{leaf}")] = (
                PackedWeight(value, parameter.quant_state, dtype) if packed else value.to(dtype))
    return Decoder(model.config, weight, lora, form=form, trained=trained)


def load_decoder(
    model_name_or_path: str, *, adapter: str | None, load_in_4bit: bool, dtype: torch.dtype, device: torch.device,
    chat_template: str | None = None, **hub: Any,
) -> tuple[Decoder, PreTrainedTokenizerBase, set[int]]:
    """A sampler for evaluation, with its tokenizer and stop tokens; chat_template as for `load_tokenizer`."""
    if adapter is not None:
        read_adapter_config(adapter)  # what can be refused without weights comes before they are loaded
    model = load_base(model_name_or_path, load_in_4bit=load_in_4bit, dtype=dtype, device=device, **hub)
    if adapter is not None:
        read_adapter(model, adapter, is_trainable=False)
    tokenizer = load_tokenizer(model_name_or_path, chat_template=chat_template, **hub)
    return build_decoder(model), tokenizer, stop_token_ids(model, tokenizer)
