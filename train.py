"""Train a model with GRPO (Shao et al. 2024, arXiv:2402.03300) on answers that programs can check.

    torchrun --nproc_per_node=2 train.py                                       # a laptop: tiny model, no download
    torchrun --nproc_per_node=8 train.py --config recipes/qwen2.5-7b-gsm8k.yaml

`grpo_step` in grpo/step.py is the algorithm; this file is the loop around it.
"""

import dataclasses
import gc
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from grpo.health import launcher

if __name__ == "__main__":
    launcher.end_with_it()  # before the imports below: a launcher that is killed during them takes its ranks along

from grpo.config import Config
from grpo.run.command import asked, found

if __name__ == "__main__":
    config = asked(sys.argv[1:])  # `--help`, `--plan` and a mistake end here: the imports below take eight seconds
    gc.disable()  # imports leave no garbage; to look for it takes another second

import torch

if __name__ == "__main__" and not torch.cuda.is_available():
    # On a CPU nothing is compiled, and importing the compiler, as bitsandbytes does, takes two seconds more.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch.distributed as dist

from grpo import distributed
from grpo.distributed import gather_objects, rank, trim_heap
from grpo.doctor.at_rest import admit
from grpo.doctor.examination import examine
from grpo.export.card import write_card
from grpo.health import heartbeat, last_words
from grpo.health.pulse import describe, pulse
from grpo.health.stop_request import Stopped, stop_request
from grpo.options.refusal import refuse, spelled_out
from grpo.report.log import Log
from grpo.report.tokens.record import lines as token_lines
from grpo.run.build import build
from grpo.run.heldout import HeldOut
from grpo.run.parts import Run
from grpo.run.position import Position
from grpo.run.provenance import ended, recorded
from grpo.run.summary import Summary
from grpo.saving import checkpoint, output_lock, skipped
from grpo.step import grpo_step
from rewards.workers.processes import TOKEN

if __name__ == "__main__":
    gc.enable()


def train(config: Config) -> Summary:
    """A whole run from Python, which writes and prints what the command does; `grpo.train` is this function.

    Alone it is a run of one rank. In a script that torchrun starts each rank calls it.

    Raises:
        ValueError: the options, the data, the rewards or the model have a mistake; the command's line about it.
        RuntimeError: the run ended early, and why; or the file of a reward function calls this when it is imported.
        KeyboardInterrupt: the run was asked to stop, and has saved a checkpoint if a step was done.

    Collective: every rank.
    """
    if TOKEN in os.environ:
        raise RuntimeError("grpo.train() is called where only reward functions are wanted; put the call below "
                           'if __name__ == "__main__":')
    for name in ("plan", "doctor"):
        if getattr(config, name):
            refuse(name, getattr(config, name), "trains nothing: it is for the command", "leave it out")
    code, summary = run_or_fail(found(config), fail=raised)
    if code:
        raise SystemExit(code)
    if summary is None:
        raise KeyboardInterrupt(f"stopped as asked; what there is of the run is in {config.output_dir}")
    return summary


def raised(text: str, code: int) -> int:
    """Raise why a run from Python ended; under torchrun as `heartbeat.fail`, since other ranks have to end too."""
    if "RANK" in os.environ:
        return heartbeat.fail(text, code)
    words = last_words.advised(text.removeprefix("error: "))
    heartbeat.stop()
    raise (ValueError if code == 2 else RuntimeError)(words) from None


def follow(run: Run) -> Summary | None:
    """A run, from where its last checkpoint left off to the adapter and the report; None if it was asked to stop.

    Raises:
        SystemExit: as `take_steps`; a tracker cannot be reached; or a stop was asked for, and no checkpoint could be
            saved.

    Collective: every rank.
    """
    pulse.enter("log")
    with ExitStack() as opened:
        log = None
        if rank() == 0:
            run.output_dir.mkdir(parents=True, exist_ok=True)
            dataclasses.replace(run.asked, resume=False).save(run.output_dir / "config.yaml")
            print("\n".join(run.announcement), flush=True)
            opened.enter_context(recorded(run))
            log = opened.enter_context(open_log(run))
            heartbeat.before_end(partial(log.tell_end, "FAILED"))
        return from_start_to_end(run, log)


def open_log(run: Run) -> Log:
    """The log of a run; SystemExit if a tracker cannot be reached."""
    try:
        return Log(run.output_dir, report_to=run.config.report_to, total_steps=run.num_steps, first_step=run.first_step,
                   settings=dataclasses.asdict(run.config), logging_steps=run.config.logging_steps)
    except ValueError as error:
        raise SystemExit(f"error: {spelled_out(str(error))}") from None


def from_start_to_end(run: Run, log: Log | None) -> Summary | None:
    """What happens in a run, as `follow`; log is None on ranks above 0."""
    start, position, heldout = time.perf_counter(), Position(run.first_step), HeldOut(run)
    exported = summary = None
    try:
        heldout.look(position, log)
        take_steps(run, position, log, heldout)
        step = heldout.choose(position, log)
        pulse.enter("export")
        exported = checkpoint.export(run.engine, run.output_dir, run.peft_config)
        heldout.look(position, log)
    except Stopped:
        exported = None
    pulse.enter("log")
    if log:
        log.bar.close()
    if exported is None:
        position.save(run, must=True)
    if log:
        with ExitStack() as both:
            both.callback(heldout.flush)
            both.callback(log.flush)
        log.status = "KILLED" if exported is None else "FINISHED"
    if log and exported is None:
        print(f"report  {ended(run.output_dir, 'stopped')}", flush=True)
    if log and exported:
        summary = heldout.summarize(position.done, step, exported, time.perf_counter() - start)
        run.tokenizer.save_pretrained(exported)
        write_card(exported, run.config, run=run.output_dir, library="peft" if run.peft_config else "transformers",
                   base=run.config.model_name_or_path)
        report = ended(run.output_dir, "finished")
        print(summary.text(), f"weights {exported}", f"report  {report}",
              f"next    python -m grpo.export {run.output_dir}", sep="\n")
        log.keep([report, exported])
    return gather_objects(summary)[0]


def take_steps(run: Run, position: Position, log: Log | None, heldout: HeldOut) -> None:
    """The steps that are left, each logged, and saved and evaluated when it is due. Collective: every rank.

    Raises:
        Stopped: the run was asked to stop; on every rank.
        SystemExit: too many steps in a row had a gradient that was not finite; or as `grpo_step`.
    """
    num_skipped, limit = 0, run.config.max_skipped_steps
    while position.done < run.num_steps and not heldout.is_enough():
        num_skipped = 0 if take_step(run, position.done, log) else num_skipped + 1
        position.done += 1
        if num_skipped > limit:
            raise SystemExit(
                f"error: {describe(pulse.take())} max_skipped_steps={limit}: now {num_skipped} in a row had a "
                f"gradient that is not finite; what they were computed from is in {run.output_dir / 'skipped'}; "
                "nearest valid: a lower learning_rate, from the last checkpoint")
        trim_heap()
        stop_request.check()
        if position.is_save_due(run):
            position.save(run, must=False)
        if position.done < run.num_steps:  # the last weights are exported first
            heldout.look(position, log)
    stop_request.check()


def take_step(run: Run, step: int, log: Log | None) -> bool:
    """One step of GRPO, and its record; was its gradient finite?"""
    torch.manual_seed(run.config.seed * 1_000_003 + step)  # dropout too is a function of the step
    taken = grpo_step(run, step)
    work, finite = taken.update, math.isfinite(taken.metrics["grad_norm"])
    if rank() == 0 and not finite:
        skipped.dump(run.output_dir, step, *work.evidence(), where=describe(pulse.take()))
    columns, tokens = zip(*gather_objects((taken.collected.columns(), work.tokens.part())))
    if log:
        epoch = (step + 1) * run.config.prompts_per_step / len(run.train_examples)
        log.write(step, {"epoch": epoch, **taken.metrics}, taken.collected.logged)
        for part in columns:
            log.write_completions(step, part)
        if run.config.keep_tokens:
            log.write_tokens(step, token_lines(
                work.tokens.kept_N, tokens, columns, work.rollout, run.tokenizer.decode))
    return finite


@distributed.as_before()
def run_or_fail(config: Config, fail: Callable[[str, int], int] = heartbeat.fail) -> tuple[int, Summary | None]:
    """Run; the exit code and what came of it. Collective: every rank.

    What ends it early becomes one message for `fail`, with the exit code: 2 for a user's mistake, else 1.
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
                run = admit(run)
                opened.enter_context(stop_request.listening())  # also while a failure is told: torchrun sends SIGTERM
            if not (config.doctor or config.resume):
                opened.enter_context(claim())  # before the folder is made
        except ValueError as error:
            return fail(f"error: {spelled_out(str(error))}", 2), None
        except (Exception, KeyboardInterrupt) as error:
            return fail(last_words.words(error), 1), None
        try:
            code, summary = (examine(run), None) if config.doctor else (0, follow(run))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return fail(last_words.words(error), 1), None
    dist.barrier()
    heartbeat.stop()
    return code, summary


def main(argv: list[str]) -> int:
    """What the command does, in this process; the exit code."""
    try:
        config = asked(argv)
    except SystemExit as answered:
        return int(answered.code or 0)
    return run_or_fail(config)[0]


if __name__ == "__main__":
    sys.exit(run_or_fail(config)[0])
