"""The start-up block: what runs here, why, and what it costs in memory."""

import torch
import torch.distributed as dist

import kernels
from grpo.advantage import (
    group_advantages,
    leave_one_out_advantages,
    pass_at_k_advantages,
    whitened_advantages,
)
from grpo.config import Config
from grpo.distributed import world_size
from grpo.memory.ledger import Ledger, size
from grpo.memory.plan import of_a_row
from grpo.report.tokens.worked import EXAMPLE, spelled
from grpo.sampler.decoder import Decoder
from grpo.trainer.engine import Engine


def announce(
    config: Config, device: torch.device, engine: Engine, decoder: Decoder, ledger: Ledger,
    chosen: dict[str, list[str]], left_out: int, num_steps: int,
) -> list[str]:
    """The lines; `chosen` holds what was chosen for this machine, and why."""
    dtype = ledger.dtype
    implementation, reason = kernels.choose(
        config.logprob_impl, device, dtype=dtype, hidden_size=decoder.config.hidden_size,
        num_tokens=config.micro_batch_tokens)
    synced = engine.num_trained() * dtype.itemsize
    quantised = "NF4 with double quantisation" if config.load_in_4bit else "not quantised"
    lines = [
        f"run        {config.recipe or 'no recipe'}: {num_steps} steps of {config.prompts_per_step} prompts x "
        f"{config.num_generations} completions, learning_rate {config.learning_rate:g}, on "
        f"{config.train_dataset_id_or_path}, to {config.output_dir}",
        f"ranks      {world_size()} x {device.type} over {dist.get_backend()}, ZeRO stage {config.zero_stage}",
        f"model      {config.model_name_or_path}, {str(dtype).removeprefix('torch.')}, {quantised}",
        f"trained    {engine.num_trained():,} parameters",
        f"log-probs  {implementation}: {reason}",
        f"attention  {'FlexAttention over blocks' if device.type == 'cuda' else 'in parts'} of a packed batch's tree; "
        "no mask is stored",
        *(f"{what:<11}{line}" for what, lines in chosen.items() for line in lines),
        *_memory(config, engine, decoder, ledger),
        f"sync       {synced / 2**20:,.1f} MiB of trained weights are gathered and copied each step",
        f"group      rewards {spelled(EXAMPLE, 0)} become the advantages {spelled(example(config), 3)}",
        "loss       expect a value near 0: on policy the advantages of a group sum to 0; read reward, kl, grad_norm",
    ]
    if not config.rollout_keep and device.type == "cpu":
        lines.append("note       rollout_keep=False has no effect: the sampler is in CPU memory anyway")
    if config.zero_stage == 0 and dtype == torch.bfloat16:
        lines.append("note       zero_stage=0 adds up the gradients of micro-batches in bfloat16; 1 to 3 do in float32")
    if left_out:
        lines.append(f"data       {left_out} problems left out: their prompt is longer than max_prompt_length")
    return lines + [f"note       {note}" for note in config.notes]


def example(config: Config) -> list[float]:
    """Advantages of the worked example, so that a reader sees what adv_estimator and scale_rewards do."""
    reward_BG = torch.tensor([EXAMPLE])
    right_BG, all_BG = reward_BG > 0, torch.ones(1, 4, dtype=torch.bool)
    if config.adv_estimator == "rloo":
        advantage_BG = leave_one_out_advantages(reward_BG)
    elif config.adv_estimator == "pass_at_k":
        advantage_BG = pass_at_k_advantages(right_BG, all_BG, k=config.pass_k)
    elif config.adv_estimator == "reinforce_plus_plus_baseline":  # with the std of this group, at equal lengths
        centred_BG = group_advantages(reward_BG, scale="none")
        advantage_BG = whitened_advantages(centred_BG, all_BG, mean=0.0, std=0.5)
    else:
        advantage_BG = group_advantages(reward_BG, scale=config.scale_rewards, batch_std=0.5)
    return advantage_BG[0].tolist()


def _memory(config: Config, engine: Engine, decoder: Decoder, ledger: Ledger) -> list[str]:
    """The ledger in brief."""
    # Before the first step only the two kinds of weights exist, so only they can be measured.
    row = of_a_row(ledger, config.micro_batch_tokens, checkpointing=config.gradient_checkpointing == "true")
    return [
        f"memory     formula / measured on rank 0: weights {size(ledger.weights())} / {size(engine.held_bytes())}, "
        f"sampler {size(ledger.rollout_copy())} / {size(decoder.nbytes())}",
        f"memory     formula: gradients {size(ledger.gradients())}, optimizer {size(ledger.optimizer())}, "
        f"bucket {size(ledger.bucket())}; a packed batch: "
        + ", ".join(f"{item.name} {size(item.num_bytes)}" for item in row),
    ]
