"""Make a model that serves of a run's adapter: merged weights, tokenizer, card, and proof that it is the same model.

    python -m grpo.export outputs/run [--push_to_hub NAME]
"""

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path

from grpo.options.export import Settings, parse
from grpo.options.refusal import spelled_out

if __name__ == "__main__":
    try:
        folder, settings = parse(sys.argv[1:])  # `--help` and a mistake end here: the imports below take seconds
    except ValueError as error:
        sys.exit(f"error: {spelled_out(str(error))}")
    gc.disable()  # as in train.py

import torch

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as in train.py

from transformers import AutoConfig, PreTrainedTokenizerBase

from data import load_examples
from data.example import Example
from grpo.export import comparison, hub, merge
from grpo.export.card import write_card
from grpo.export.source import Source, find
from grpo.report.columns import print_table
from grpo.run.build import quiet
from grpo.run.examples import fit_context, load_problems

if __name__ == "__main__":
    gc.enable()


def export(folder: Path, settings: Settings) -> Path:
    """Write the model, compare it, push it; the folder.

    Raises:
        ValueError: base, adapter or data are not there, or do not fit together.
        OSError: the disk or the Hub does not take it.
    """
    quiet()
    source = find(folder, settings.model)
    written = Path(settings.output) if settings.output else (
        source.run / "export" if source.run else folder.with_name(f"{folder.name}-export"))
    if written.exists():
        raise ValueError(f"output={str(written)!r} exists and is not written over; nearest valid value: {written}-2")
    tokenizer = merge.tokenizer_of(source)
    examples, why_none = problems(source, tokenizer, settings.limit)
    model = merge.merged(source, getattr(torch, settings.torch_dtype))
    generation, left_out = merge.generation_config(model, tokenizer, examples[0], source)
    merge.write(written, model, tokenizer, generation)
    write_card(written, source.config, run=source.run, library="transformers", base=source.base)
    print("\n".join(left_out), f"wrote {written}", sep="\n" if left_out else "", flush=True)
    del model
    gc.collect()
    if settings.limit and why_none:
        print(f"not compared on problems: {why_none}")
    elif settings.limit:
        print_table(comparison.table(comparison.compare(source, written, tokenizer, examples)))
    if settings.push_to_hub:
        print(f"pushed to {hub.push(written, settings.push_to_hub, private=settings.hub_private_repo)}")
    return written


def problems(source: Source, tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Example], str]:
    """Held-out problems of the run, or generated ones, one at least, which tells how prompts look.

    A run without an evaluation may have none: then it is one of training, and the reason why there are no others.
    """
    if source.run is None:
        return load_examples("wordproblems", "test", num_shots=source.config.num_shots, seed=42)[:max(limit, 1)], ""
    context = AutoConfig.from_pretrained(source.model or source.base).max_position_embeddings
    try:
        config, why_none = replace(source.config, eval_examples=max(limit, 1)), ""
        found = load_problems(config)[1]
    except ValueError as error:
        if source.config.eval_examples:
            raise
        config, why_none = source.config, str(error)
        found = load_problems(config)[0]
    return fit_context(found, tokenizer, context, config)[0][:max(limit, 1)], why_none


def run(folder: Path, settings: Settings) -> int:
    """What the command does; the exit code."""
    try:
        export(folder, settings)
    except (ValueError, OSError) as error:
        print(f"error: {spelled_out(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(folder, settings))
