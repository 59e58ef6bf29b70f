"""The policy: a base with LoRA branches, its frozen reference, and what both say of a packed batch's tokens.

The reference is the policy of step 0: the base without a fresh adapter, a frozen copy of an adapter that training
starts from, or, without LoRA, a frozen copy of the model. So the KL at step 0 is exactly 0, unless a start adapter has
dropout, which the policy applies while it trains, and neither the reference nor the sampler does.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from grpo.trainer.packed_attention import NAME, Tree, padded_length
from grpo.types import Batch
from kernels import LogprobOutput, fused_logprob

TRAINED = "default"  # peft's name for the adapter being trained
REFERENCE = "reference"  # the frozen copy of a start adapter; if there is none, the base alone answers


def public_name(name: str) -> str:
    """A parameter's name without peft's wrappers, as the sampler, an export and a checkpoint use it."""
    for wrapper in (".base_layer", f".modules_to_save.{TRAINED}", f".{TRAINED}"):
        name = name.replace(wrapper, "")
    return name


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by public name, a tied weight once."""
    return {public_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Head(nn.Module):
    """The language-model head: hidden states to log-probabilities. A module, so that ZeRO-3 gathers its weight."""

    def __init__(self, lm_head: nn.Module, frozen_lm_head: nn.Module | None) -> None:
        super().__init__()
        self.lm_head, self.frozen_lm_head = lm_head, frozen_lm_head

    def weight(self, *, reference: bool) -> torch.Tensor:
        """[V, H] the head's weight in the policy, or in its reference."""
        if reference and self.frozen_lm_head is not None:
            return self.frozen_lm_head.weight
        if not isinstance(self.lm_head, ModulesToSaveWrapper):
            return self.lm_head.weight
        copies, adapter = self.lm_head.modules_to_save, REFERENCE if reference else TRAINED
        return (copies[adapter] if adapter in copies else self.lm_head.original_module).weight

    def forward(
        self, hidden_KH: torch.Tensor, target_K: torch.Tensor, *, reference: bool = False,
        ref_hidden_KH: torch.Tensor | None = None, **options: Any,
    ) -> LogprobOutput:
        if ref_hidden_KH is not None:
            options |= {"kl": "exact", "ref_hidden_LH": ref_hidden_KH, "ref_weight_VH": self.weight(reference=True)}
        return fused_logprob(hidden_KH, self.weight(reference=reference), target_K, **options)


class PolicyOutput(NamedTuple):
    """What a policy says of a packed batch's completion tokens, float32 in nats; None for what was not asked."""

    logprob_K: torch.Tensor
    entropy_K: torch.Tensor | None = None
    kl_K: torch.Tensor | None = None  # KL to the reference over the whole vocabulary
    hidden_KH: torch.Tensor | None = None  # final hidden states of the reference, for that KL, in the model's type


class Policy(nn.Module):
    """Log-probabilities of packed batches, as the policy or as its reference.

    They are at the temperature at which the tokens were sampled. `frozen_copy` keeps a second, frozen model as the
    reference, for training without an adapter; `impl` as for `kernels.fused_logprob`.
    """

    def __init__(
        self, model: PreTrainedModel, *, temperature: float = 1.0, frozen_copy: bool = False, impl: str = "auto"
    ) -> None:
        super().__init__()
        model.set_attn_implementation(NAME)
        self.model = model
        self.frozen_model = copy.deepcopy(model).requires_grad_(False) if frozen_copy else None
        self.head = Head(model.lm_head, self.frozen_model.lm_head if frozen_copy else None)
        self.options = {"temperature": temperature, "impl": impl}

    def forward(
        self, batch: Batch, *, reference: bool = False, ref_hidden_KH: torch.Tensor | None = None, entropy: bool = False
    ) -> PolicyOutput:
        """What the policy says of the K tokens; `reference`: what the policy of step 0 says, without gradient.

        kl_K is computed if `ref_hidden_KH` is given, the reference's hidden states of this batch.

        Collective: under ZeRO-3 every rank calls this equally often, with the same values of `reference`.
        """
        # ZeRO-3 gathers shards around a module's forward, so every use of a weight is in here.
        if reference:
            model = self.frozen_model or self.model
            with torch.no_grad(), active_adapter(model, REFERENCE):
                hidden_KH = hidden_states(model, batch)
                output = self.head(hidden_KH, batch.target_K, reference=True, **self.options)
            return PolicyOutput(output.logprob_L, hidden_KH=hidden_KH)
        hidden_KH = hidden_states(self.model, batch)
        output = self.head(hidden_KH, batch.target_K, ref_hidden_KH=ref_hidden_KH, entropy=entropy, **self.options)
        return PolicyOutput(*output)


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[K, H] the final hidden states that predict completion tokens; no other position reaches the head."""
    if batch.token_L.is_cuda:
        batch = batch.padded(padded_length(len(batch.token_L)))
    hidden_LH = model.model(
        input_ids=batch.token_L[None], position_ids=batch.position_L[None], use_cache=False, tree=Tree(batch)
    ).last_hidden_state[0]
    return hidden_LH[batch.source_K]


@contextmanager
def active_adapter(model: nn.Module, adapter: str) -> Iterator[None]:
    """Let every adapter layer answer as `adapter`; a layer that has no such adapter answers as the base."""
    # peft's own switch also changes requires_grad, on which DeepSpeed's optimizer relies.
    layers = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [adapter]
    try:
        yield
    finally:
        for layer, names in zip(layers, before):
            layer._active_adapter = names
