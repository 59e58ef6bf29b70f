"""What a step takes on a CPU, phase by phase, and its floor: the operations of its completions over the speed of a
large product on the same machine. Prompts and attention are left out, so the true floor is a little higher.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from grpo.memory import shapes

LARGE = (2048, 896, 9728)  # rows, inputs and outputs of the product: gate and up of a Qwen2.5-0.5B
RUNS = 5


def product_flops() -> float:
    """Operations per second of a large product in float32, the fastest of RUNS."""
    rows, inputs, outputs = LARGE
    x, weight = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        x @ weight
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inputs * outputs / min(seconds)


def operations(config: PretrainedConfig, recipe: dict[str, Any]) -> dict[str, float]:
    """Operations for each token of a completion, by phase: 2 for each weight that it is multiplied with.

    Sampling and the reference are a forward pass. So is the first half of an update; its second half has the same for
    the gradient of the inputs, and again for that of weights that are trained whole.
    """
    named = shapes.of_model(config)
    layers = sum(math.prod(shape) for name, shape in named.items() if "_proj." in name and name.endswith("weight"))
    table = config.vocab_size * config.hidden_size
    head_trains = not recipe["use_peft"] or bool({"lm_head", "embed_tokens"} & set(recipe["lora_modules_to_save"]))
    forward = 2 * (layers + table)
    update = 2 * forward + 2 * table * head_trains + 2 * layers * (not recipe["use_peft"])
    again = 2 * layers * (recipe["gradient_checkpointing"] == "true")
    return {"sampling": forward, "reference": forward * (recipe["beta"] > 0),
            "update": (update + again) * recipe["num_iterations"]}


def phases(
    metrics: Sequence[dict[str, Any]], config: PretrainedConfig, recipe: dict[str, Any], flops: float
) -> list[dict[str, Any]]:
    """For each phase the mean seconds of a step, and the floor in seconds."""
    needed = operations(config, recipe)
    tokens = sum(row["num_tokens"] for row in metrics) / len(metrics)
    found = []
    for phase, column in (("sampling", "rollout_s"), ("reference", "reference_s"), ("update", "update_s")):
        seconds = sum(row[column] for row in metrics) / len(metrics)
        found.append({"phase": phase, "seconds": seconds, "floor": tokens * needed[phase] / flops})
    return found
