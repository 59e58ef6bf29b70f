"""The update of a step alone: our packed rows and padded transformers rows, over one model with the same LoRA weights.

`benchmarks.step` measures these; every one runs in a process of its own, see worker.py.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Qwen2ForCausalLM

from benchmarks.step.peers import BETA, PROJECTIONS, RANK, ROWS
from grpo.loss import kl_divergence, policy_loss
from grpo.packing import pack
from grpo.trainer.policy import Policy
from grpo.types import Batch, Rollout

WHOLE = 2**30  # tokens of a micro-batch: all in one


class Work(NamedTuple):
    """The completions of an update, drawn at random.

    Args:
        rollout: N rows of T tokens.
        advantage_N: [N] float32.
        ref_logprob: nats, the reference's log-probability of every token in the parts that run no reference.
    """

    rollout: Rollout
    advantage_N: torch.Tensor
    ref_logprob: float


def draw(prompts: list[list[int]], num_generations: int, length: int, vocabulary: int) -> Work:
    """Completions of `length` tokens each behind these prompts; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    num_rows = len(prompts) * num_generations
    rollout = Rollout(
        prompt_ids=prompts, token_NT=torch.randint(1, vocabulary, (num_rows, length), generator=generator),
        length_N=torch.full((num_rows,), length), sampler_logprob_NT=torch.zeros(num_rows, length),
        truncated_N=torch.ones(num_rows, dtype=torch.bool), text=[""] * num_rows)
    uniform = -float(torch.tensor(vocabulary).log())
    return Work(rollout, torch.randn(num_rows, generator=generator), uniform)


def load(folder: str) -> PreTrainedModel:
    """The transformers model with LoRA injected, its B drawn so that every branch has a gradient."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    torch.manual_seed(0)
    get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those of LoRA, by name; forgotten by the model."""
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


def loss_of(work: Work, logprob_NT: torch.Tensor, mask_NT: torch.Tensor, rows: Any = slice(None)) -> torch.Tensor:
    """The share of these tokens in the loss of all."""
    kl_NT = kl_divergence(logprob_NT, torch.full_like(logprob_NT, work.ref_logprob), estimator="k3")
    return policy_loss(
        logprob_NT, None, work.advantage_N[rows], mask_NT, loss_type="dapo", epsilon=0.2, epsilon_high=0.2, beta=BETA,
        denominator=work.rollout.token_NT.numel(), kl_NT=kl_NT)


def micro_batches(rollout: Rollout, max_tokens: int) -> list[Batch]:
    """Our packed rows of at most `max_tokens` tokens."""
    return pack(rollout, torch.ones(len(rollout.length_N), dtype=torch.bool), max_tokens=max_tokens)


def packed(policy: Policy, work: Work) -> None:
    """Forward and backward of ours."""
    for batch in micro_batches(work.rollout, WHOLE):
        loss_of(work, batch.scatter(policy(batch).logprob_K), batch.mask_UT).backward()


def padded(model: PreTrainedModel, work: Work, *, rows_at_once: int | None = None) -> None:
    """Forward and backward of `[N, S]` rows: prompts padded on the left, logits of the completions only."""
    rollout = work.rollout
    num_rows, num_generations = len(rollout.length_N), len(rollout.length_N) // len(rollout.prompt_ids)
    longest = max(map(len, rollout.prompt_ids))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in rollout.prompt_ids for _ in range(num_generations)]
    token_NS = torch.cat([torch.tensor(rows), rollout.token_NT], dim=1)
    blank_N = torch.tensor([longest - len(prompt) for prompt in rollout.prompt_ids for _ in range(num_generations)])
    seen_NS = torch.arange(token_NS.shape[1]) >= blank_N[:, None]
    position_NS = (seen_NS.cumsum(1) - 1).clamp(min=0)
    length = rollout.token_NT.shape[1]
    for chosen in torch.arange(num_rows).split(rows_at_once or num_rows):
        logits_NTV = model(
            token_NS[chosen], attention_mask=seen_NS[chosen].long(), position_ids=position_NS[chosen],
            use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
        logprob_NT = logits_NTV.log_softmax(dim=-1).gather(2, rollout.token_NT[chosen, :, None])[..., 0]
        loss_of(work, logprob_NT, torch.ones_like(logprob_NT, dtype=torch.bool), chosen).backward()


def phases(policy: Policy, work: Work) -> dict[str, float]:
    """Ours with its reference pass: seconds of reference, forward and backward."""
    seconds, last = dict.fromkeys(("reference_s", "forward_s", "backward_s"), 0.0), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = seconds[name] + now - last, now

    for batch in micro_batches(work.rollout, WHOLE):
        reference_NT = batch.scatter(policy(batch, reference=True).logprob_K)
        lap("reference_s")
        logprob_NT = batch.scatter(policy(batch).logprob_K)
        kl_NT = kl_divergence(logprob_NT, reference_NT, estimator="k3")
        loss = policy_loss(
            logprob_NT, None, work.advantage_N, batch.mask_UT, loss_type="dapo", epsilon=0.2, epsilon_high=0.2,
            beta=BETA, denominator=work.rollout.token_NT.numel(), kl_NT=kl_NT)
        lap("forward_s")
        loss.backward()
        lap("backward_s")
    return seconds


def arithmetic(model: PreTrainedModel, work: Work) -> dict[str, int]:
    """What one forward of our packed row has to compute, and the tokens of padded rows beside it.

        linear_flops      2 (parameters of the linear layers and of LoRA) L + 2 H V K
        attention_pairs   sum over segments w of n_w (n_w + 1) / 2 + n_w n_prefix + n_w n_parent
        attention_flops   4 H pairs layers

    with n_w tokens in segment w, of which the prefix counts as ancestor of all others. A step runs the forward twice,
    reference and policy, and a backward of about the same size as one forward each for scores and inputs.
    """
    config, found = model.config, {"packed_tokens": 0, "linear_flops": 0, "attention_pairs": 0}
    inner = sum(parameter.numel() for name, parameter in model.model.named_parameters() if parameter.dim() == 2)
    inner -= model.model.embed_tokens.weight.numel()
    for batch in micro_batches(work.rollout, WHOLE):
        segment_W, size_W = batch.segment_L.unique(return_counts=True)
        size = dict(zip(segment_W.tolist(), size_W.tolist()))
        parent = dict(zip(batch.segment_L.tolist(), batch.parent_L.tolist()))
        found["packed_tokens"] += len(batch.token_L)
        found["linear_flops"] += 2 * (inner * len(batch.token_L))
        found["linear_flops"] += 2 * config.hidden_size * config.vocab_size * len(batch.target_K)
        for segment, count in size.items():
            above = size.get(0, 0) * (segment > 0) + (size[parent[segment]] if parent[segment] > 0 else 0)
            found["attention_pairs"] += count * (count + 1) // 2 + count * above
    found["attention_flops"] = 4 * config.hidden_size * found["attention_pairs"] * config.num_hidden_layers
    longest = max(map(len, work.rollout.prompt_ids)) + work.rollout.token_NT.shape[1]
    return found | {"padded_tokens": longest * len(work.rollout.length_N)}


class Update(NamedTuple):
    """One way to compute the update.

    Args:
        says: what it is, in one clause.
        wrap: from the loaded model to what `run` takes.
        run: adds the gradients; returns seconds of its phases, where it tells them.
    """

    says: str
    wrap: Callable[[PreTrainedModel], Any]
    run: Callable[[Any, Work], dict[str, float] | None]


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    return model


def _few(model: PreTrainedModel, work: Work) -> None:
    padded(model, work, rows_at_once=ROWS)


UPDATES = {
    "ours": Update("`grpo.trainer.policy.Policy` over one packed row", Policy, packed),
    "padded": Update(
        "`Qwen2ForCausalLM` over all rows in one batch, `log_softmax` of the completions' logits, gather", _plain,
        padded),
    f"padded, {ROWS} rows at once": Update("the same in micro-batches", _plain, _few),
}
PHASES = Update("ours with its reference pass", Policy, phases)
