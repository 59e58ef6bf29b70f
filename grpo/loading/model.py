"""From a model folder or name to the parts a run needs: the trainable model, its tokenizer, and the rollout copy.

The base is quantised to NF4 with double quantisation (QLoRA, arXiv 2305.14314) and carries LoRA side branches.
Under ZeRO-3 the packed 4-bit bytes are sharded like any other parameter, which works only if their storage type is the
engine's own type; see `quantization`.
"""

import timeit

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo.distributed import global_max
from grpo.loading.adapter import read_adapter
from grpo.loading.inspection import SAVED_MODEL, check_code, check_tokenizer, check_vocabulary, check_weights
from grpo.options.refusal import refusing
from grpo.sampler.decoder import Decoder, check_supported
from grpo.sampler.linear import Branch, PackedWeight, Weight
from grpo.trainer.policy import REFERENCE, TRAINED, public_name, trainable

NF4_BLOCK = 64  # weights that share one scale
CLEARLY_FASTER = 1.5  # a ratio that noise does not reach


def dtype_of(torch_dtype: str, device: torch.device) -> torch.dtype:
    """The type of weights and activations that an option names; auto is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return automatic if torch_dtype == "auto" else getattr(torch, torch_dtype)


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, the packed bytes stored as `dtype`.

    DeepSpeed casts the module to the engine's type and gathers by type: any other storage type is either refused or
    silently converted by value, which destroys the packed weights.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def load_base(name: str, *, load_in_4bit: bool, dtype: torch.dtype, device: torch.device, **hub) -> PreTrainedModel:
    """The frozen base model in train mode.

    Args:
        name: folder or Hub name.
        load_in_4bit: quantise its linear layers.
        dtype: type of weights and activations.
        device: where it is loaded.
        hub: `revision`, `trust_remote_code`.

    Raises:
        ValueError: the name is no model, its weights are not whole or not finite, or as `read_config`.
    """
    model_config = read_config(name, load_in_4bit=load_in_4bit, **hub)
    with refusing("model_name_or_path", name, "cannot be loaded", SAVED_MODEL):
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            config=model_config,
            dtype=dtype,
            attn_implementation="sdpa",
            quantization_config=quantization(dtype) if load_in_4bit else None,
            device_map={"": device} if load_in_4bit else None,
            use_safetensors=True,  # a .bin would be unpickled
            ignore_mismatched_sizes=True,  # named below
            output_loading_info=True,
            **hub,
        )
    check_weights(name, model, found)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On CPUs with AVX512-BF16 an eval-mode forward repacks the weight in place, and ZeRO-3 gathers the old one.
            module.support_avx512bf16_for_cpu = False
    return model.to(device).requires_grad_(False).train()


def read_config(name: str, *, load_in_4bit: bool, **hub) -> PretrainedConfig:
    """The model's config, alone.

    Raises:
        ValueError: the name is no model, wants code of its own, is not implemented in the decoder, or NF4 cannot
            quantise its dimensions.
    """
    with refusing("model_name_or_path", name, "is no model", SAVED_MODEL):
        model_config = AutoConfig.from_pretrained(name, **hub)
    trusted = hub.get("trust_remote_code", False)
    check_code("model_name_or_path", name, model_config.to_dict(), trust_remote_code=trusted)
    check_supported(model_config)
    if load_in_4bit:
        _check_dimensions(model_config)
    return model_config


def _check_dimensions(model_config: PretrainedConfig) -> None:
    for field in ("hidden_size", "intermediate_size"):
        value = getattr(model_config, field)
        if value % NF4_BLOCK:
            nearest = max(round(value / NF4_BLOCK), 1) * NF4_BLOCK
            raise ValueError(
                f"load_in_4bit=True with {field}={value}: NF4 needs a multiple of {NF4_BLOCK}; nearest: {nearest}, "
                "or load_in_4bit=False"
            )


def load_tokenizer(name: str, **hub) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or name.

    Raises:
        ValueError: there is none, or it has no vocabulary, or wants code of its own.
    """
    with refusing("tokenizer_name_or_path", name, "cannot be loaded", SAVED_MODEL):
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    trusted = hub.get("trust_remote_code", False)
    check_code("tokenizer_name_or_path", name, tokenizer.init_kwargs, trust_remote_code=trusted)
    check_tokenizer(name, tokenizer)
    return tokenizer


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a text: the tokenizer's, and all of the generation config's.

    Raises:
        ValueError: there is none, or the model has no such token.
    """
    ids = model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    found = {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
    check_vocabulary(tokenizer, found, model.config.vocab_size)
    return found


def sampling_dtype(model: PreTrainedModel) -> tuple[torch.dtype, str]:
    """What the rollout copy computes in, and why: the model's type, unless a CPU is much faster in float32.

    Processors without bfloat16 instructions convert every factor. Float32 holds bfloat16 weights exactly, so the copy
    samples from the same policy with less rounding. A float32 model is never rounded for speed.

    Collective: every rank, once; the slowest counts.
    """
    if model.dtype != torch.bfloat16 or model.device.type != "cpu":
        return model.dtype, "as the trainer"
    seconds = {}
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
    """The rollout copy, which computes what the engine does: 4-bit weights unpacked once, LoRA kept as side branches.

    Call it before the engine shards the model: here every rank still holds all weights.

    Args:
        model: the model as the engine will train it.
        form: how the copy holds its weights, see `grpo.sampler.linear.JoinedLinear`.
        dtype: of the copy; None: the model's. See `sampling_dtype`.
    """
    dtype = dtype or model.dtype
    weight: dict[str, Weight] = {}
    lora: dict[str, Branch] = {}
    trained = set(trainable(model))
    for name, module in model.named_modules():
        if "lora_" in name or ".original_module" in name or f".modules_to_save.{REFERENCE}" in name:
            continue
        if isinstance(module, LoraLayer):
            A_RI, B_OR = (parts[TRAINED].weight.data for parts in (module.lora_A, module.lora_B))
            lora[name] = A_RI.to(dtype), B_OR.to(dtype), module.scaling[TRAINED]
        for leaf, parameter in module.named_parameters(recurse=False):
            value = parameter.data
            if isinstance(parameter, bnb.nn.Params4bit):
                weight[public_name(f"{name}.{leaf}")] = PackedWeight(value, parameter.quant_state, dtype)
            else:
                weight[public_name(f"{name}.{leaf}")] = value.to(dtype)
    if model.config.tie_word_embeddings:
        weight.pop("lm_head.weight", None)
    return Decoder(model.config, weight, lora, form=form, trained=trained)


def load_decoder(
    model_name_or_path: str,
    *,
    adapter: str | None,
    load_in_4bit: bool,
    dtype: torch.dtype,
    device: torch.device,
    revision: str = "main",
    trust_remote_code: bool = False,
) -> tuple[Decoder, PreTrainedTokenizerBase, set[int]]:
    """A decoder for evaluation, with its tokenizer and stop tokens; the training model is dropped again."""
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    model = load_base(model_name_or_path, load_in_4bit=load_in_4bit, dtype=dtype, device=device, **hub)
    if adapter is not None:
        read_adapter(model, adapter, is_trainable=False)
    tokenizer = load_tokenizer(model_name_or_path, **hub)
    return build_decoder(model), tokenizer, stop_token_ids(model, tokenizer)
