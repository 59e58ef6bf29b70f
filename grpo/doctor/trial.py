"""One step tried, from its completions to its gradient and a checkpoint, with a learning rate of 0: nothing is learnt.

All numbers are over all ranks, so every rank comes to the same findings.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from grpo import update
from grpo.distributed import gather_objects, global_max, global_sum, rank
from grpo.doctor.at_rest import dropout_cure, shard
from grpo.doctor.chat import what_ends
from grpo.doctor.finding import Finding, agree, judge
from grpo.health.pulse import pulse
from grpo.report.measures import Clock, rollout_metrics
from grpo.report.metrics import METRICS
from grpo.run.parts import Run
from grpo.saving import checkpoint
from grpo.step import Collected, collect
from grpo.trainer.out_of_memory import TokenLimit
from grpo.types import Rollout
from grpo.update import Update

NOISE = 0.1  # a ratio further from 1 is more than rounding
MANY = 0.01  # of the tokens
SCRATCH = ".doctor"


def first_step(run: Run) -> list[Finding]:
    """Every check of a step: its completions, their log-probabilities, an update that learns nothing, a checkpoint.

    Collective: every rank, once.
    """
    clock = Clock(0)
    collected = collect(run, 0, clock)
    findings = completions(run, collected.rollout, collected.metrics | rollout_metrics(collected.drawn, clock))
    work = prepare(run, collected, run.limit)
    if run.config.beta > 0:
        update.ask_reference(run.engine, work, run.config)
    findings += agreement(run, work, collected)
    return agree([*findings, gradient(run, work), saved(run)])


def prepare(run: Run, collected: Collected, limit: TokenLimit) -> Update:
    """The update's input, as in a step. Collective."""
    return update.prepare(
        collected.rollout, collected.advantage_BG.flatten(), collected.scored_N, run.config, limit)


def bound(metric: str, when: str = "") -> float:
    """Where a metric's healthy range ends, by the table of metrics."""
    return next(healthy.high for healthy in METRICS[metric].ranges if healthy.when == when)


def completions(run: Run, rollout: Rollout, metrics: dict[str, float]) -> list[Finding]:
    """Do completions end, say something, earn something, and differ in that? Collective."""
    config = run.config
    sums = global_sum({"rows": len(rollout.text), "empty": sum(not text.strip() for text in rollout.text)})
    cut, right, wrong, unscored = (metrics[name] for name in (
        "truncated_share", "zero_variance_all_right", "zero_variance_all_wrong", "unscored_share"))
    longer = (f"temperature=1 instead of {config.temperature:g}" if config.temperature > 1
              else f"max_completion_length={2 * config.max_completion_length}, or {what_ends(run)}")
    advice, number = "", "reward_funcs of which one gives each completion a number"
    if right + wrong > bound("zero_variance_all_wrong"):
        what = "zero_variance_all_right" if right > wrong else "zero_variance_all_wrong"
        advice = f"num_generations={2 * config.num_generations}; or {METRICS[what].cure}"
    return [
        judge("truncated", f"{100 * cut:.0f} % of {sums['rows']:.0f} completions are cut at "
              f"{config.max_completion_length:,} tokens", warn=longer if cut > bound("truncated_share") else "",
              fail=longer if cut == 1 else ""),
        judge("scored", f"{100 * (1 - unscored):.0f} % of {sums['rows']:.0f} completions have a reward",
              warn=number if unscored > bound("unscored_share") else "", fail=number if unscored == 1 else ""),
        judge("groups", f"at temperature {config.temperature:g} {100 * right:.0f} % are all right and "
              f"{100 * wrong:.0f} % all wrong, which teach nothing; accuracy {100 * metrics['accuracy']:.0f} %",
              warn=advice),
        judge("completions", f"{metrics['completion_length']:.1f} tokens on average at "
              f"{metrics['rollout_tokens_per_s']:,.0f} tokens/s; {sums['empty']:.0f} of {sums['rows']:.0f} are empty",
              warn="prompts after which the model has something to say"
              if sums["empty"] > bound("truncated_share") * sums["rows"] else ""),
    ]


@torch.no_grad()
def logprobs(run: Run, work: Update) -> torch.Tensor:
    """[U, T] float32, nats, of all ranks' tokens under the policy, 0.0 where none is counted. Collective."""
    torch.manual_seed(run.config.seed)  # dropout, if any, drops the same each time
    logprob_UT = torch.zeros_like(work.sampler_logprob_UT)
    for batch in work.micro_batches:
        logprob_UT += torch.where(batch.mask_UT, batch.scatter(run.engine(batch).logprob_K), 0.0)
    return of_all_ranks(logprob_UT)


def of_all_ranks(value_UT: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, of which each token has one. Collective."""
    summed_UT = value_UT.clone()
    dist.all_reduce(summed_UT)
    return summed_UT


def agreement(run: Run, work: Update, collected: Collected) -> list[Finding]:
    """Do policy, reference and sampler give a token the same log-probability? Collective."""
    config = run.config
    column_T = torch.arange(work.sampler_logprob_UT.shape[1])
    mask_UT = ((column_T < work.rollout.length_N[:, None]) & work.keep_U[:, None]).to(run.device)
    logprob_UT, again_UT = logprobs(run, work), logprobs(run, work)
    findings = [judge("repeatable", f"{int((logprob_UT != again_UT).sum()):,} of {work.num_tokens:,} tokens get "
                      "another log-probability the second time", fail="" if torch.equal(logprob_UT, again_UT) else
                      "logprob_impl=reference, or a deepspeed setting that is deterministic")]
    if config.beta > 0:
        apart = float((logprob_UT - of_all_ranks(work.ref_logprob_UT)).abs().max())
        drops = dropout_cure(run)
        cure = drops or "adapter_name_or_path: its frozen copy, or the base, is not what the run starts from"
        findings.append(judge("kl at step 0", f"policy and reference are up to {apart:.3g} nats apart, 0 expected"
                              + (" without dropout" if drops else ""),
                              **{"warn" if drops else "fail": "" if apart == 0 else cure}))
    else:
        findings.append(judge("kl at step 0", "beta 0: there is no reference"))
    findings.append(sampler_gap(run, work.sampler_logprob_UT, logprob_UT, mask_UT))

    longest = int(global_max({"longest": max(len(batch.token_L) for batch in work.micro_batches)})["longest"])
    limit = TokenLimit(max(longest // 2, 1), needed=run.limit.needed, device=run.device)
    other = prepare(run, collected, limit)
    ratio_UT = (logprobs(run, other) - logprob_UT).exp()
    far = float((~((ratio_UT - 1).abs() <= NOISE)).sum()) / max(work.num_tokens, 1)  # NaN is far, too
    findings.append(judge(
        "ratio noise", f"in packed batches of {longest // 2:,} instead of {longest:,} tokens {100 * far:.2g} % of the "
        f"tokens have a ratio beyond {1 - NOISE:g} to {1 + NOISE:g}, at most {float(ratio_UT.max()):.4g}",
        warn="torch_dtype=float32, or rollout_correction=truncated" if far > MANY else ""))
    return findings


def sampler_gap(run: Run, sampler_UT: torch.Tensor, logprob_UT: torch.Tensor, mask_UT: torch.Tensor) -> Finding:
    """Does the sampler know the policy's probabilities?"""
    gap_UT = torch.where(mask_UT, (sampler_UT - logprob_UT).abs(), 0.0)
    mean, most = float(gap_UT.sum() / mask_UT.sum().clamp(min=1)), float(gap_UT.max())
    dtype = str(run.ledger.dtype).removeprefix("torch.")
    exact = run.ledger.dtype == torch.float32 and not run.config.tf32
    when = "in float32" if exact else "in bfloat16 or tf32"
    limits = [bound(name, when) for name in ("sampler_gap_mean", "sampler_gap_max")]
    cure = dropout_cure(run) or "rollout_weights=lora; else the sampler's weights are stale"
    return judge("sampler gap", f"{mean:.3g} nats on average and {most:.3g} at most; expected in {dtype}: below "
                 f"{limits[0]:g} and {limits[1]:g}", warn=cure if not most < limits[1] else "",
                 fail=cure if not mean < limits[0] else "")


def checksum(run: Run) -> dict[str, float]:
    """Of this rank's part of each trained tensor."""
    return {name: float(shard(parameter).double().sum()) for name, parameter in run.engine.trainable.items()}


def gradient(run: Run, work: Update) -> Finding:
    """Forward, backward and an optimizer step at a rate of 0, of one iteration. Collective."""
    before = checksum(run)
    norm = update.move(run.engine, work, replace(run.config, num_iterations=1), 0.0)["grad_norm"]
    moved = global_sum({"moved": sum(value != before[name] for name, value in checksum(run).items())})["moved"]
    flat = not work.advantage_U.any()
    cures = {
        "torch_dtype=float32": norm == float("inf"), "deepspeed without what changes the optimizer": moved,
        "lora_target_modules that the loss reaches": norm == 0 and not flat}
    return judge("gradient", f"norm {norm:.3g}{', as all groups are flat' if flat else ''}; at a learning rate of 0 "
                 f"{moved:.0f} tensors moved", fail=next(filter(cures.get, cures), ""),
                 warn="as of groups" if flat else "")


def saved(run: Run) -> Finding:
    """Is a checkpoint read back what was written? Trained tensors are overwritten in between. Collective."""
    pulse.enter("save")
    engine = run.engine
    if engine.optimizer_steps == 0:
        engine.start_optimizer(0)  # the step was skipped: no moments yet
    before = state(run)
    with scratch(run.output_dir) as folder:
        problem = checkpoint.save(engine, folder, step=0, peft_config=run.peft_config, facts={})
        if problem:
            return judge("checkpoint", problem, fail="output_dir on a disk that takes it")
        path, _ = checkpoint.find(folder)
        num_bytes = sum(file.stat().st_size for file in path.rglob("*")) if rank() == 0 else 0
        for parameter in engine.trainable.values():
            engine.set_state(parameter, {kind: one + 1 for kind, one in engine.state(parameter).items()})
        checkpoint.restore(engine, path)
        dist.barrier()
    after = state(run)
    differ = [name for name in before if not torch.equal(before[name], after[name])]
    numbers = global_sum({"differ": len(differ), "tensors": len(before), "bytes": num_bytes})
    return judge("checkpoint", f"{numbers['bytes']:,.0f} bytes written and read; {numbers['differ']:.0f} of "
                 f"{numbers['tensors']:.0f} tensors differ",
                 fail="another zero_stage, or deepspeed without settings" if numbers["differ"] else "")


def state(run: Run) -> dict[str, torch.Tensor]:
    """Rank 0's copy of all that trains, whole: masters, moments, and the weights computed with. Collective."""
    found = {}
    for name, parameter in run.engine.trainable.items():
        with run.engine.gathered([parameter]):
            tensors = {"weight": parameter.detach().cpu().clone()} if rank() == 0 else {}
        for kind, tensor in run.engine.state(parameter).items():
            if rank() == 0:
                tensors[kind] = tensor.detach().cpu().clone()
        found |= {f"{name}:{kind}": tensor for kind, tensor in tensors.items()}
    return found


@contextmanager
def scratch(output_dir: Path) -> Iterator[Path]:
    """A folder in output_dir that is gone afterwards, with those above it that it made and that nobody else uses."""
    missing = [path for path in (output_dir, *output_dir.absolute().parents) if not path.exists()]
    folder = output_dir / f"{SCRATCH}-{gather_objects(os.getpid())[0]}"  # a second doctor has its own
    try:
        yield folder
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # what a neighbour has written to stays, and so does all above it
                for path in missing:
                    path.rmdir()
