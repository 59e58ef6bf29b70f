"""TRL's and verl's functions and ours on the same log-probabilities: one loss, one gradient. 10 seconds.

TRL's `GRPOTrainer._compute_loss` and verl's `core_algos` run as they are; what TRL's trainer would ask its model for is
given. They need, beside the project: `pip install trl==1.16.0` without its dependencies, and `verl==0.9.1` without its
own, with ray, tensordict and omegaconf.
"""

from collections import defaultdict
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch

from grpo.advantage import group_advantages, leave_one_out_advantages, whitened_advantages
from grpo.loss import loss_denominator, mean_entropy, policy_loss, top_entropy_mask
from grpo.ratio import correction_weight

LENGTHS = torch.tensor([9, 1, 4, 2, 7, 3])
MASK_NT = torch.arange(9) < LENGTHS[:, None]
ADVANTAGE_N = torch.tensor([1.5, -0.5, -0.5, 0.7, -1.2, 0.0])
COUNTS = {"num_tokens": int(LENGTHS.sum()), "num_sequences": len(LENGTHS), "max_completion_length": 12}


@pytest.fixture
def drawn():
    """Log-probabilities of the policy, of the old one and of a reference, and entropies; many ratios are clipped."""
    generator = torch.Generator().manual_seed(4)
    old_NT = -torch.rand(MASK_NT.shape, generator=generator) * 3
    logprob_NT = old_NT + torch.randn(MASK_NT.shape, generator=generator) * 0.4
    ref_NT, entropy_NT = old_NT + 0.1, torch.rand(MASK_NT.shape, generator=generator)
    return SimpleNamespace(logprob_NT=logprob_NT.requires_grad_(), old_NT=old_NT, ref_NT=ref_NT,
                           entropy_NT=entropy_NT.requires_grad_())


def of_trl(drawn, weight=None, **options):
    """TRL's loss of a batch that is one micro-batch of one rank."""
    trainer = pytest.importorskip("trl", reason="TRL is not installed here").GRPOTrainer
    args = {"loss_type": "dapo", "importance_sampling_level": "token", "top_entropy_quantile": 1.0,
            "entropy_coef": 0.0, "use_adaptive_entropy": False, "epsilon_low": 0.2, "epsilon_high": 0.3, "delta": None,
            "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05} | options
    alone = SimpleNamespace(
        gather=lambda value: value, reduce=lambda value, reduction: value, num_processes=1, sync_gradients=True,
        pad_across_processes=lambda value, dim, pad_index: value)
    given = SimpleNamespace(
        **args, args=SimpleNamespace(**args, steps_per_generation=1, use_bias_correction_kl=False), beta=0.0,
        accelerator=alone, off_policy_mask_threshold=None, use_vllm=weight is not None, aux_loss_enabled=False,
        vllm_importance_sampling_correction=weight is not None, model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1, max_completion_length=COUNTS["max_completion_length"],
        _entropy_bonus_enabled=args["entropy_coef"] != 0, _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *inputs, **flags: (drawn.logprob_NT, drawn.entropy_NT, None))
    given.get_high_entropy_mask = MethodType(trainer.get_high_entropy_mask, given)
    mask_NT = MASK_NT.long()
    inputs = {
        "prompt_ids": mask_NT[:, :1], "prompt_mask": mask_NT[:, :1], "completion_ids": mask_NT,
        "completion_mask": mask_NT, "advantages": ADVANTAGE_N, "old_per_token_logps": drawn.old_NT,
        "num_items_in_batch": mask_NT.sum(), "importance_sampling_ratio": weight}
    return trainer._compute_loss(given, None, inputs)


def ours(drawn, **options):
    options = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.3} | options
    return policy_loss(drawn.logprob_NT, drawn.old_NT, ADVANTAGE_N, MASK_NT,
                       denominator=loss_denominator(options["loss_type"], **COUNTS), **options)


def assert_alike(drawn, mine, theirs, *, entropy=False):
    """One value and one gradient, to 1e-5."""
    inputs = [drawn.logprob_NT, drawn.entropy_NT] if entropy else [drawn.logprob_NT]
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    for found, expected in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("options", [
    {"loss_type": "dapo"}, {"loss_type": "grpo"}, {"loss_type": "dr_grpo"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "delta": 1.4}, {"loss_type": "cispo", "epsilon_high": 1.2},
    {"loss_type": "sapo"}, {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0},
    {"loss_type": "sapo", "importance_sampling_level": "sequence"},
], ids=str)
def test_losses_are_trls(drawn, options):
    assert_alike(drawn, ours(drawn, **options), of_trl(drawn, **options))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
def test_entropy_bonus_and_the_tokens_of_high_entropy_are_trls(drawn, share):
    learns_NT = top_entropy_mask(drawn.entropy_NT.detach(), MASK_NT, share=share)
    mine = ours(drawn, weight_NT=learns_NT.float())
    mine = mine - 0.3 * mean_entropy(drawn.entropy_NT, learns_NT, int(learns_NT.sum()))
    theirs = of_trl(drawn, top_entropy_quantile=share, entropy_coef=0.3)
    assert_alike(drawn, mine, theirs, entropy=True)


@pytest.mark.parametrize(("mode", "correction"), [
    ("token_truncate", "truncated"), ("token_mask", "masked"),
    ("sequence_truncate", "sequence_truncated"), ("sequence_mask", "sequence_masked")])
def test_importance_sampling_with_two_bounds_is_trls(drawn, mode, correction):
    """The lines of `_generate_and_score_completions`, which cannot be called alone, and its loss."""
    low, high = 0.5, 1.5
    difference_NT = (drawn.logprob_NT.detach() - drawn.old_NT) * MASK_NT
    if mode.startswith("sequence"):
        difference_NT = difference_NT.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference_NT)
    if mode.endswith("truncate"):
        ratio = torch.clamp(ratio, min=low, max=high)
    else:
        ratio = ratio.masked_fill((ratio < low) | (ratio > high), value=0.0)
    weight_NT = correction_weight(drawn.logprob_NT, drawn.old_NT, MASK_NT, correction=correction, cap=high, floor=low)
    assert_alike(drawn, ours(drawn, weight_NT=weight_NT), of_trl(drawn, weight=ratio))


@pytest.fixture
def verl():
    return pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed here")


def actor(**options):
    from verl.workers.config import ActorConfig

    return ActorConfig(strategy="fsdp", rollout_n=3, ppo_micro_batch_size_per_gpu=6, clip_ratio_low=0.2,
                       clip_ratio_high=0.3, **options)


@pytest.mark.parametrize(("name", "mode", "mine"), [
    ("geo_mean", "not used", {"loss_type": "geo_mean"}), ("sapo", "seq-mean-token-mean", {"loss_type": "sapo"}),
    ("gspo", "seq-mean-token-mean", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ("vanilla", "token-mean", {"loss_type": "dapo", "delta": 3.0}),
])
def test_losses_are_verls(drawn, verl, name, mode, mine):
    if name == "vanilla":
        with torch.no_grad():
            drawn.logprob_NT[4, :3] += 2.0  # far beyond clip_ratio_c=3, with A < 0
    advantage_NT = ADVANTAGE_N[:, None].expand_as(MASK_NT)
    theirs, _ = verl.get_policy_loss_fn(name)(
        drawn.old_NT, drawn.logprob_NT, advantage_NT, MASK_NT.float(), mode, actor(), None)
    assert_alike(drawn, ours(drawn, **mine), theirs)


REWARD_BG = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, -1.0]])


def of_verl(estimate):
    reward_NT = torch.zeros(MASK_NT.shape)
    reward_NT[torch.arange(6), LENGTHS - 1] = REWARD_BG.flatten()  # on the last token
    found_NT, _ = estimate(reward_NT, MASK_NT.float(), np.repeat(np.arange(2), 3))
    return found_NT[:, 0].view(2, 3)


def test_rloo_is_verls(verl):
    theirs_BG = of_verl(verl.compute_rloo_outcome_advantage)
    torch.testing.assert_close(leave_one_out_advantages(REWARD_BG), theirs_BG, atol=1e-5, rtol=0)


def test_reinforce_plus_plus_with_baseline_is_verls(verl):
    theirs_BG = of_verl(verl.compute_reinforce_plus_plus_baseline_outcome_advantage)
    centred_BG = group_advantages(REWARD_BG, scale="none")
    of_tokens = centred_BG.flatten().repeat_interleave(LENGTHS)
    ours_BG = whitened_advantages(centred_BG, torch.ones(2, 3, dtype=torch.bool), mean=float(of_tokens.mean()),
                                  std=float(of_tokens.std()))
    torch.testing.assert_close(ours_BG, theirs_BG, atol=1e-5, rtol=0)
