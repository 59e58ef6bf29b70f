"""What an update was computed from whose gradient was not finite, kept for whoever wants to know why."""

import json
import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from grpo.update import Update


def dump(output_dir: Path, step: int, work: Update, *, where: str) -> None:
    """Write `skipped/step-N.safetensors` and `.json`: tokens, lengths, log-probs and advantages, and the texts.

    A disk that does not take them costs a warning.

    Args:
        output_dir: the run's folder.
        step: the step.
        work: the update; it has the completions of all ranks, so one rank writes.
        where: how the warning begins.
    """
    folder, rollout = output_dir / "skipped", work.rollout
    tensors = {
        "token_NT": rollout.token_NT, "length_N": rollout.length_N, "truncated_N": rollout.truncated_N,
        "sampler_logprob_NT": rollout.sampler_logprob_NT, "advantage_N": work.advantage_N,
    }
    if work.ref_logprob_NT is not None:
        tensors["ref_logprob_NT"] = work.ref_logprob_NT  # of the rank that writes, 0 elsewhere
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"prompt_ids": rollout.prompt_ids, "completion": rollout.text}, indent=1)
    files = [folder / f"step-{step}.safetensors", folder / f"step-{step}.json"]
    try:
        folder.mkdir(exist_ok=True)
        save_file(tensors, files[0])
        files[1].write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        print(f"\nwarning: {where} the batch of this gradient, which is not finite, could not be written to {folder}: "
              f"{error}", file=sys.stderr, flush=True)
        for file in files:
            file.unlink(missing_ok=True)
