"""The settings of DeepSpeed and AdamW, from a run's options. Imports no torch, so that `--plan` answers at once."""

from typing import Any

from grpo.config import Config
from grpo.options.refusal import refuse


def zero_config(config: Config, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, with the user's `deepspeed` mapping merged over it.

    Raises:
        ValueError: DeepSpeed does not know a setting of the mapping, or does not take its value.
    """
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
    if "zero_optimization" in (config.deepspeed or {}):
        _check(config, generated["zero_optimization"])
    return generated


def adamw_settings(config: Config) -> dict[str, Any]:
    """Arguments of torch.optim.AdamW."""
    return {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }


def _check(config: Config, settings: dict[str, Any]) -> None:
    # Here, because DeepSpeed takes seconds, and a plan mostly does without.
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**settings)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        refuse("deepspeed", config.deepspeed, f"zero_optimization.{where}: {wrong['msg']}", "without this key")
    except TypeError as error:  # DeepSpeed turns only some of its errors into the one above
        refuse("deepspeed", config.deepspeed, f"zero_optimization: {error}", "without this key")
