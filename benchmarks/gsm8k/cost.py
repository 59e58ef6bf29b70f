"""What a step takes on a CPU, phase by phase, and its floor: the operations of its tokens over the speed of a large
product on the same machine. Attention is left out, so the true floor is a little higher.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PretrainedConfig

from data.prompt_ids import all_prompt_ids
from grpo.config import Config
from grpo.memory import shapes
from grpo.packing import common_prefix_length
from grpo.run.examples import load_problems

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


def prompt_tokens(config: Config, completions: Sequence[dict[str, Any]]) -> float:
    """Mean tokens of a step's prompts: what they share once, and what each has of its own once for its group."""
    problems, _ = load_problems(config)
    prompts = {one.title: one.prompt for one in problems}
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path or config.model_name_or_path)
    asked: dict[int, set[str]] = {}
    for row in completions:
        asked.setdefault(row["step"], set()).add(row["question"])
    total = 0
    for titles in asked.values():
        encoded = all_prompt_ids(tokenizer, [prompts[one] for one in titles], config.chat_template_kwargs)
        total += sum(map(len, encoded)) - (len(encoded) - 1) * common_prefix_length(encoded)
    return total / len(asked)


class Operations(NamedTuple):
    """For one token, by where it is: a prompt's does not reach the head."""

    completion: float
    prompt: float


def operations(config: PretrainedConfig, recipe: dict[str, Any]) -> dict[str, Operations]:
    """Operations for each token, by phase: 2 for each weight that it is multiplied with.

    Sampling and the reference are a forward pass. So is the first half of an update; its second half has the same for
    the gradient of the inputs, and again for that of weights that are trained whole.
    """
    named = shapes.of_model(config)
    layers = 2 * sum(math.prod(shape) for name, shape in named.items() if "_proj." in name and name.endswith("weight"))
    head = 2 * config.vocab_size * config.hidden_size
    head_trains = not recipe["use_peft"] or bool({"lm_head", "embed_tokens"} & set(recipe["lora_modules_to_save"]))
    times = 2 + (not recipe["use_peft"]) + (recipe["gradient_checkpointing"] == "true")
    forward = Operations(layers + head, layers)
    update = Operations(times * layers + (2 + head_trains) * head, times * layers)
    return {"sampling": forward, "reference": _times(forward, recipe["beta"] > 0),
            "update": _times(update, recipe["num_iterations"])}


def _times(needed: Operations, factor: float) -> Operations:
    return Operations(*(factor * one for one in needed))


def phases(
    metrics: Sequence[dict[str, Any]], needed: dict[str, Operations], *, prompt_tokens: float, flops: float
) -> list[dict[str, Any]]:
    """For each phase the mean seconds of a step, and the floor in seconds."""
    tokens = sum(row["num_tokens"] for row in metrics) / len(metrics)
    found = []
    for phase, column in (("sampling", "rollout_s"), ("reference", "reference_s"), ("update", "update_s")):
        seconds = sum(row[column] for row in metrics) / len(metrics)
        total = tokens * needed[phase].completion + prompt_tokens * needed[phase].prompt
        found.append({"phase": phase, "seconds": seconds, "floor": total / flops})
    return found
