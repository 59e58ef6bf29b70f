"""Is something wrong with the files of a model, a tokenizer or an adapter? Each check refuses in one line.

The libraries that read these files only warn (and draw a missing tensor at random), or fail somewhere inside.
"""

from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo.loading.model_config import SAVED_MODEL
from grpo.options.refusal import refuse


def check_weights(name: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Refuse a model with weights that are missing, in excess, of another shape, or not finite.

    `found` is its loading report.
    """
    shape = "has another shape in its files"
    for key, what in (("missing_keys", "is not in its files"), ("mismatched_keys", shape)):
        if found[key]:
            first = min(one if isinstance(one, str) else one[0] for one in found[key])
            refuse("model_name_or_path", name, f"is not complete: {first} {what}", SAVED_MODEL)
    modules, buffers = dict(model.named_modules()), dict(model.named_buffers())
    # transformers passes over them: a bias or a scale that the config does not tell of.
    foreign = [one for one in found["unexpected_keys"] if one.rpartition(".")[0] in modules and one not in buffers]
    if foreign:
        refuse("model_name_or_path", name, f"does not go with its config.json, by which {min(foreign)} has no place",
               SAVED_MODEL)
    for tensor_name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            linear = model.get_submodule(tensor_name.rpartition(".")[0])
            if tuple(state.shape) != (linear.out_features, linear.in_features):  # transformers does not check these
                refuse("model_name_or_path", name, f"is not complete: {tensor_name} {shape}", SAVED_MODEL)
        # A tensor in 4 bits shows it only in its scales, and only if a whole block is not finite.
        check_finite("model_name_or_path", name, tensor_name, parameter.data if state is None else state.offset)


def check_tokenizer(value: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a vocabulary: transformers makes one if a folder has no tokenizer file."""
    if not tokenizer.encode("1 + 1", add_special_tokens=False):
        refuse("tokenizer_name_or_path", value, "has no vocabulary", "a folder with tokenizer.json")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, stop_tokens: Collection[Any], vocab_size: int) -> None:
    """Refuse a tokenizer with more tokens than the model, stop tokens that are no tokens, and a model without one."""
    if tokenizer.vocab_size > vocab_size:
        refuse("tokenizer_name_or_path", tokenizer.name_or_path, f"has {tokenizer.vocab_size} tokens, but the model's "
               f"vocab_size is {vocab_size}", "the model's own tokenizer")
    for token in stop_tokens:
        if type(token) is not int or token < 0:
            refuse("eos_token_id", token, f"must be a token, a number from 0 below vocab_size={vocab_size}",
                   "eos_token in tokenizer_config.json and eos_token_id in generation_config.json as the model came")
    # One beyond the vocabulary is never sampled: beside another it does no harm, and the doctor warns of it.
    if not any(token < vocab_size for token in stop_tokens):
        beyond = f"{min(stop_tokens)} is not below vocab_size={vocab_size}" if stop_tokens else "it has none"
        refuse("tokenizer_name_or_path", tokenizer.name_or_path, f"has no token that ends a text: {beyond}",
               "eos_token in tokenizer_config.json, or eos_token_id in generation_config.json")


def check_finite(name: str, value: str, tensor_name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with NaN, an infinity or integers."""
    ends = torch.stack(torch.aminmax(tensor))  # a NaN anywhere makes both ends NaN
    if not tensor.is_floating_point() or not ends.isfinite().all():
        refuse(name, value, f"holds {tensor_name} with values from {ends[0].item()} to {ends[1].item()}, which must be "
               "finite floating-point numbers", "weights from before they broke")
