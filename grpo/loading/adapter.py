"""LoRA branches put into a base, fresh or from peft's files. Nothing is ever unpickled."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from grpo.config import Config
from grpo.loading.inspection import check_finite
from grpo.options.refusal import SHORT, nearest, refuse, refusing
from grpo.sampler.supported import LORA_MODULES
from grpo.trainer.policy import REFERENCE, TRAINED

SAVED_ADAPTER = "a folder that peft's save_pretrained or a run of this project wrote"
# Fields of peft's config that may be set in plain LoRA: where its branches are, their size, and how they started.
PLAIN = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "ensure_weight_tying", "eva_config",
    "fan_in_fan_out",  # peft itself sets it right for a linear module
}
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # values of init_lora_weights; all others change the base


def add_adapter(model: PreTrainedModel, config: Config, dtype: torch.dtype) -> PeftConfig:
    """Inject LoRA into the base, in place: fresh, or from `adapter_name_or_path` with a frozen copy as the reference.

    Returns peft's description of the adapter, which an export writes next to the weights.

    Raises:
        ValueError: as `read_adapter`; or `lora_r` or `lora_modules_to_save` do not fit the model.
    """
    if config.adapter_name_or_path is None:
        if config.lora_r > model.config.hidden_size:
            refuse("lora_r", config.lora_r, "is above hidden_size, the highest useful rank", model.config.hidden_size)
        _check_modules("lora_modules_to_save", config.lora_modules_to_save, model)
        tied = bool(model.config.tie_word_embeddings and config.lora_modules_to_save)
        lora = LoraConfig(
            r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_target_modules), modules_to_save=list(config.lora_modules_to_save) or None,
            ensure_weight_tying=tied,  # else the two copies of a tied weight train apart
            task_type="CAUSAL_LM")
        peft_model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    else:
        peft_model = read_adapter(model, config.adapter_name_or_path, is_trainable=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if config.adapter_name_or_path is not None:
        _copy_as_reference(model)
    kind = peft_model.peft_config[TRAINED]
    if os.path.exists(config.model_name_or_path):  # whoever loads the adapter is in another folder
        kind.base_model_name_or_path = os.path.abspath(config.model_name_or_path)
    return kind


def _copy_as_reference(model: PreTrainedModel) -> None:
    """Add a frozen copy of the adapter under the name REFERENCE: with the bare base the KL at step 0 would not be 0."""
    # peft could load the adapter a second time, but then gives a tied head no copy.
    copies: dict[int, Any] = {}  # deepcopy's memory: tied weights stay tied
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for parts in (module.lora_A, module.lora_B):
                parts[REFERENCE] = copy.deepcopy(parts[TRAINED], copies).requires_grad_(False)
            module.lora_dropout[REFERENCE] = nn.Identity()  # what the reference says must not be random
            module.scaling[REFERENCE] = module.scaling[TRAINED]
        elif isinstance(module, ModulesToSaveWrapper):
            saved = module.modules_to_save
            saved[REFERENCE] = copy.deepcopy(saved[TRAINED], copies).requires_grad_(False)
            module._adapters.add(REFERENCE)


def read_adapter(model: PreTrainedModel, path: str, *, is_trainable: bool) -> PeftModel:
    """A peft adapter from safetensors, injected into the base.

    Raises:
        ValueError: as `read_adapter_config`; or the adapter is for another model, or not finite.
    """
    kind = read_adapter_config(path)
    with refusing("adapter_name_or_path", path, "cannot be loaded", SAVED_ADAPTER):
        tensors = load_file(Path(path) / "adapter_model.safetensors")
    _check_modules("modules_to_save", kind.modules_to_save or [], model)
    foreign = _foreign(model, tensors)
    made_for = f"was made for {kind.base_model_name_or_path}, not for this model"
    with refusing("adapter_name_or_path", path, made_for, SAVED_ADAPTER):
        peft_model = PeftModel.from_pretrained(
            model, path, TRAINED, is_trainable=is_trainable, autocast_adapter_dtype=False)
    _check_tensors(path, peft_model, tensors, foreign)
    return peft_model


def read_adapter_config(path: str) -> PeftConfig:
    """An adapter's description, without weights.

    Raises:
        ValueError: the folder is no adapter in safetensors, or not plain LoRA.
    """
    if not (Path(path) / "adapter_model.safetensors").is_file():  # an adapter_model.bin would be unpickled
        refuse("adapter_name_or_path", path, "is no adapter folder: it has no adapter_model.safetensors", SAVED_ADAPTER)
    with refusing("adapter_name_or_path", path, "is no adapter", SAVED_ADAPTER):
        written = PeftConfig.from_json_file(str(Path(path) / "adapter_config.json"))
        kind = PeftConfig.from_pretrained(path)
    _check_kind(path, kind, written)
    return kind


def _check_kind(path: str, kind: PeftConfig, written: dict[str, Any]) -> None:
    """Refuse an adapter that is not plain LoRA on named linear layers."""
    if type(kind) is not LoraConfig:  # AdaLoRA's is a subclass
        refuse("adapter_name_or_path", path, f"is not plain LoRA: peft_type is {written.get('peft_type')}",
               SAVED_ADAPTER)
    default = LoraConfig().to_dict()
    # The file may have fields of a newer peft, which this one ignores; set, they change what the adapter computes.
    for name, value in (written | kind.to_dict()).items():
        plain = value in STARTS if name == "init_lora_weights" else name in PLAIN
        if value and not plain and value != default.get(name):
            refuse("adapter_name_or_path", path, f"is not plain LoRA: {name} is {SHORT.repr(value)}", SAVED_ADAPTER)
    if not kind.target_modules or kind.task_type not in (None, "CAUSAL_LM"):
        refuse("adapter_name_or_path", path, "must be LoRA of target_modules, for the task CAUSAL_LM", SAVED_ADAPTER)


def _foreign(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> set[str]:
    """Names of tensors that are not the bare model's own; peft adds some of those where it saves embeddings."""
    base = {f"base_model.model.{name}": one.data for name, one in model.named_parameters(remove_duplicate=False)}
    return {name for name, tensor in tensors.items()
            if name not in base or not torch.equal(tensor.to(base[name]), base[name])}


def _check_tensors(path: str, model: PeftModel, tensors: dict[str, torch.Tensor], foreign: set[str]) -> None:
    """Refuse an adapter whose tensors do not match its description and the model, or are not finite."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and name.rpartition(".")[2] not in LORA_MODULES:
            refuse("adapter_name_or_path", path, f"has a branch on {name}, which is none of {', '.join(LORA_MODULES)}",
                   SAVED_ADAPTER)
    wanted = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False).keys()
    # peft puts any other tensor into the base, or passes over it: no export would have it.
    wrong = [(wanted - tensors.keys(), "is missing in adapter_model.safetensors"),
             (foreign - wanted, "has no place in this model, or is in neither target_modules nor modules_to_save")]
    for names, what in wrong:
        if names:
            refuse("adapter_name_or_path", path, f"was not made for this model: {min(names)} {what}", SAVED_ADAPTER)
    for name, tensor in tensors.items():
        check_finite("adapter_name_or_path", path, name, tensor)


def _check_modules(name: str, wanted: Iterable[str], model: nn.Module) -> None:
    """Refuse wanted names that match no module with weights of its own that are not packed."""
    paths = [f".{path}" for path, module in model.named_modules()
             if type(module).__name__ != "Linear4bit" and next(module.parameters(recurse=False), None) is not None]
    for one in wanted:
        if not any(path.endswith(f".{one}") for path in paths):
            refuse(name, one, "is no module that can be trained whole",
                   nearest(one, dict.fromkeys(path.rpartition(".")[2] for path in paths)))
