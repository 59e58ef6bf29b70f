"""The engine's AdamW against its formula, two steps by hand, on one rank in this process. 6 seconds."""

import pytest
import torch
from tiny_models import tiny_qwen2

from grpo import distributed
from grpo.config import Config
from grpo.loading.adapter import add_adapter
from grpo.run.build import build_engine
from grpo.trainer.policy import Policy

RATE, DECAY, BETA1, BETA2, EPSILON = 0.1, 0.5, 0.8, 0.6, 0.01


@pytest.mark.parametrize("stage", [0, 2])
def test_two_steps_are_adamws_with_the_decay_the_betas_and_the_epsilon_of_the_recipe(stage: int) -> None:
    distributed.start(60)
    config = Config(
        use_peft=False, load_in_4bit=False, zero_stage=stage, max_grad_norm=0.0, weight_decay=DECAY, adam_beta1=BETA1,
        adam_beta2=BETA2, adam_epsilon=EPSILON)
    model = tiny_qwen2(num_hidden_layers=1).requires_grad_(False)
    weight = model.model.norm.weight.requires_grad_(True)
    engine = build_engine(Policy(model), config, torch.float32)
    expected = weight.detach().double()
    mean = square = torch.zeros_like(expected)
    for step, slope in enumerate((0.3, -2.0), start=1):
        engine.backward(slope * weight.sum(), last=True)
        assert engine.step(RATE) == pytest.approx(abs(slope) * len(weight) ** 0.5)
        mean, square = BETA1 * mean + (1 - BETA1) * slope, BETA2 * square + (1 - BETA2) * slope**2
        towards = mean / (1 - BETA1**step) / ((square / (1 - BETA2**step)).sqrt() + EPSILON)
        expected = expected * (1 - RATE * DECAY) - RATE * towards
        torch.testing.assert_close(weight.detach().double(), expected, atol=1e-6, rtol=0)


def test_what_is_trained_whole_beside_lora_has_its_own_rate() -> None:
    distributed.start(60)
    config = Config(
        load_in_4bit=False, zero_stage=0, lora_target_modules=["q_proj"], lora_modules_to_save=["lm_head"],
        learning_rate=0.5, lora_modules_to_save_learning_rate=0.125, max_grad_norm=0.0)
    model = tiny_qwen2(tied=False, num_hidden_layers=1)
    add_adapter(model, config, torch.float32)
    engine = build_engine(Policy(model), config, torch.float32)
    head, branch = "lm_head.weight", "model.layers.0.self_attn.q_proj.lora_B.weight"
    before = {name: engine.trainable[name].detach().clone() for name in (head, branch)}
    engine.backward(sum(engine.trainable[name].sum() for name in before), last=True)
    engine.step(0.25)  # half of the peak, as in a warm-up
    moved = {name: (engine.trainable[name] - before[name]).abs().max().item() for name in before}
    # AdamW's first step has the size of its rate wherever there is a gradient.
    assert moved[branch] == pytest.approx(0.25, rel=1e-4) and moved[head] == pytest.approx(0.0625, rel=1e-4)


def test_a_rate_of_its_own_is_refused_where_the_adapter_trains_nothing_whole() -> None:
    config = Config(load_in_4bit=False, adapter_name_or_path="mine", lora_modules_to_save_learning_rate=0.1)
    model = tiny_qwen2(num_hidden_layers=1)
    add_adapter(model, Config(load_in_4bit=False), torch.float32)
    with pytest.raises(ValueError, match="lora_modules_to_save_learning_rate=0.1 moves nothing: the adapter trains no"):
        build_engine(Policy(model), config, torch.float32)
