"""Mistakes that a developer could make, one replaced text each, for run.py: here, in what a token is worth.

Each old text stands once in its file. None is meant to be without effect; a row that no test can notice says why that
is tolerable.
"""

from typing import NamedTuple

from tests.mutations.planted_answers import ANSWER_GROUPS
from tests.mutations.planted_chat import CHAT_GROUPS
from tests.mutations.planted_conformance import CONFORMANCE_GROUPS
from tests.mutations.planted_difficulty import DIFFICULTY_GROUPS
from tests.mutations.planted_domains import DOMAIN_GROUPS
from tests.mutations.planted_field import FIELD_GROUPS
from tests.mutations.planted_launch import LAUNCH_GROUPS
from tests.mutations.planted_models import MODEL_GROUPS
from tests.mutations.planted_output import OUTPUT_GROUPS
from tests.mutations.planted_ranks import DISTRIBUTED, DOOR, HEARTBEAT, LAUNCHER, RANK_GROUPS
from tests.mutations.planted_recipes import RECIPE_GROUPS
from tests.mutations.planted_rewards import DEPTH, POOL, PROCESSES, REQUESTS, RUNNER, VALUES, WORKER
from tests.mutations.planted_rows import (
    COEFFICIENTS,
    FUSED_LOGPROB,
    PACKING,
    REFERENCE,
    SAMPLING,
    SCHEDULE,
    STOPPING,
    TREE,
    TYPES,
)
from tests.mutations.planted_run import RUN_GROUPS
from tests.mutations.planted_sandbox import SANDBOX_GROUPS
from tests.mutations.planted_shaping import SHAPING_GROUPS
from tests.mutations.planted_text import TEXT_GROUPS
from tests.mutations.planted_tokens import TOKEN_GROUPS
from tests.mutations.planted_trl import TRL_GROUPS
from tests.mutations.planted_variants import VARIANT_GROUPS


class Planted(NamedTuple):
    """One mistake.

    Args:
        file: where, from the project's root.
        tests: the test files that should notice, in the order in which they run.
        words: what is wrong then.
        old: a text that stands once in the file.
        new: what stands there instead.
        tolerated: why it may survive; empty where it must not.
    """

    file: str
    tests: tuple[str, ...]
    words: str
    old: str
    new: str
    tolerated: str = ""


REWARDS = [
    ("weights ignored", "weight * v)", "v)"),
    ("parts weighed", "[nan if v is None else v for v in values]",
     "[nan if v is None else weight * v for v in values]"),
    ("None spoils the total", "(0.0 if v is None else", "(nan if v is None else"),
    ("the last function's reward alone", "[t + (0.0", "[(0.0"),
]

ADVANTAGE = [
    ("population std", "reward_BG.std(dim=1, keepdim=True)", "reward_BG.std(dim=1, keepdim=True, correction=0)"),
    ("variance for std", "reward_BG.std(dim=1, keepdim=True)", "reward_BG.var(dim=1, keepdim=True)"),
    ("no eps", "(std_B1 + eps)", "std_B1"),
    ("eps inside the root", "(std_B1 + eps)", "(std_B1**2 + eps).sqrt()"),
    ("eps as a floor", "(std_B1 + eps)", "std_B1.clamp(min=eps)"),
    ("mean of the batch for the group's", "reward_BG.mean(dim=1, keepdim=True)", "reward_BG.mean()"),
    ("mean over the prompts", "reward_BG.mean(dim=1, keepdim=True)", "reward_BG.mean(dim=0, keepdim=True)"),
    ("sum for mean", "reward_BG.mean(dim=1, keepdim=True)", "reward_BG.sum(dim=1, keepdim=True)"),
    ("median for mean", "reward_BG.mean(dim=1, keepdim=True)", "reward_BG.median(dim=1, keepdim=True).values"),
    ("sign", "reward_BG - mean_B1", "mean_B1 - reward_BG"),
    ("this rank's std for that of all", "(reward_BG[~reward_BG.isnan()].std() if batch_std is None else batch_std)",
     "reward_BG[~reward_BG.isnan()].std()"),
    ("population std of the batch", "reward_BG[~reward_BG.isnan()].std() if",
     "reward_BG[~reward_BG.isnan()].std(correction=0) if"),
    ("the group's std for the batch's", "reward_BG[~reward_BG.isnan()].std() if", "std_B1 if"),
    ("no eps on the batch's std", "else batch_std) + eps)", "else batch_std))"),
    ("divides although the scale is none", 'if scale == "group":', 'if scale != "batch":'),
    ("equality decided by the std", "highest_B1 <= lowest_B1", "std_B1 == 0"),
    ("equality of the whole batch", "highest_B1 <= lowest_B1",
     "(highest_B1.amax() <= lowest_B1.amin()).expand_as(mean_B1)"),
    ("equal rewards are not set to 0", "torch.where(flat_B1 | reward_BG.isnan(), ", "torch.where(reward_BG.isnan(), "),
]

LOSS = [
    ("sign of the policy term", "loss_NT = -torch.minimum(", "loss_NT = torch.minimum("),
    ("max for min", "-torch.minimum(ratio_NT", "-torch.maximum(ratio_NT"),
    ("min before the advantage", "torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)",
     "(torch.minimum(ratio_NT, clipped_NT) * advantage_NT)"),
    ("the clipped term alone", "torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)",
     "(clipped_NT * advantage_NT)"),
    ("no clip", "torch.minimum(ratio_NT * advantage_NT, clipped_NT * advantage_NT)", "(ratio_NT * advantage_NT)"),
    ("epsilons swapped", "ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)",
     "ratio_NT.clamp(1 - epsilon_high, 1 + epsilon)"),
    ("one epsilon for both bounds", "ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)",
     "ratio_NT.clamp(1 - epsilon, 1 + epsilon)"),
    ("no lower bound", "ratio_NT.clamp(1 - epsilon, 1 + epsilon_high)", "ratio_NT.clamp(max=1 + epsilon_high)"),
    ("advantages not masked", "advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)",
     "advantage_NT = advantage_N[:, None]"),
    ("advantages times the mask", "advantage_NT = torch.where(mask_NT, advantage_N[:, None], 0.0)",
     "advantage_NT = advantage_N[:, None] * mask_NT"),
    ("mask shifted by one", "torch.where(mask_NT, advantage_N[:, None]",
     "torch.where(mask_NT.roll(1, 1), advantage_N[:, None]"),
    ("sign of the KL", "loss_NT + beta * torch.where", "loss_NT - beta * torch.where"),
    ("beta forgotten", "loss_NT + beta * torch.where", "loss_NT + torch.where"),
    ("KL not masked", "beta * torch.where(mask_NT, kl_NT, 0.0)", "beta * kl_NT"),
    ("KL times the mask", "beta * torch.where(mask_NT, kl_NT, 0.0)", "beta * (kl_NT * mask_NT)"),
    ("the KL weighed too", "        loss_NT = torch.where(mask_NT, weight_NT, 0.0) * loss_NT\n    if beta:\n"
     "        loss_NT = loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0)",
     "        loss_NT = torch.where(mask_NT, weight_NT, 0.0) * (loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0))\n"
     "    elif beta:\n        loss_NT = loss_NT + beta * torch.where(mask_NT, kl_NT, 0.0)"),
    ("weights ignored", "torch.where(mask_NT, weight_NT, 0.0) * loss_NT", "loss_NT"),
    ("weights not masked", "torch.where(mask_NT, weight_NT, 0.0) * loss_NT", "weight_NT * loss_NT"),
    ("mean over a completion's tokens", "loss_N = loss_NT.sum(dim=1)", "loss_N = loss_NT.mean(dim=1)"),
    ("mean over the completions", "return loss_N.sum() / denominator", "return loss_N.mean() / denominator"),
    ("local denominator", "return loss_N.sum() / denominator", "return loss_N.sum() / mask_NT.sum().clamp(min=1)"),
    ("grpo divides by the padded length", "mask_NT.sum(dim=1).clamp(min=1)", "mask_NT.shape[1]"),
    ("0 / 0 where a completion counts nowhere", "mask_NT.sum(dim=1).clamp(min=1)", "mask_NT.sum(dim=1)"),
    ("dr_grpo divides by the length", "if loss_type in MEAN_OF_COMPLETIONS:", 'if loss_type != "dapo":'),
    ("dapo divides by sequences", '"dapo": num_tokens', '"dapo": num_sequences'),
    ("grpo divides by tokens", '"grpo": num_sequences', '"grpo": num_tokens'),
    ("dr_grpo forgets the sequences", "max_completion_length * num_sequences}", "max_completion_length}"),
    ("denominator 0", "return max(1, denominators[loss_type])", "return denominators[loss_type]"),
    ("sign of d", "d_NT = logprob_NT - ref_logprob_NT.detach()", "d_NT = ref_logprob_NT.detach() - logprob_NT"),
    ("the reference gets a gradient", "d_NT = logprob_NT - ref_logprob_NT.detach()",
     "d_NT = logprob_NT - ref_logprob_NT"),
    ("k2 without its half", "d_NT.square() / 2", "d_NT.square()"),
    ("k3 of the inverse ratio", "torch.expm1(-bounded_NT) + bounded_NT", "torch.expm1(bounded_NT) - bounded_NT"),
    ("k3 without its -1", "torch.expm1(-bounded_NT) + bounded_NT", "torch.exp(-bounded_NT) + bounded_NT"),
    ("k3 not bounded", "bounded_NT = d_NT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", "bounded_NT = d_NT"),
    ("k3_unbiased has the value of k2", "k3_NT.detach() + (k2_NT - k2_NT.detach())", "k2_NT"),
    ("k3_unbiased has both gradients", "k3_NT.detach() + (k2_NT - k2_NT.detach())", "k3_NT + (k2_NT - k2_NT.detach())"),
    ("k3_unbiased the wrong way round", "k3_NT.detach() + (k2_NT - k2_NT.detach())",
     "k2_NT.detach() + (k3_NT - k3_NT.detach())"),
]

_GROUPS = [
    *ANSWER_GROUPS,
    ("rewards/workers/pool.py", ("test_reward_pool.py",), REWARDS),
    ("rewards/workers/pool.py", ("test_reward_answers.py", "test_reward_pool.py"), POOL),
    ("rewards/workers/keeper.py", ("test_reward_answers.py", "test_reward_pool.py"), WORKER),
    ("rewards/workers/processes.py", ("test_reward_pool.py",), PROCESSES),
    ("rewards/workers/requests.py", ("test_reward_answers.py",), REQUESTS),
    ("rewards/workers/runner.py", ("test_reward_answers.py", "test_reward_pool.py"), RUNNER),
    ("rewards/values.py", ("test_reward_values.py",), VALUES),
    ("data/rows.py", ("test_data.py",), DEPTH),
    ("grpo/advantage.py", ("test_advantage.py",), ADVANTAGE),
    ("grpo/loss.py", ("test_loss.py",), LOSS),
    ("kernels/__init__.py", ("test_reference.py",), FUSED_LOGPROB),
    ("kernels/reference.py", ("test_reference.py", "test_kernels.py"), REFERENCE),
    ("kernels/coefficients.py", ("test_reference.py",), COEFFICIENTS),
    ("grpo/packing.py", ("test_packing.py",), PACKING),
    ("grpo/trainer/packed_attention.py", ("test_packed_attention.py",), TREE),
    ("grpo/types.py", ("test_packed_attention.py", "test_packing.py"), TYPES),
    ("grpo/sampler/draw.py", ("test_sampling.py",), SAMPLING),
    ("grpo/sampler/stopping.py", ("test_stopping.py",), STOPPING),
    ("grpo/schedule.py", ("test_schedule.py",), SCHEDULE),
    ("grpo/distributed.py", ("test_distributed.py",), DISTRIBUTED),
    ("grpo/health/launcher.py", ("test_launcher.py",), LAUNCHER),
    ("grpo/health/door.py", ("test_door.py",), DOOR),
    ("grpo/health/heartbeat.py", ("test_heartbeat.py", "test_door.py"), HEARTBEAT),
    *RANK_GROUPS,
    *RUN_GROUPS,
    *OUTPUT_GROUPS,
    *TRL_GROUPS,
    *RECIPE_GROUPS,
    *CHAT_GROUPS,
    *MODEL_GROUPS,
    *LAUNCH_GROUPS,
    *DOMAIN_GROUPS,
    *SANDBOX_GROUPS,
    *SHAPING_GROUPS,
    *TEXT_GROUPS,
    *FIELD_GROUPS,
    *TOKEN_GROUPS,
    *VARIANT_GROUPS,
    *CONFORMANCE_GROUPS,
    *DIFFICULTY_GROUPS,
]
PLANTED = [Planted(file, tests, *row) for file, tests, rows in _GROUPS for row in rows]
