"""From a run's options to its engine: DeepSpeed's configuration and AdamW's settings."""

from contextlib import nullcontext
from typing import Any

import torch
from pydantic import ValidationError

from grpo.config import Config
from grpo.distributed import deepspeed
from grpo.options.refusal import refuse, refusing
from grpo.trainer.engine import Engine
from grpo.trainer.policy import Policy


def build_engine(policy: Policy, config: Config, dtype: torch.dtype) -> Engine:
    """The engine of a run; `dtype` is that of weights and activations. Collective: every rank, once.

    Raises:
        ValueError: DeepSpeed does not take the user's `deepspeed` mapping.
    """
    settings = zero_config(config, dtype)
    adamw = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    # DeepSpeed refuses some settings only when it starts.
    asked = refusing("deepspeed", config.deepspeed, "does not start", "without it")
    with asked if config.deepspeed else nullcontext():
        return Engine(policy, settings, adamw)


def zero_config(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, with the user's `deepspeed` mapping merged over it.

    Raises:
        ValueError: DeepSpeed does not know a setting of the mapping, or does not take its value.
    """
    bf16 = dtype == torch.bfloat16
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": config.zero_stage,
            "memory_efficient_linear": False,  # True replaces F.linear for the whole process
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,  # the default takes 2 GB from the first backward on
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
    }
    if bf16 and config.zero_stage > 0:
        generated["data_types"] = {"grad_accum_dtype": "fp32"}  # 60 micro-batches added in bf16 are 2 % off
    for key, value in (config.deepspeed or {}).items():
        generated[key] = {**generated[key], **value} if isinstance(generated.get(key), dict) else value
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**generated["zero_optimization"])
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        refuse("deepspeed", config.deepspeed, f"zero_optimization.{where}: {wrong['msg']}", "without this key")
    except TypeError as error:  # DeepSpeed turns only some of its errors into the one above
        refuse("deepspeed", config.deepspeed, f"zero_optimization: {error}", "without this key")
    return generated
