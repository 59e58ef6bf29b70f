"""The inspection: what is wrong with the files of a model, a tokenizer or an adapter, said in one line while they load.

The libraries that read them warn and go on (a missing tensor is drawn at random), or fail somewhere inside.
"""

from collections.abc import Container
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo.options.refusal import refuse

SAVED_MODEL = "a folder that save_pretrained wrote, or a Hub name"


def check_code(name: str, value: str, settings: Any, *, trust_remote_code: bool) -> None:
    """Refuse files that want code of their own to be run, where the user has not said so.

    Raises:
        ValueError: `settings`, the content of a config.json or tokenizer_config.json, names such code.
    """
    if settings.get("auto_map") and not trust_remote_code:
        refuse(name, value, "brings code of its own (auto_map), which is not run",
               "a model without, or trust_remote_code=True")


def check_weights(name: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Refuse a model whose weights are not all there, of another shape, or not finite.

    Of a tensor in 4 bits only the scales can tell; they do where a whole block is not finite.

    Args:
        name: folder or Hub name.
        model: as loaded.
        found: the loading info of transformers.

    Raises:
        ValueError: one tensor, by name.
    """
    shape = "has another shape in its files"
    for key, what in (("missing_keys", "is not in its files"), ("mismatched_keys", shape)):
        if found[key]:
            first = min(one if isinstance(one, str) else one[0] for one in found[key])
            refuse("model_name_or_path", name, f"is not whole: {first} {what}", SAVED_MODEL)
    for tensor_name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            linear = model.get_submodule(tensor_name.rpartition(".")[0])
            if tuple(state.shape) != (linear.out_features, linear.in_features):  # transformers does not look at these
                refuse("model_name_or_path", name, f"is not whole: {tensor_name} {shape}", SAVED_MODEL)
        check_finite("model_name_or_path", name, tensor_name, parameter.data if state is None else state.offset)


def check_tokenizer(value: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a vocabulary, which is what a folder without its file comes out as.

    Raises:
        ValueError: it turns text into nothing.
    """
    if not tokenizer.encode("1 + 1", add_special_tokens=False):
        refuse("tokenizer_name_or_path", value, "has no vocabulary", "a folder that holds tokenizer.json")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, stop_tokens: Container[Any], vocab_size: int) -> None:
    """Refuse a tokenizer that does not go with the model, and a model that knows no end.

    Raises:
        ValueError: tokens without a row in the embeddings, or none that ends a text.
    """
    if tokenizer.vocab_size > vocab_size:
        refuse("tokenizer_name_or_path", tokenizer.name_or_path, f"has {tokenizer.vocab_size} tokens, but the model's "
               f"vocab_size is {vocab_size}", "the model's own tokenizer")
    if not stop_tokens:
        refuse("tokenizer_name_or_path", tokenizer.name_or_path, "has no token that ends a text",
               "eos_token in tokenizer_config.json, or eos_token_id in generation_config.json")
    for token in stop_tokens:
        if type(token) is not int or token < 0:  # one beyond the head ends nothing: the doctor warns of it
            refuse("eos_token_id", token, f"must be a token, a number from 0 below vocab_size={vocab_size}",
                   "eos_token in tokenizer_config.json and eos_token_id in generation_config.json as the model came")


def check_finite(name: str, value: str, tensor_name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of a user's file that holds NaN or an infinity, or whole numbers.

    Raises:
        ValueError: its name and its ends.
    """
    ends = torch.stack(torch.aminmax(tensor))  # a NaN anywhere makes both ends NaN
    if not tensor.is_floating_point() or not ends.isfinite().all():
        refuse(name, value, f"holds {tensor_name} with values from {ends[0].item()} to {ends[1].item()}, which must be "
               "finite floating-point numbers", "weights from before they broke")
