"""Train a model with GRPO (Shao et al. 2024, arXiv:2402.03300) on answers that programs can check.

    torchrun --nproc_per_node=2 train.py                                       # a laptop: tiny model, no download
    torchrun --nproc_per_node=8 train.py --config recipes/qwen2.5-7b-gsm8k.yaml

`grpo_step` is the algorithm; everything else prepares its parts or writes down what it did.
"""

import dataclasses
import json
import os
import sys
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from data.prompts import STOP_STRINGS
from grpo import checkpoint, doctor, evaluation, plan, trial, update
from grpo.advantage import group_advantages
from grpo.config import load
from grpo.distributed import gather_objects, rank, world_size
from grpo.finding import Finding, agree, count, failures
from grpo.metrics import Log
from grpo.report import answers_path, write_report
from grpo.rollout import generate
from grpo.run import Run, build
from grpo.schedule import learning_rate, prompts_of_step
from grpo.summary import Clock, global_std, reward_metrics, rollout_metrics
from grpo.types import Example, Rollout
from rewards import score

PATIENCE_S = 5  # a sampling phase that takes longer shows how far it is


def grpo_step(run: Run, step: int) -> tuple[dict[str, float], dict[str, list]]:
    """One step of GRPO.

    Returns:
        The step's metrics over all ranks, and this rank's rows of completions.jsonl by column.

    Collective: every rank, once per step.
    """
    config, clock = run.config, Clock()
    # 1. Take this rank's share of the step's prompts.
    examples, prompt_index = my_prompts(run, step)
    # 2. Sample G completions per prompt from the rollout copy; no rank waits for another.
    run.decoder.move(run.device)
    run.engine.sync(run.decoder)
    clock.lap("sync_s")
    rollout = sample(run, examples, prompt_index, step)
    clock.lap("rollout_s")
    # 3. Score them with programs.
    reward_N, parts = score_completions(run, examples, rollout, step)
    clock.lap("reward_s")
    # 4. How much better than its group is each completion?
    reward_BG = reward_N.view(len(examples), config.num_generations)
    batch_std = global_std(reward_N) if config.scale_rewards == "batch" else None
    advantage_N = group_advantages(reward_BG, scale=config.scale_rewards, batch_std=batch_std).flatten()
    # 5. What would the policy of step 0 say of them?
    work = update.prepare(rollout, advantage_N, config, run.limit, run.device)
    if config.beta > 0:
        update.score_reference(run.engine, work, config)
    clock.lap("reference_s")
    # 6. Move the policy.
    rate = learning_rate(
        step, peak=config.learning_rate, scheduler=config.lr_scheduler_type, warmup_ratio=config.warmup_ratio,
        total=run.num_steps,
    )
    metrics = update.apply(run.engine, work, config, rate)
    clock.lap("update_s")
    metrics |= reward_metrics(reward_BG, parts) | rollout_metrics(rollout, clock)
    metrics |= {"learning_rate": rate, "skipped_steps": run.engine.skipped_steps}
    return metrics, completion_columns(examples, rollout, reward_N, parts, advantage_N)


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


def score_completions(
    run: Run, examples: list[Example], rollout: Rollout, step: int
) -> tuple[torch.Tensor, dict[str, list]]:
    """[N] float32 total reward of each completion, and the parts by function name; a wrong reward ends the run."""
    rows = [example for example in examples for _ in range(run.config.num_generations)]
    columns = {name: [row.columns[name] for row in rows] for name in rows[0].columns if name != "prompt"}
    prompts = [row.prompt for row in rows]
    try:
        total, parts = score(run.reward_functions, prompts=prompts, completions=rollout.text, columns=columns)
    except ValueError as error:
        # On a line of its own: the progress bar holds the current one.
        raise SystemExit(f"\nerror: [rank {rank()} step {step}] {error}") from error
    return torch.tensor(total), parts


def completion_columns(
    examples: list[Example], rollout: Rollout, reward_N: torch.Tensor, parts: dict[str, list], advantage_N: torch.Tensor
) -> dict[str, list]:
    """What completions.jsonl says of each row, by column."""
    num_generations = len(rollout.text) // len(examples)
    return {
        # Not the whole prompt: with eight examples in front the file would be mostly those.
        "question": [example.question or example.prompt for example in examples for _ in range(num_generations)],
        "completion": rollout.text,
        "reward": reward_N.tolist(),
        "rewards": [dict(zip(parts, values)) for values in zip(*parts.values())],
        "advantage": advantage_N.tolist(),
        "length": rollout.length_N.tolist(),
        "truncated": rollout.truncated_N.tolist(),
    }


def evaluate(run: Run, when: str) -> None:
    """Score the held-out problems greedily and at the training temperature, each rank its share; rank 0 keeps them.

    Collective: every rank.
    """
    run.decoder.move(run.device)
    run.engine.sync(run.decoder)
    mine = list(range(rank(), len(run.test_examples), world_size()))
    for mode, temperature, num_samples in (("greedy", 0.0, 1), ("sampled", run.config.temperature, 4)):
        answers = evaluation.evaluate(
            run.decoder,
            run.tokenizer,
            [run.test_examples[index] for index in mine],
            num_samples=num_samples,
            temperature=temperature,
            seed=run.config.seed,
            max_completion_length=run.config.max_completion_length,
            stop_token_ids=run.stop_token_ids,
            stop_strings=STOP_STRINGS,
            prompt_index=mine,
            num_slots=run.num_slots,
            progress=f"{mode} {when}" if rank() == 0 else None,
        )
        everyone = [answer for part in gather_objects(answers) for answer in part]
        if rank() == 0:
            evaluation.save(everyone, answers_path(run.output_dir, mode, when))


def summarize(run: Run, seconds: float) -> dict[str, float]:
    """What the run came to: summary.json. `accuracy_*` is sampled at the training temperature, `greedy_*` is greedy."""
    summary: dict[str, float] = {"steps": run.num_steps, "ranks": world_size(), "seconds": round(seconds, 1)}
    if run.test_examples:
        for prefix, mode in (("", "sampled"), ("greedy_", "greedy")):
            before, after = (evaluation.load(answers_path(run.output_dir, mode, when)) for when in ("before", "after"))
            compared = evaluation.compare(before, after)
            summary |= {f"{prefix}{name}": value for name, value in compared.items()}
    (run.output_dir / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary


def should_save(run: Run, done: int) -> bool:
    """Is a checkpoint due after `done` steps?"""
    if run.config.save_strategy == "epoch":
        per_epoch = len(run.train_examples) / run.config.prompts_per_step
        return int(done / per_epoch) > int((done - 1) / per_epoch)
    return run.config.save_strategy == "steps" and done % run.config.save_steps == 0


def train(run: Run) -> None:
    """The steps of a run, from where its last checkpoint left off to the adapter and the report."""
    config, start = run.config, time.perf_counter()
    first_step = checkpoint.restore(run.engine, checkpoint.latest(run.output_dir)) if config.resume else 0
    log = None
    if rank() == 0:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(run.asked, resume=False).save(run.output_dir / "config.yaml")
        print("\n".join(run.announcement), flush=True)
    if run.test_examples and not config.resume:
        evaluate(run, "before")
    if rank() == 0:
        log = Log(
            run.output_dir, report_to=config.report_to, total_steps=run.num_steps, first_step=first_step,
            settings=dataclasses.asdict(config), logging_steps=config.logging_steps,
        )
    for step in range(first_step, run.num_steps):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout, if any: a function of the step, as all noise is
        metrics, columns = grpo_step(run, step)
        everyone = gather_objects(columns)
        if log:
            epoch = (step + 1) * config.prompts_per_step / len(run.train_examples)
            log.write(step, {"epoch": epoch, **metrics})
            for part in everyone:
                log.write_completions(step, part)
        if should_save(run, step + 1):
            checkpoint.save(run.engine, run.output_dir, step=step + 1, peft_config=run.peft_config)
    if log:
        log.close()
    exported = checkpoint.export(run.engine, run.output_dir, run.peft_config)
    if run.test_examples:
        evaluate(run, "after")
    if log:
        summary = summarize(run, time.perf_counter() - start)
        report = write_report(run.output_dir)
        print(json.dumps(summary, indent=2), f"weights {exported}", f"report  {report}", sep="\n")


def first_step(run: Run) -> list[Finding]:
    """What the doctor finds in the first step's completions and in an update that learns nothing from them."""
    clock = Clock()
    examples, prompt_index = my_prompts(run, 0)
    run.decoder.move(run.device)
    run.engine.sync(run.decoder)
    clock.lap("sync_s")
    rollout = sample(run, examples, prompt_index, 0)
    clock.lap("rollout_s")
    reward_N, parts = score_completions(run, examples, rollout, 0)
    return agree(trial.of_step(run, rollout, reward_N.view(len(examples), -1), parts, clock))


def examine(run: Run) -> int:
    """`--doctor`: one line for each thing looked at, and 0 if none failed. Nothing is trained, nothing is left behind.

    Collective: every rank.
    """
    show = print if rank() == 0 else lambda *_, **__: None
    findings = doctor.at_rest(run, run.reward_functions)
    show(*findings, sep="\n", flush=True)
    if not failures(findings):  # or there would be no first step
        step = first_step(run)
        show(*step, sep="\n")
        findings += step
    show(count(findings))
    return 1 if failures(findings) else 0


def main(argv: list[str]) -> int:
    """Run, and answer a user's mistake with one line and exit code 2."""
    try:
        config = load(argv)
        if config.plan is not None:
            print("\n".join(plan.page(config)))
            return 0
        run = build(config)
        if not config.doctor:
            run = doctor.admit(run)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank came to the same refusal
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    code = 0
    if config.doctor:
        code = examine(run)
    else:
        train(run)
    dist.barrier()
    dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
