"""The held-out problems of a run: solved before and after training, and the summary of both."""

import json

from grpo.distributed import gather_objects, rank, world_size
from grpo.evaluation.answers import answers_path, evaluate, load_answers, save_answers
from grpo.evaluation.statistics import compare
from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.run.parts import Run


def solve(run: Run, when: str) -> None:
    """Solve the held-out problems, and save the answers. Collective: every rank.

    Raises:
        Stopped: the run was asked to stop; on every rank.
    """
    pulse.enter("evaluate")
    run.sync()
    mine = list(range(rank(), len(run.test_examples), world_size()))  # the share of this rank
    # Training improves what is sampled at its own temperature; greedy answers are how a model is mostly used.
    for mode, temperature, num_samples in (("greedy", 0.0, 1), ("sampled", run.config.temperature, 4)):
        with stop_request.may_end_this():
            answers = evaluate(
                run.decoder, run.tokenizer, [run.test_examples[index] for index in mine], num_samples=num_samples,
                temperature=temperature, seed=run.config.seed, max_completion_length=run.config.max_completion_length,
                stop_token_ids=run.stop_token_ids, stop_strings=run.config.stop_strings, prompt_index=mine,
                template_variables=run.config.chat_template_kwargs, num_slots=run.num_slots,
                progress=f"{mode} {when}" if rank() == 0 else None)
        everyone = [answer for part in gather_objects(answers) for answer in part]
        if rank() == 0:
            save_answers(everyone, answers_path(run.output_dir, mode, when))


def summarize(run: Run, seconds: float) -> dict[str, float]:
    """Write summary.json: `accuracy_*` is sampled at the training temperature, `greedy_*` is greedy."""
    summary: dict[str, float] = {"steps": run.num_steps, "ranks": world_size(), "seconds": round(seconds, 1)}
    if run.test_examples:
        for prefix, mode in (("", "sampled"), ("greedy_", "greedy")):
            before, after = (load_answers(answers_path(run.output_dir, mode, when)) for when in ("before", "after"))
            summary |= {f"{prefix}{name}": value for name, value in compare(before, after).items()}
    (run.output_dir / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary
