"""One measurement in a process of its own: `python -m benchmarks.step.worker JOB RESULT`, two JSON files.

`benchmarks.step` starts it; nobody else needs to.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.memory import Memory
from benchmarks.step.peers import ON_A_GPU, TRAINERS, Case, Step, Trainer

EARLY_SHARE = 0.01  # of the tokens asked for, that rows which ended early may lack


def check(step: Step, case: Case, prompt_lengths: list[int]) -> None:
    """Refuse a step that did less than it was asked for.

    Raises:
        RuntimeError: says what it did.
    """
    num_rows = case.num_prompts * case.num_generations
    if len(step.lengths) != num_rows:
        raise RuntimeError(f"trained on {len(step.lengths)} rows instead of {num_rows}")
    if sorted(step.prompt_lengths) != sorted(prompt_lengths * case.num_generations):
        found = sorted(set(step.prompt_lengths))
        raise RuntimeError(f"read prompts of {found} tokens, not of {sorted(prompt_lengths)}")
    asked = num_rows * case.max_completion_length
    if max(step.lengths) > case.max_completion_length or sum(step.lengths) < (1 - EARLY_SHARE) * asked:
        raise RuntimeError(f"sampled {sum(step.lengths)} tokens instead of {asked}")
    reward_BG = torch.tensor(step.rewards).view(case.num_prompts, case.num_generations)
    if (reward_BG.amax(dim=1) == reward_BG.amin(dim=1)).any():
        raise RuntimeError("gave a group equal rewards, which teach nothing")


def measure_steps(
    trainer: Trainer, case: Case, prompt_lengths: list[int], device: str = "cpu", *,
    then: Callable[[], None] = lambda: None, num_counted: int | None = None,
) -> dict:
    """Steps of one trainer, the first left out; the row of its table. Memory is the process's, or the GPU's.

    `then` is called after each step; of more than `num_counted` steps the others are not measured.
    """
    trainer.libraries()
    libraries = Memory(device).before
    steps: list[Step] = []
    memory: list[Memory] = []

    def observe(step: Step) -> None:
        check(step, case, prompt_lengths)
        steps.append(step)
        if not memory:  # the first step loads, compiles and allocates what stays
            memory.append(Memory(device))
        then()

    last = trainer.run(case, observe)
    if len(steps) != case.num_steps:
        raise RuntimeError(f"took {len(steps)} steps instead of {case.num_steps}")
    if not (last.get("grad_norm", 0) > 0 and last.get("kl", 0) > 0):
        raise RuntimeError(f"did not move the policy: {last}")
    counted = steps[1:num_counted]
    lengths = [length for step in counted for length in step.lengths]
    peak, held = memory[0].peak(), memory[0].before
    return {
        "why": None, "seconds": [step.seconds for step in counted],
        "parts": {name: statistics.median(step.parts[name] for step in counted) for name in counted[0].parts},
        "tokens": sum(lengths), "early": sum(length < case.max_completion_length for length in lengths), **last,
        "libraries_bytes": libraries, "held_bytes": held, "total_bytes": held + peak, "peak_bytes": peak}


def _steps(job: dict, folder: Path) -> Callable[[dict], dict]:
    """Measures whole steps of the job's trainer; a process has one case."""
    def once(case: dict) -> dict:
        prompt_lengths = case.pop("prompt_lengths")
        if job.get("device") != "cuda":
            return measure_steps(TRAINERS[job["engine"]], Case(**case), prompt_lengths)
        trainer, count = ON_A_GPU[job["engine"]], case["num_steps"]
        if not job["profile"]:
            return measure_steps(trainer, Case(**case), prompt_lengths, "cuda")
        with profile(activities=[ProfilerActivity.CUDA], schedule=schedule(wait=count, warmup=0, active=1)) as log:
            asked = Case(**case | {"num_steps": count + 1})
            row = measure_steps(trainer, asked, prompt_lengths, "cuda", then=log.step, num_counted=count)
        table = log.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=80)
        return row | {"profile": table}

    return once


def _updates(job: dict, folder: Path) -> Callable[[dict], dict]:
    """Measures updates, and leaves the LoRA gradients of the last case in `folder`."""
    from benchmarks.step.update import PHASES, UPDATES, arithmetic, draw, gradients, load

    update = PHASES if job["kind"] == "growth" else UPDATES[job["engine"]]
    model = load(job["model"])
    loaded = update.wrap(model)

    def once(case: dict) -> dict:
        work = draw(case["prompts"], case["num_generations"], case["length"], model.config.vocab_size)
        small = draw([prompt[-8:] for prompt in case["prompts"]], 2, 2, model.config.vocab_size)
        update.run(loaded, small)
        gradients(model)
        row: dict[str, Any] = {"why": None, "seconds": [], **arithmetic(model, work)}
        memory, peaks, phases = Memory("cpu"), [], []
        while len(row["seconds"]) < job["repeats"] and sum(row["seconds"]) < job["enough_s"]:
            if peaks:
                memory.restart()
            start = time.perf_counter()
            phases.append(update.run(loaded, work))
            row["seconds"].append(time.perf_counter() - start)
            peaks.append(memory.peak())
            found = gradients(model)
        if job["kind"] == "update":
            torch.save(found, folder / f"{job['engine']}.pt")
        else:
            row["parts"] = phases[row["seconds"].index(min(row["seconds"]))]
        return row | {"peak_bytes": max(peaks)}

    return once


def main(job_path: str, result_path: str) -> None:
    """Do one job: measure its cases in turn, write a row for each."""
    job, rows = json.loads(Path(job_path).read_text()), []
    torch.set_num_threads(job["threads"])
    once = (_steps if job["kind"] == "steps" else _updates)(job, Path(result_path).parent)
    for case in job["cases"]:
        try:
            rows.append(once(case))
        except Exception as reason:  # a peer may raise anything, and that is a result
            line = str(reason).strip().partition("\n")[0][:160]
            rows.append({"why": f"raises {type(reason).__name__}: {line}"})
        Path(result_path).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
