"""The options of eval.py. Imports no torch, so that `--help` and a mistake are answered at once."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grpo.options import chat
from grpo.options.command_line import command_line
from grpo.options.option import check, convert, default_of, option, options
from grpo.options.refusal import refuse, spelled_out
from grpo.options.surroundings import check_folder, check_writable, located

LONGEST = 512  # tokens of an answer: of 0.5B models many are longer than 256
MOST_SLOTS = 256  # beyond that a step gets no faster per row


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of eval.py."""

    model: str = option("data/tiny_qwen2", "Model folder or Hub name.")
    adapter: str | None = option(None, "Folder of a PEFT adapter to put on the model.")
    compare_base: bool = option(False, "Also score the model without the adapter, and test the difference.")
    data: str = option("wordproblems", "wordproblems, reasoning_gym:NAME?..., a dataset file or folder, or a Hub name.")
    split: str = option("test", "Split of the dataset.")
    dataset_config: str | None = option(None, "Configuration of a dataset from the Hub that has several.")
    prompt_column: str = option("prompt", "Column with a ready prompt: a text, or a list of messages.")
    answer_column: str | None = option(None, "Column that becomes final_answer; none: what follows #### in answer.")
    apply_chat_template: str = option(
        "auto", "Which prompts go through the chat template, as in training.", choices=("auto", "true", "false"))
    system_prompt: str | None = option(None, "System message in front of every prompt.", lines=True)
    chat_template: str | None = option(None, "Chat template, or a file with it; none: the tokenizer's.", lines=True)
    chat_template_kwargs: dict | None = option(None, "Variables of the chat template.")
    stop_strings: list[str] | None = option(
        None, "Texts that end a completion; none: those of our own template, where the prompts have it.", lines=True)
    num_shots: list[int] = option([0], "Worked examples in the prompt, one evaluation for each.", within="[0, 8]")
    limit: int | None = option(None, "Score only the first problems, this many.", unit="problems", within="[1, inf)")
    max_completion_length: int | None = option(
        None, f"Longer completions are truncated; none: {LONGEST}, or what the longest prompt leaves of the model's "
        "context.", unit="tokens", within="[1, inf)")
    temperature: float = option(0.0, "Of sampling; 0 decodes greedily.", within="[0, inf)")
    top_p: float = option(1.0, "Sample from the fewest tokens that have this probability.", within="(0, 1]")
    num_samples: int = option(1, "Completions per problem.", within="[1, inf)")
    rollout_slots: int | None = option(
        None, f"Completions decoded at once; none: as many as half of the free memory allows, at most {MOST_SLOTS}.",
        within="[1, inf)")
    load_in_4bit: bool = option(False, "Quantise the model to NF4, as in training.")
    torch_dtype: str = option(
        "auto", "Type of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"))
    model_revision: str = option("main", "Revision on the Hub.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")
    seed: int = option(42, "Of the sampling and of the order of the data.", within="[0, inf)")
    output: str | None = option(None, "Folder for eval.json, eval.html and the answers; none: no files.")


def parse(argv: Sequence[str]) -> Settings:
    """The settings of a command line; ValueError for one that is unknown, out of range, or at odds with another."""
    known = options(Settings)
    given = command_line(Settings, usage="python eval.py [--option value ...]").parse_args(list(argv))
    values = {name: convert(known[name], value) for name, value in given.items()}
    values |= located({name: values.get(name, default_of(known[name])) for name in ("model", "adapter", "data")})
    settings = Settings(**values)
    for name, one in known.items():
        check(one, getattr(settings, name))
    settings = replace(settings, chat_template=chat.read_template(settings.chat_template))
    chat.check_variables(settings.chat_template_kwargs)
    if settings.num_samples > 1 and settings.temperature == 0:
        refuse("num_samples", settings.num_samples, "greedy samples are all the same: needs temperature > 0", 1)
    if settings.compare_base and settings.adapter is None:
        refuse("compare_base", True, "needs an adapter to compare the model with", False)
    if settings.output is not None and Path(settings.output, "eval.json").exists():
        refuse("output", settings.output, "holds another evaluation, which is not written over", f"{settings.output}-2")
    if settings.output is not None:
        check_writable("output", Path(settings.output))
    check_folder("model", settings.model, holding="config.json")
    check_folder("adapter", settings.adapter, holding="adapter_config.json", hub=False)
    if not settings.num_shots:
        refuse("num_shots", [], "needs at least one number", 0)
    return settings


def asked(argv: Sequence[str]) -> Settings:
    """What `parse` returns; SystemExit with 0 after `--help`, with 2 after one line about a mistake."""
    try:
        return parse(argv)
    except ValueError as error:
        print(f"error: {spelled_out(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
