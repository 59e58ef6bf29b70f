"""verl: `compute_grpo_outcome_advantage`, `kl_penalty` and `agg_loss` of core_algos, and `ppo_loss`, the actor's loss.

`ppo_loss` takes a TensorDict of prompts, responses and masks. Here prompts have one token, and a response ends with the
last token that counts: what follows is padding, which verl cuts away before the loss. Options that are not named have
verl's defaults: loss_agg_mode token-mean, clip_ratio_c 3. The KL is k3+, one of the types of kl_loss_type (the default
is low_var_kl, that is k3). Log-probabilities and entropy are those of the FSDP engine without flash-attention and fused
kernels, which it uses where they are installed. That engine needs GPUs: `rank_gradient` does in its place what it does
to the gradient, an average over ranks, and counts tokens as it does.
"""

import peers  # first: it says where verl is
import stand_ins  # noqa: F401

# isort: split

import numpy as np
import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, kl_penalty
from verl.utils import tensordict_utils as tu
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss

NAME = peers.versioned("verl")
CLIP = (0.2, 0.28)
BETA = 0.04
KL = "k3+"


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    prompts, completions = rewards.shape
    found, _ = compute_grpo_outcome_advantage(
        rewards.reshape(-1, 1), torch.ones(rewards.numel(), 1), np.repeat(np.arange(prompts), completions))
    return found.view(rewards.shape)


def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
    return kl_penalty(logprob, ref_logprob, KL)


def loss(*micro_batch: torch.Tensor) -> torch.Tensor:
    return batch_loss([micro_batch])


def batch_loss(micro_batches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    num_tokens = sum(int(one[3].sum()) for one in micro_batches)
    num_sequences = sum(len(one[0]) for one in micro_batches)
    return torch.stack([one_loss(*one, num_tokens, num_sequences) for one in micro_batches]).sum()


def one_loss(
    logprob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor, ref: torch.Tensor | None,
    num_tokens: int, num_sequences: int, dp_size: int = 1,
) -> torch.Tensor:
    """verl's loss of a micro-batch, with what `forward_backward_batch` of the engine counts over all of them."""
    rows, width = mask.shape
    config = FSDPActorConfig(
        strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=rows, clip_ratio_low=CLIP[0],
        clip_ratio_high=CLIP[1], use_kl_loss=ref is not None, kl_loss_coef=BETA, kl_loss_type=KL)
    place = torch.arange(width)
    length_N = torch.where(mask, place + 1, 0).amax(dim=1)
    inside = place < length_N[:, None]
    padded = {"old_log_probs": old} | ({} if ref is None else {"ref_log_prob": ref})
    ids = torch.zeros(rows, width, dtype=torch.int64)
    data = TensorDict({
        "prompts": ids[:, :1], "responses": ids, "attention_mask": torch.cat([ids[:, :1] + 1, inside.long()], dim=1),
        "response_mask": mask.long(), "advantages": advantage[:, None].expand(rows, width),
        **{name: torch.where(inside, value, 0.0) for name, value in padded.items()}}, batch_size=rows)
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=num_tokens, global_batch_size=num_sequences)
    # A model gives a log-probability for each token of a sequence, of the token after it: one more than responses.
    predicted = torch.cat([torch.cat([row[:length], row.new_zeros(1)]) for row, length in zip(logprob, length_N)])
    return ppo_loss(config, {"log_probs": predicted}, data)[0]


def score(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = logits / torch.tensor(temperature).clamp(min=1e-8).to(logits.dtype)  # verl/workers/engine/fsdp
    return logprobs_from_logits(scaled, tokens), entropy_from_logits(scaled)


def rank_gradient(
    weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    num_tokens, num_sequences = mask.sum(), torch.tensor(len(mask))
    for count in (num_tokens, num_sequences):
        dist.all_reduce(count)
    logprob = weight.log_softmax(dim=0)[tokens]
    one_loss(logprob, logprob.detach(), advantage, mask, None, int(num_tokens), int(num_sequences),
             dist.get_world_size()).backward()
    dist.all_reduce(weight.grad)  # FSDP averages gradients over ranks
    return weight.grad / dist.get_world_size()
