"""What an update was computed from whose gradient was not finite, kept for whoever wants to know why."""

import json
from pathlib import Path

from safetensors.torch import save_file

from grpo.update import Update


def dump(output_dir: Path, step: int, work: Update) -> Path:
    """Write `skipped/step-N.safetensors` and `.json`: tokens, lengths, log-probs and advantages, and the texts.

    Args:
        output_dir: the run's folder.
        step: the step.
        work: the update; it has the completions of all ranks, so one rank writes.

    Returns:
        The file of tensors.
    """
    folder = output_dir / "skipped"
    folder.mkdir(exist_ok=True)
    rollout = work.rollout
    tensors = {
        "token_NT": rollout.token_NT, "length_N": rollout.length_N, "truncated_N": rollout.truncated_N,
        "sampler_logprob_NT": rollout.sampler_logprob_NT, "advantage_N": work.advantage_N,
    }
    if work.ref_logprob_NT is not None:
        tensors["ref_logprob_NT"] = work.ref_logprob_NT  # of the rank that writes, 0 elsewhere
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
              folder / f"step-{step}.safetensors")
    text = json.dumps({"prompt_ids": rollout.prompt_ids, "completion": rollout.text}, indent=1)
    (folder / f"step-{step}.json").write_text(text, encoding="utf-8")
    return folder / f"step-{step}.safetensors"
