"""Score a model, or an adapter on it, on held-out problems: one table, and a report if --output is given.

    python eval.py --model Qwen/Qwen2.5-0.5B --adapter outputs/run/adapter --data openai/gsm8k --num_shots 0 2 4 8

Prompt, stop strings and parser are those of the training, where the options are. An accuracy depends on the number of
examples in the prompt, so the table has one row for each number, and a 95 % interval behind every accuracy. Under
torchrun the ranks share the problems; each evaluation is written as it ends.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo.options.evaluation import LONGEST, MOST_SLOTS, Settings, asked

if __name__ == "__main__":
    settings = asked(sys.argv[1:])  # `--help` and a mistake end here: the imports below take eight seconds
    gc.disable()  # as in train.py

import torch

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as in train.py

import torch.distributed as dist

from data import load_examples
from data.prompt_ids import all_prompt_ids, end_of_turn
from data.prompts import default_stop_strings
from grpo import distributed
from grpo.distributed import free_bytes, gather_objects, rank, world_size
from grpo.evaluation.answers import Answer, check_gold, check_room, evaluate, save_answers
from grpo.evaluation.several import several
from grpo.evaluation.statistics import compare, summarize
from grpo.health import heartbeat
from grpo.loading.model import dtype_of, load_decoder
from grpo.memory.concurrency import Lengths, choose_slots
from grpo.options.refusal import spelled_out
from grpo.packing import common_prefix_length
from grpo.report.columns import print_table
from grpo.report.scores import HEADER, several_rows, table_rows, write_scores
from grpo.run.examples import check_tokens, form_of_prompts
from grpo.run.provenance import provenance
from grpo.sampler.decoder import Decoder

if __name__ == "__main__":
    gc.enable()

TIMEOUT_S = 1800  # for which ranks wait for the slowest


def score(settings: Settings, device: torch.device) -> Iterator[tuple[str, int, int, list[Answer]]]:
    """Each evaluation as it ends: adapter or model, number of shots, most tokens of an answer, all ranks' answers.

    Raises:
        ValueError: the model, the adapter or the dataset is missing, or they do not fit together.

    Collective: every rank; each answers its share of the problems.
    """
    options = {name: getattr(settings, name) for name in (
        "seed", "prompt_column", "answer_column", "dataset_config", "apply_chat_template", "system_prompt")}
    examples = {
        shots: load_examples(settings.data, settings.split, num_shots=shots, **options)[:settings.limit]
        for shots in settings.num_shots}
    everything = [example for group in examples.values() for example in group]
    check_gold("data", settings.data,
               [(example.place, example.final_answer) for example in examples[settings.num_shots[0]]],
               needed_by="the evaluation", valid="a dataset with a number in the column final_answer of each row")
    stop_strings, prompt = settings.stop_strings, everything[0].prompt
    if stop_strings is None:
        stop_strings = default_stop_strings(example.prompt for example in everything)
    mine = range(rank(), len(examples[settings.num_shots[0]]), world_size())
    for adapter in [settings.adapter, None] if settings.compare_base else [settings.adapter]:  # one model at a time
        decoder, tokenizer, stop_token_ids = load_decoder(
            settings.model, adapter=adapter, load_in_4bit=settings.load_in_4bit,
            dtype=dtype_of(settings.torch_dtype, device), device=device, chat_template=settings.chat_template,
            revision=settings.model_revision, trust_remote_code=settings.trust_remote_code)
        stop_token_ids |= end_of_turn(tokenizer, prompt, settings.chat_template_kwargs)
        label = "model" if adapter is None else "adapter"
        prompts = {shots: all_prompt_ids(tokenizer, [one.prompt for one in group], settings.chat_template_kwargs)
                   for shots, group in examples.items()}
        most = longest(settings, decoder, [prompt for group in prompts.values() for prompt in group])
        for shots, group in examples.items():
            check_tokens("data", settings.data, group, prompts[shots], tokenizer, decoder.config.vocab_size)
        if rank() == 0:
            print(f"{label}: {form_of_prompts(tokenizer, prompt, stop_token_ids, stop_strings)}", file=sys.stderr)
        for num_shots, group in examples.items():
            answers = evaluate(
                decoder, tokenizer, [group[index] for index in mine], [prompts[num_shots][index] for index in mine],
                num_samples=settings.num_samples, temperature=settings.temperature, top_p=settings.top_p,
                seed=settings.seed, max_completion_length=most, stop_token_ids=stop_token_ids,
                stop_strings=stop_strings, prompt_index=list(mine),
                num_slots=slots(settings, decoder, prompts[num_shots], most),
                progress=f"{label}, {num_shots} shots" if rank() == 0 else None)
            yield label, num_shots, most, [answer for part in gather_objects(answers) for answer in part]


def longest(settings: Settings, decoder: Decoder, prompts: list[list[int]]) -> int:
    """After how many tokens an answer is truncated, whatever the number of shots.

    ValueError, before the first answer, where that and a prompt do not fit in the model's context.
    """
    context = decoder.config.max_position_embeddings
    most = settings.max_completion_length or min(LONGEST, max(context - max(map(len, prompts)), 1))
    check_room(prompts, [index for index, _ in enumerate(prompts)], most, context)
    return most


def slots(settings: Settings, decoder: Decoder, prompts: list[list[int]], most: int) -> int:
    """How many completions to decode at the same time: as asked for, or as memory allows.

    Raises:
        ValueError: the number asked for does not fit into memory.
    """
    prefix = common_prefix_length(prompts)
    lengths = Lengths(prefix, max(map(len, prompts)) - prefix, most)
    num_rows = min(settings.rollout_slots or MOST_SLOTS, len(prompts) * settings.num_samples)
    return choose_slots(settings.rollout_slots, decoder, lengths, free=free_bytes(decoder.device), num_rows=num_rows,
                        num_generations=settings.num_samples).num_slots


def records_of(answers: dict[tuple[str, int], list[Answer]]) -> list[dict[str, Any]]:
    """One record per model and number of shots; the adapter's has the p value against the model without it."""
    records = []
    for (label, num_shots), group in answers.items():
        records.append({"model": label, "num_shots": num_shots, **summarize(group)})
        if records[-1]["num_samples"] > 1:
            records[-1]["several"] = several(group)
        if label == "adapter" and ("model", num_shots) in answers:
            records[-1]["p_value"] = compare(answers["model", num_shots], group)["p_value"]
    return records


def write(settings: Settings, answers: dict[tuple[str, int], list[Answer]], records: list[dict[str, Any]],
          made: dict[str, Any]) -> None:
    """Write `eval.json`, `eval.html` and the answers to the output folder; `made` is the `provenance`."""
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    for (label, num_shots), group in answers.items():
        save_answers(group, folder / f"answers_{label}_{num_shots}_shots.jsonl")
    values = asdict(settings)
    write_scores(folder / "eval.html", values, asdict(Settings()), made, records, answers)
    content = json.dumps({"settings": values, "provenance": made, "results": records}, indent=1)
    (folder / "eval.json").write_text(content + "\n", encoding="utf-8")


def run(settings: Settings) -> int:
    """Evaluate on all ranks, write each evaluation as it ends, print the table; the exit code."""
    answers, most = {}, 0
    try:
        device = distributed.start(TIMEOUT_S)
        heartbeat.start(TIMEOUT_S)
        made = provenance() if rank() == 0 else {}  # of the code as it is now, before hours of answers
        for label, num_shots, most, group in score(settings, device):
            answers[label, num_shots] = group
            if rank() == 0 and settings.output is not None:
                write(replace(settings, max_completion_length=most), answers, records_of(answers), made)
    except ValueError as error:
        return heartbeat.fail(f"error: {spelled_out(str(error))}", 2)
    if rank() == 0:
        records = records_of(answers)
        print_table([HEADER, *table_rows(records)])
        print_table(several_rows(records))
        if settings.output is not None:
            print(f"wrote {Path(settings.output) / 'eval.html'}")
    dist.barrier()
    heartbeat.stop()
    if "RANK" in os.environ:
        dist.destroy_process_group()
    return 0


def main(argv: Sequence[str]) -> int:
    """What the command does; the exit code."""
    try:
        settings = asked(argv)
    except SystemExit as answered:
        return int(answered.code or 0)
    return run(settings)


if __name__ == "__main__":
    sys.exit(run(settings))
