"""A model that serves: the base with the adapter's branches added to its weights, W + (lora_alpha / r) B A."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from data.example import Example
from data.prompt_ids import end_of_turn
from grpo.export.source import Source
from grpo.loading.adapter import read_adapter
from grpo.loading.model import load_base, load_tokenizer, stop_token_ids
from grpo.loading.model_config import SAVED_MODEL
from grpo.options.refusal import refuse, refusing
from grpo.saving.sealed_folder import make_readable

# What changes the distribution that was trained: a server would apply it without being asked.
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
            "no_repeat_ngram_size", "num_beams", "length_penalty")


def merged(source: Source, dtype: torch.dtype) -> PreTrainedModel:
    """The model with what was trained in its own weights, which are rounded to `dtype` once. On the CPU.

    Raises:
        ValueError: the base or the adapter cannot be loaded, or they do not fit together.
    """
    config, cpu = source.config, torch.device("cpu")
    hub = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    if source.adapter is None:
        return load_base(str(source.model), load_in_4bit=False, dtype=dtype, device=cpu).eval()
    with refusing("model", source.base, "is no model", SAVED_MODEL):
        settings = AutoConfig.from_pretrained(source.base, **hub).to_dict()
    if settings.get("quantization_config"):
        refuse("model", source.base, "is quantised, and an adapter is merged into the weights that this was made from",
               "--model with their folder or Hub name")
    # In float32: in bfloat16 the sum would be rounded, and before it the product.
    model = load_base(source.base, load_in_4bit=False, dtype=torch.float32, device=cpu, **hub)
    model = read_adapter(model, str(source.adapter), is_trainable=False).merge_and_unload()
    # Else transformers would write a head that was trained apart from the embedding as the embedding.
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model.to(dtype).eval()


def tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of the run, with its chat template."""
    config = source.config
    return load_tokenizer(config.tokenizer_name_or_path or source.base, chat_template=config.chat_template,
                          revision=config.model_revision, trust_remote_code=config.trust_remote_code)


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example, source: Source
) -> tuple[GenerationConfig, list[str]]:
    """How the model is to be used: it ends where it ended in the training, and samples from what was trained.

    Returns it, and a line for each setting of the base that is left out for that.
    """
    ends = stop_token_ids(model, tokenizer) | end_of_turn(
        tokenizer, example.prompt, source.config.chat_template_kwargs)
    old, new = model.generation_config, GenerationConfig()
    new.bos_token_id, new.pad_token_id = old.bos_token_id, old.pad_token_id
    new.eos_token_id = sorted(end for end in ends if end < model.config.vocab_size)
    default = GenerationConfig()
    left = [f"{name}={value} of the base's generation_config.json is left out: the model was trained without it"
            for name in SAMPLING if (value := getattr(old, name, None)) not in (None, getattr(default, name, None))]
    return new, left


def write(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig
) -> None:
    """Write the model in transformers' layout; a folder of this name is complete. OSError where the disk is full."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = generation
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    make_readable(partial)
    partial.rename(folder)
