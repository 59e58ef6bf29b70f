"""What the checks of the sharded engine work on: small runs, drawn completions, and the same by plain PyTorch.

The checks run inside ranks, in a folder that holds the models `tied` and `untied`; see tests/support/rank_checks.py.
The truth of every gradient is computed on each rank with plain PyTorch: no DeepSpeed, no packing, all data in one
process.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from peft import LoraConfig
from ranks import SHARD_EVERYTHING

from grpo import update
from grpo.config import Config
from grpo.distributed import rank, world_size
from grpo.loading.adapter import add_adapter
from grpo.loading.model import build_decoder, load_base
from grpo.run.build import build_engine
from grpo.sampler.decoder import Decoder
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import Policy
from grpo.types import Rollout

CPU = torch.device("cpu")
VOCAB = 320
NUM_PROMPTS, NUM_GENERATIONS, LONGEST = 4, 3, 7
HEAD = ["lm_head", "embed_tokens"]  # trained whole beside LoRA
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Parts(NamedTuple):
    """What an engine is built from, and what samples from it."""

    policy: Policy
    decoder: Decoder
    peft_config: LoraConfig | None


def config(**options) -> Config:
    """A small sharded run; `model` is tied or untied. LoRA in two of seven places: ZeRO takes its time per module."""
    defaults = dict(
        model_name_or_path=options.pop("model", "tied"), torch_dtype="float32", load_in_4bit=False, lora_r=4,
        lora_target_modules=["q_proj", "down_proj"], seed=3, micro_batch_tokens=60, gradient_checkpointing="false",
        max_completion_length=LONGEST, num_generations=NUM_GENERATIONS, max_grad_norm=0.0, deepspeed=SHARD_EVERYTHING,
    )
    return Config(**{**defaults, **options})


def dtype_of(run: Config) -> torch.dtype:
    return getattr(torch, run.torch_dtype)


def base_of(run: Config) -> torch.nn.Module:
    """The model as it is on disk."""
    return load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype_of(run), device=CPU)


def parts(run: Config, *, drawn: bool = True) -> Parts:
    """A policy with an adapter, or all of whose weights train; `drawn`: LoRA's B is random, so that it says something.
    """
    torch.manual_seed(run.seed)
    model, peft_config = base_of(run), None
    if run.use_peft:
        peft_config = add_adapter(model, run, dtype_of(run))
    else:
        model.requires_grad_(True)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if drawn and "lora_B" in name and ".reference" not in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(dtype_of(run))
    decoder = build_decoder(model, form=run.rollout_weights)
    if run.gradient_checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, impl=run.logprob_impl, frozen_copy=not run.use_peft).train()
    return Parts(policy, decoder, peft_config)


def engine_of(run: Config, policy: Policy) -> Engine:
    return build_engine(policy, run, dtype_of(run))


def begin(run: Config, *, drawn: bool = True) -> tuple[Engine, Decoder]:
    """The engine of a run and its sampler."""
    policy, decoder, _ = parts(run, drawn=drawn)
    return engine_of(run, policy), decoder


def sync(engine: Engine, decoder: Decoder) -> None:
    """As `Run.sync`."""
    engine.copy_to(decoder.tensors())
    decoder.merge()


def copied(decoder: Decoder) -> dict[str, torch.Tensor]:
    """The sampler's weights as they are now."""
    return {name: tensor.clone() for name, tensor in decoder.tensors().items()}


def rollout(num_prompts: int = NUM_PROMPTS, seed: int = 0) -> Rollout:
    """Completions of unequal length behind prompts that share a prefix."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    prefix = draw(5)
    num_rows = num_prompts * NUM_GENERATIONS
    length_N = torch.randint(1, LONGEST + 1, (num_rows,), generator=generator)
    token_NT = torch.zeros(num_rows, LONGEST, dtype=torch.int64)
    for n, length in enumerate(length_N):
        token_NT[n, :length] = torch.tensor(draw(int(length)))
    return Rollout(
        prompt_ids=[prefix + draw(2 + b) for b in range(num_prompts)], token_NT=token_NT, length_N=length_N,
        sampler_logprob_NT=torch.zeros(num_rows, LONGEST), truncated_N=torch.zeros(num_rows, dtype=torch.bool),
        text=[""] * num_rows,
    )


def part_of(whole: Rollout, first: int, last: int) -> Rollout:
    """The prompts first..last-1 with their completions."""
    rows = slice(first * NUM_GENERATIONS, last * NUM_GENERATIONS)
    return Rollout(
        prompt_ids=whole.prompt_ids[first:last], token_NT=whole.token_NT[rows], length_N=whole.length_N[rows],
        sampler_logprob_NT=whole.sampler_logprob_NT[rows], truncated_N=whole.truncated_N[rows], text=whole.text[rows],
    )


def advantages(whole: Rollout) -> torch.Tensor:
    """[N] fixed advantages."""
    return torch.randn(len(whole.text), generator=torch.Generator().manual_seed(9))


def limit_of(run: Config) -> TokenLimit:
    """The run's own, by a formula that always fits."""
    return TokenLimit(run.micro_batch_tokens, needed=lambda num_tokens: 0, device=CPU)


def work_of(
    run: Config, whole: Rollout, prompts: tuple[int, int] | None = None, *, limit: TokenLimit | None = None,
    advantage_N: torch.Tensor | None = None,
):
    """The update's input from the prompts first..last-1; default: this rank's equal share."""
    share = NUM_PROMPTS // world_size()
    first, last = prompts or (rank() * share, (rank() + 1) * share)
    rows = slice(first * NUM_GENERATIONS, last * NUM_GENERATIONS)
    chosen_N = advantages(whole) if advantage_N is None else advantage_N
    scored_N = torch.ones_like(chosen_N[rows], dtype=torch.bool)
    return update.prepare(part_of(whole, first, last), chosen_N[rows], scored_N, run, limit or limit_of(run))


def move(engine: Engine, run: Config, work, rate: float) -> dict[str, float]:
    """One update; its metrics."""
    if run.beta > 0:
        update.ask_reference(engine, work, run)
    return update.move(engine, work, run, rate)


def train_steps(
    engine: Engine, decoder: Decoder, run: Config, steps: int, rate: float = 1e-2, first: int = 0
) -> list[dict[str, float]]:
    """A few updates on drawn completions; the metrics of each."""
    metrics = []
    for step in range(first, first + steps):
        sync(engine, decoder)
        metrics.append(move(engine, run, work_of(run, rollout(seed=step)), rate))
    return metrics


def engine_logprobs(engine: Engine, whole: Rollout, run: Config, **options) -> torch.Tensor:
    """[N, T] what the engine says of the rollout; each rank asks it of its share, and all get the whole."""
    work = work_of(run, whole)
    result_NT = torch.zeros_like(work.sampler_logprob_UT)
    with torch.no_grad():
        for batch in work.micro_batches:
            result_NT += batch.scatter(engine(batch, **options).logprob_K) * batch.mask_UT
    torch.distributed.all_reduce(result_NT)
    return result_NT


def distributions(logits: Callable[[torch.Tensor], torch.Tensor], whole: Rollout) -> torch.Tensor:
    """[N, T, V] log-probabilities the plain way: full logits of a prompt's padded completions; 0.0 beyond their ends.
    """
    logprob_NTV = []
    for b, prompt in enumerate(whole.prompt_ids):
        token_GT = whole.token_NT[b * NUM_GENERATIONS : (b + 1) * NUM_GENERATIONS]  # behind an end lies padding
        token_GL = torch.cat([torch.tensor([prompt]).expand(NUM_GENERATIONS, -1), token_GT], dim=1)
        logprob_NTV.append(logits(token_GL)[:, len(prompt) - 1 : -1].float().log_softmax(-1))
    mask_NT = torch.arange(LONGEST) < whole.length_N[:, None]
    return torch.cat(logprob_NTV) * mask_NT[..., None]


def padded_distributions(model, whole: Rollout) -> torch.Tensor:
    """[N, T, V] what a model of transformers says."""
    model.set_attn_implementation("sdpa")  # a Policy has set its own
    return distributions(lambda token_GL: model(input_ids=token_GL, use_cache=False).logits, whole)


def padded_logprobs(model, whole: Rollout) -> torch.Tensor:
    """[N, T] log-probabilities of the rollout's tokens, the plain way."""
    with torch.no_grad():
        return padded_distributions(model, whole).gather(-1, whole.token_NT[..., None])[..., 0]
