"""The policy under DeepSpeed ZeRO: gradients, AdamW steps, and whole weights for the sampler and for checkpoints."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from grpo.distributed import deepspeed, global_max, world_size
from grpo.health.pulse import pulse
from grpo.trainer.policy import Policy, trainable

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names of m and v


class Engine:
    """A policy sharded by DeepSpeed, with its AdamW; `settings` as `zero_config` gives them.

    Weights that are trained whole besides LoRA have `whole_rate` times the learning rate.

    Collective: building it, every call, `backward`, `step` and `gathered`.
    """

    def __init__(
        self, policy: Policy, settings: dict[str, Any], adamw: dict[str, Any], *, whole_rate: float = 1.0
    ) -> None:
        self.policy = policy
        self.stage = settings["zero_optimization"]["stage"]
        self.trainable = trainable(policy.model)
        kinds: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.trainable.items():
            kinds.setdefault(1.0 if ".lora_" in name else whole_rate, []).append(parameter)
        self.rates = list(kinds)  # of each group, over the learning rate
        optimizer = torch.optim.AdamW([{"params": group} for group in kinds.values()], **adamw)
        self.deepspeed, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self.deepspeed.train()  # in eval mode activation checkpointing would be off, without a warning
        if self.stage == 0:
            self._adamw().state.clear()  # DeepSpeed's bfloat16 wrapper has already counted a step of zero gradients
        self.optimizer_steps = self.skipped_steps = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        pulse.progress()
        return self.deepspeed(*args, **options)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; after the step's last micro-batch the gradients of all ranks are summed.

        `loss` is this rank's part of the global sum, already divided by the global denominator.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks, but our loss is a sum: this factor undoes it, here and nowhere else.
        self.deepspeed.backward(loss * world_size())
        if not last:
            self.deepspeed.step()  # counts the micro-batch; the weights move only at the boundary

    @property
    def can_discard(self) -> bool:
        """Whether `discard` leaves nothing: at stages 1 and 2 DeepSpeed adds micro-batches up in places of its own."""
        return self.stage in (0, 3)

    def discard(self) -> None:
        """Drop the gradient since the last step, also that of a backward that failed halfway.

        For one rank only, where `can_discard`.
        """
        for parameter in self.trainable.values():
            parameter.grad = None
        self.deepspeed.optimizer.zero_grad()
        if self.stage == 3:
            # A backward that failed leaves gradients in DeepSpeed's buckets.
            for bucket in self.deepspeed.optimizer.ipg_buckets.values():
                bucket.clear_params()
            self.deepspeed.optimizer.empty_partition_cache()

    def step(self, learning_rate: float) -> float:
        """Clip and apply the summed gradient; its global norm before clipping.

        A gradient that is not finite is dropped on all ranks, and its norm is inf.
        """
        for group, rate in zip(self.deepspeed.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = learning_rate * rate
        if self.stage == 0:
            # Without ZeRO the gradients are plain and equal on all ranks, and DeepSpeed would apply a NaN.
            norm = float(torch.nn.utils.clip_grad_norm_(self.trainable.values(), float("inf")))
            if not torch.isfinite(torch.tensor(norm)):
                self.deepspeed.optimizer.zero_grad()
        self.deepspeed.step()
        norm = norm if self.stage == 0 else float(self.deepspeed.get_global_grad_norm())
        if norm in (float("inf"), -1.0) or norm != norm:  # DeepSpeed reports an overflow as -1
            self.skipped_steps += 1
            return float("inf")
        self.optimizer_steps += 1
        return norm

    def gathered(self, parameters: Iterable[nn.Parameter], *, write: bool = False) -> Any:
        """Context in which these parameters are whole; with `write`, all ranks have rank 0's values afterwards."""
        if self.stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if write else None)

    def num_trained(self) -> int:
        """Number of trained parameters, whole, not of a shard."""
        return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.trainable.values())

    def held_bytes(self) -> int:
        """Bytes of weights on this rank between forwards: under ZeRO-3 its shards, and NF4's scales whole."""
        parameters = list(self.policy.parameters())
        kept = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
        for state in (getattr(parameter, "quant_state", None) for parameter in parameters):
            if state is not None:
                kept += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    @torch.no_grad()
    def copy_to(self, target: dict[str, torch.Tensor]) -> None:
        """Copy the trained weights, whole, into the tensors of the same public names. Collective: every rank.

        Raises:
            FloatingPointError: a trained weight is not finite; on every rank.
            RuntimeError: the copies differ between ranks.
        """
        with self.gathered(self.trainable.values()):
            for name, parameter in self.trainable.items():
                target[name].copy_(parameter)
        # No metric would show that ranks sample from different weights.
        checksum = float(sum(target[name].sum(dtype=torch.float64) for name in self.trainable))
        if not math.isfinite(checksum):
            raise FloatingPointError("a trained weight is not finite: lower learning_rate, from the last checkpoint")
        extremes = global_max({"high": checksum, "minus_low": -checksum})
        if extremes["high"] != -extremes["minus_low"]:
            raise RuntimeError(f"the sampler's weights differ between ranks: checksums {extremes}")

    def state(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """A parameter's float32 master and AdamW's moments, whole. Collective: every rank, in the same order."""
        if self.stage == 0:
            master = self._masters()[parameter]
            return {"master": master, **{key: self._adamw().state[master][key] for key in MOMENTS}}
        moments = {key: deepspeed.utils.safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {"master": deepspeed.utils.safe_get_full_fp32_param(parameter), **moments}

    @torch.no_grad()
    def set_state(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state` returned, after `start_optimizer`. Collective: every rank, in the same order."""
        state = {kind: tensor.to(parameter.device) for kind, tensor in state.items()}
        if self.stage == 0:
            master = self._masters()[parameter]
            master.copy_(state["master"])
            for key in MOMENTS:
                self._adamw().state[master][key].copy_(state[key])
        elif self.stage == 3:
            # DeepSpeed's setter of a whole tensor reads past its end if its size is no multiple of the ranks.
            deepspeed.utils.safe_set_local_fp32_param(parameter, _part(parameter, state["master"]))
            for key in MOMENTS:
                deepspeed.utils.safe_set_local_optimizer_state(parameter, _part(parameter, state[key]), key)
        else:
            deepspeed.utils.safe_set_full_fp32_param(parameter, state["master"])
            for key in MOMENTS:
                deepspeed.utils.safe_set_full_optimizer_state(parameter, state[key], key)
        # Forwards use a second copy of the weight, which the master's setter does not change.
        with self.gathered([parameter], write=True):
            parameter.copy_(state["master"])

    def start_optimizer(self, steps: int) -> None:
        """Create AdamW's moments as zeros, with its count of steps; by itself it makes them only at its first step."""
        self.optimizer_steps = steps
        wrapper: Any = self.deepspeed.optimizer
        flat = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        shards = next((getattr(wrapper, name) for name in flat if hasattr(wrapper, name)), None)
        for tensor in self._masters().values() if shards is None else shards:
            zeros = {key: torch.zeros_like(tensor) for key in MOMENTS}
            self._adamw().state[tensor] = {"step": torch.tensor(float(steps)), **zeros}
        if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
            wrapper._lazy_init_hp_params_optimizer_state()

    def _adamw(self) -> torch.optim.AdamW:
        # Without ZeRO and in float32 DeepSpeed puts no wrapper around it.
        return getattr(self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer)

    def _masters(self) -> dict[nn.Parameter, torch.Tensor]:
        """At stage 0: the float32 tensor that AdamW updates for each parameter; a float32 parameter is its own."""
        wrapper: Any = self.deepspeed.optimizer
        if not hasattr(wrapper, "fp32_groups"):
            return {parameter: parameter for parameter in self.trainable.values()}
        return dict(zip(chain(*wrapper.fp16_groups), chain(*wrapper.fp32_groups), strict=True))


def _part(parameter: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that is sharded like the parameter; the last shard is padded with zeros."""
    size = parameter.ds_tensor.numel()
    part = whole.flatten()[parameter.ds_zero_partition_rank * size:][:size]
    return nn.functional.pad(part, (0, size - part.numel()))
