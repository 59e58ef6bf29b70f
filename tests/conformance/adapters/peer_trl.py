"""TRL's GRPOTrainer: its own `_generate_and_score_completions` and `_compute_loss`, its fused head, Accelerate's DDP.

The trainer has a tiny random model. For `loss` its log-probabilities are replaced by those of a claim, and nothing
else: `_get_per_token_logps_and_entropies` is overridden. Masked places hold 0 there, as TRL's head leaves them. TRL
keeps advantages and KL inside these two methods, so advantages are read from the first one's result, and the KL of a
token is its loss with beta 1 and advantage 0. All options that are not named here have TRL's defaults: loss_type dapo,
use_bias_correction_kl.
"""

import functools
import math
import tempfile
from collections.abc import Callable

import peers  # first: it says where TRL is

# isort: split

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

NAME = peers.versioned("trl")
CLIP = (0.2, 0.28)
BETA = 0.04


class Trainer(GRPOTrainer):
    """TRL's trainer with log-probabilities that are given."""

    given: torch.Tensor

    def _get_per_token_logps_and_entropies(self, *args: object, **options: object) -> tuple:
        return self.given, torch.zeros_like(self.given), None


def trainer(kind: type[GRPOTrainer] = Trainer, **given: Callable) -> GRPOTrainer:
    """A trainer on the CPU that samples nothing."""
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=2, num_generations=2, epsilon=CLIP[0], epsilon_high=CLIP[1])
    tokenizer = AutoTokenizer.from_pretrained(peers.ROOT / "data" / "tiny_qwen2")
    model = Qwen2ForCausalLM(Qwen2Config(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        vocab_size=len(tokenizer)))
    made = kind(
        model=model, args=args, train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}), processing_class=tokenizer,
        **{"reward_funcs": lambda **columns: [0.0] * 2, **given})
    made.model.train()
    made.current_gradient_accumulation_steps = 1  # its training loop sets this
    return made


@functools.cache
def the_trainer() -> Trainer:
    return trainer()


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    values = [None if math.isnan(value) else value for value in rewards.flatten().tolist()]

    def sampled(prompts: list[str], trainer: GRPOTrainer) -> dict[str, object]:
        return {"prompt_ids": [[5]] * len(prompts), "completion_ids": [[6]] * len(prompts), "logprobs": None}

    made = scorer()
    made.rollout_func, made.reward_funcs = sampled, [lambda **columns: values]
    made.num_generations = rewards.shape[1]
    found = made._generate_and_score_completions([{"prompt": str(n)} for n in range(rewards.numel())])
    return found["advantages"].view(rewards.shape)


@functools.cache
def scorer() -> GRPOTrainer:
    return trainer(GRPOTrainer)


def one_loss(
    made: Trainer, logprob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor,
    ref: torch.Tensor, num_tokens: torch.Tensor,
) -> torch.Tensor:
    """TRL's loss of a micro-batch; prompts of one token."""
    token_N1, token_NT = torch.full_like(mask[:, :1], 5, dtype=torch.int64), torch.full(mask.shape, 6)
    logprob, old, ref = (one.masked_fill(~mask, 0) for one in (logprob, old, ref))  # as add_fused_lm_head does
    made.given = logprob
    return made._compute_loss(made.model, {
        "prompt_ids": token_N1, "prompt_mask": torch.ones_like(token_N1), "completion_ids": token_NT,
        "completion_mask": mask.long(), "advantages": advantage, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "num_items_in_batch": num_tokens})


def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
    made = the_trainer()
    made.beta, one = 1.0, torch.ones(1, 1, dtype=torch.bool)
    values = [one_loss(made, p[None, None], p.detach()[None, None], torch.zeros(1), one, q[None, None], torch.tensor(1))
              for p, q in zip(logprob.flatten(), ref_logprob.flatten())]
    return torch.stack(values).view(logprob.shape)


def loss(*micro_batch: torch.Tensor) -> torch.Tensor:
    return batch_loss([micro_batch])


def batch_loss(micro_batches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    made, num_tokens = the_trainer(), torch.stack([one[3].sum() for one in micro_batches]).sum()
    made.beta = BETA  # set here, not as an option: with an option it would load a reference model
    # Its options for so many micro-batches, sampled together and accumulated into one step.
    made.current_gradient_accumulation_steps = made.args.steps_per_generation = len(micro_batches)
    return torch.stack([one_loss(made, *one, num_tokens) for one in micro_batches]).sum()


def score(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    # The head's forward takes hidden states: the logits are these, and the head's weight repeats them. A word that
    # every row excludes is excluded by the head's bias.
    excluded_V = logits.detach().isneginf().all(dim=(0, 1))
    hidden = torch.where(excluded_V, 0.0, logits).flatten(0, 1)
    bias = torch.where(excluded_V, -torch.inf, 0.0).to(logits)
    logprob, entropy, *_ = _ChunkedLogProbFunction.apply(
        hidden, torch.eye(len(bias)).to(logits), bias, tokens.flatten(), temperature, _CHUNKED_LOGPROB_CHUNK_SIZE, None,
        1.0, ("log_probs", "entropy"))
    return logprob.view(tokens.shape), entropy.view(tokens.shape)


class Words(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight.log_softmax(dim=0)[tokens]


def rank_gradient(
    weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, len(tokens))
    if len(set(counts)) > 1:
        raise NotImplementedError("every process has the same number of completions")
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()  # this process was forked from one without ranks
    made = trainer()
    policy = Words(weight)
    parallel = made.accelerator.prepare(policy)  # DistributedDataParallel where there are two processes
    logprob = parallel(tokens)
    num_tokens = made.accelerator.gather(mask.sum()).sum()  # as grpo_trainer.py counts num_items_in_batch
    made.accelerator.backward(one_loss(
        made, logprob, logprob.detach(), advantage, mask, logprob.detach(), num_tokens))
    return policy.weight.grad
