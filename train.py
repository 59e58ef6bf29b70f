"""Train a model with GRPO (Shao et al. 2024, arXiv:2402.03300) on answers that programs can check.

    torchrun --nproc_per_node=2 train.py                                       # a laptop: tiny model, no download
    torchrun --nproc_per_node=8 train.py --config recipes/qwen2.5-7b-gsm8k.yaml

`grpo_step` is the algorithm; everything else prepares its parts or writes down what it did.
"""

import dataclasses
import json
import math
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from grpo.health import launcher

if __name__ == "__main__":
    launcher.end_with_it()  # before the imports below: a launcher that is killed during them takes its ranks along

from grpo.config import Config
from grpo.run.command import asked

if __name__ == "__main__":
    config = asked(sys.argv[1:])  # `--help`, `--plan` and a mistake end here: the imports below take ten seconds

import torch
import torch.distributed as dist
from tqdm import tqdm

from data.example import Example
from data.prompts import STOP_STRINGS
from grpo import distributed, update
from grpo.advantage import gate_advantages, group_advantages
from grpo.distributed import gather_objects, rank, trim_heap, world_size
from grpo.doctor import at_rest, trial
from grpo.doctor.finding import Finding, agree, count, failures
from grpo.health import heartbeat, last_words
from grpo.health.pulse import describe, pulse
from grpo.health.stop_request import Stopped, stop_request
from grpo.options.refusal import spelled_out
from grpo.report.log import Log
from grpo.report.page import write_report
from grpo.report.summary import Clock, global_std, reward_metrics, right_rows, rollout_metrics
from grpo.run import heldout
from grpo.run.build import Run, build
from grpo.run.position import Position
from grpo.run.scoring import completion_columns, end_if_rewards_fail, score_completions
from grpo.sampler.generate import generate
from grpo.saving import checkpoint, output_lock, skipped
from grpo.schedule import learning_rate, prompts_of_step
from grpo.types import Rollout

PATIENCE_S = 5  # a sampling phase that takes longer shows how far it is


def grpo_step(run: Run, step: int) -> tuple[dict[str, float], dict[str, list]]:
    """One step of GRPO.

    Returns:
        The step's metrics over all ranks, and this rank's rows of completions.jsonl by column.

    Raises:
        Stopped: the run was asked to stop before the policy had moved; on every rank.

    Collective: every rank, once per step.
    """
    config, clock = run.config, Clock(step)
    # 1. Take this rank's share of the step's prompts, and the policy as it is.
    clock.enter("sync")
    examples, prompt_index = my_prompts(run, step)
    run.sync()
    with stop_request.may_end_this():
        # 2. Sample G completions per prompt from the rollout copy; no rank waits for another.
        clock.enter("rollout")
        rollout = sample(run, examples, prompt_index, step)
        # 3. Score them with programs.
        clock.enter("reward")
        reward_N, scored = score_completions(run, examples, rollout, step)
    # 4. How much better than its group is each completion?
    clock.enter("reference")
    reward_BG = reward_N.view(len(examples), config.num_generations)
    right_BG = right_rows(reward_BG, scored.parts)
    batch_std = global_std(reward_N) if config.scale_rewards == "batch" else None
    advantage_BG = group_advantages(reward_BG, scale=config.scale_rewards, batch_std=batch_std)
    advantage_BG = gate_advantages(advantage_BG, right_BG, gate=config.advantage_gate)
    metrics = reward_metrics(reward_BG, scored, right_BG, advantage_BG)
    end_if_rewards_fail(config.max_reward_failures, metrics["reward_failures"], scored.failures, step)
    # 5. What would the policy of step 0 say of them?
    work = update.prepare(rollout, advantage_BG.flatten(), config, run.limit, run.device)
    if config.beta > 0:
        update.score_reference(run.engine, work, config)
    # 6. Move the policy.
    clock.enter("update")
    rate = learning_rate(
        step, peak=config.learning_rate, scheduler=config.lr_scheduler_type, warmup_ratio=config.warmup_ratio,
        total=run.num_steps,
    )
    metrics |= update.apply(run.engine, work, config, rate)
    clock.enter("log")
    if rank() == 0 and not math.isfinite(metrics["grad_norm"]):
        skipped.dump(run.output_dir, step, work, where=describe(pulse.take()))
    metrics |= rollout_metrics(rollout, clock)
    metrics |= {"learning_rate": rate, "skipped_steps": run.engine.skipped_steps}
    return metrics, completion_columns(examples, rollout, reward_N, scored.parts, advantage_BG)


def my_prompts(run: Run, step: int) -> tuple[list[Example], list[int]]:
    """This rank's share of the step's prompts, and the place of each in the whole step, which keys its noise."""
    num_prompts, share = run.config.prompts_per_step, run.config.prompts_per_step // world_size()
    chosen = prompts_of_step(len(run.train_examples), step, prompts_per_step=num_prompts, seed=run.config.seed)
    places = list(range(rank() * share, (rank() + 1) * share))
    return [run.train_examples[chosen[place]] for place in places], places


def sample(run: Run, examples: list[Example], prompt_index: list[int], step: int) -> Rollout:
    """G completions of each prompt; a bar shows where a long phase stands."""
    config, num_rows = run.config, len(examples) * run.config.num_generations
    with tqdm(total=num_rows, desc=f"sample step {step}", unit="row", delay=PATIENCE_S, leave=False,
              disable=rank() > 0) as bar:

        def show(tokens: int, finished: int) -> None:
            bar.set_postfix(tokens=tokens, refresh=False)
            bar.update(finished - bar.n)

        rollout = generate(
            run.decoder,
            [run.tokenizer.encode(example.prompt) for example in examples],
            tokenizer=run.tokenizer,
            num_generations=config.num_generations,
            max_completion_length=config.max_completion_length,
            temperature=config.temperature,
            stop_token_ids=run.stop_token_ids,
            stop_strings=STOP_STRINGS,
            seed=config.seed,
            step=step,
            prompt_index=prompt_index,
            num_slots=run.num_slots,
            progress=show,
        )
    if not config.rollout_keep:
        run.decoder.move("cpu")
    return rollout


def train(run: Run) -> int:
    """A run, from where its last checkpoint left off to the adapter and the report.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: too many steps in a row had a gradient that was not finite, or a stop was asked for and not saved.

    Collective: every rank.
    """
    start, position, log = time.perf_counter(), Position(run.first_step), None
    if rank() == 0:
        begin_output(run)
    try:
        if run.test_examples and run.first_step == 0:
            heldout.solve(run, "before")
        pulse.enter("log")
        log = open_log(run) if rank() == 0 else None
        take_steps(run, position, log)
        pulse.enter("export")
        exported = checkpoint.export(run.engine, run.output_dir, run.peft_config)
        if run.test_examples:
            heldout.solve(run, "after")
    except Stopped:
        position.save(run, must=True)
        exported = None
    pulse.enter("log")
    if log:
        log.flush()
    if exported and rank() == 0:
        summary = heldout.summarize(run, time.perf_counter() - start)
        print(json.dumps(summary, indent=2), f"weights {exported}", sep="\n")
        print(f"report  {write_report(run.output_dir)}")
    return 0


def take_steps(run: Run, position: Position, log: Log | None) -> None:
    """The steps that are left, each logged, and saved when it is due.

    Raises:
        Stopped: the run was asked to stop; on every rank.
        SystemExit: as `train`.

    Collective: every rank.
    """
    config, num_skipped = run.config, 0
    with suppress(Stopped):
        for step in range(run.first_step, run.num_steps):
            torch.manual_seed(config.seed * 1_000_003 + step)  # dropout too is a function of the step
            metrics, columns = grpo_step(run, step)
            position.done = step + 1
            everyone = gather_objects(columns)
            if log:
                epoch = position.done * config.prompts_per_step / len(run.train_examples)
                log.write(step, {"epoch": epoch, **metrics})
                for part in everyone:
                    log.write_completions(step, part)
            num_skipped = 0 if math.isfinite(metrics["grad_norm"]) else num_skipped + 1
            if num_skipped > config.max_skipped_steps:
                raise SystemExit(
                    f"error: {describe(pulse.take())} max_skipped_steps={config.max_skipped_steps}: now {num_skipped} "
                    f"in a row had a gradient that is not finite; what they were computed from is in "
                    f"{run.output_dir / 'skipped'}; nearest valid: a lower learning_rate, from the last checkpoint")
            trim_heap()
            stop_request.check()
            if position.is_save_due(run):
                position.save(run, must=False)
    if log:
        log.close()
    stop_request.check()


def begin_output(run: Run) -> None:
    """Make the output folder, keep the recipe in it, and say what runs here."""
    run.output_dir.mkdir(parents=True, exist_ok=True)
    dataclasses.replace(run.asked, resume=False).save(run.output_dir / "config.yaml")
    print("\n".join(run.announcement), flush=True)


def open_log(run: Run) -> Log:
    """The log of a run, which starts or goes on."""
    return Log(
        run.output_dir, report_to=run.config.report_to, total_steps=run.num_steps, first_step=run.first_step,
        settings=dataclasses.asdict(run.config), logging_steps=run.config.logging_steps,
    )


def first_step(run: Run) -> list[Finding]:
    """What the doctor finds in the first step's completions and in an update that learns nothing from them."""
    clock = Clock(0)
    clock.enter("sync")
    examples, prompt_index = my_prompts(run, 0)
    run.sync()
    clock.enter("rollout")
    rollout = sample(run, examples, prompt_index, 0)
    clock.enter("reward")
    reward_N, scored = score_completions(run, examples, rollout, 0)
    return agree(trial.of_step(run, rollout, reward_N.view(len(examples), -1), scored, clock))


def examine(run: Run) -> int:
    """`--doctor`: one line for each thing looked at, and 0 if none failed. Nothing is trained, nothing is left behind.

    Collective: every rank.
    """
    show = print if rank() == 0 else lambda *_, **__: None
    findings = at_rest.look(run, own_rewards=True)
    show(*findings, sep="\n", flush=True)
    if not failures(findings):  # or there would be no first step
        step = first_step(run)
        show(*step, sep="\n")
        findings += step
    show(count(findings))
    return 1 if failures(findings) else 0


def run_or_fail(config: Config) -> int:
    """Run, and answer what ends it early with one message and the exit code: 2 for a user's mistake, else 1.

    Collective: every rank.
    """
    with ExitStack() as opened:
        try:
            distributed.start(config.ddp_timeout)
            heartbeat.start(config.ddp_timeout)
            claim = partial(output_lock.claim, Path(config.output_dir), resume=config.resume)
            if config.resume:
                opened.enter_context(claim())  # before a checkpoint is read
            run = build(config)
            opened.callback(run.rewards.close)
            if not config.doctor:
                run = at_rest.admit(run)
                opened.enter_context(stop_request.listening())  # also while a failure is told: torchrun sends SIGTERM
            if not (config.doctor or config.resume):
                opened.enter_context(claim())  # before the folder is made
        except ValueError as error:
            return heartbeat.fail(f"error: {spelled_out(str(error))}", 2)
        except (Exception, KeyboardInterrupt) as error:
            return heartbeat.fail(last_words.words(error), 1)
        try:
            code = examine(run) if config.doctor else train(run)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return heartbeat.fail(last_words.words(error), 1)
    dist.barrier()
    heartbeat.stop()
    dist.destroy_process_group()
    return code


def main(argv: list[str]) -> int:
    """What the command does; the exit code."""
    try:
        config = asked(argv)
    except SystemExit as answered:
        return answered.code
    return run_or_fail(config)


if __name__ == "__main__":
    sys.exit(run_or_fail(config))
