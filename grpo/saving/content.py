"""Fingerprints of what a run reads, by what is in it: the same ones wherever it lies and whatever it is called."""

import hashlib
import json
from array import array
from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.example import Example

PLAIN = (bytes, date, time, timedelta, Decimal)  # what tables have besides what JSON has


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 over texts; their order counts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def of_examples(examples: list[Example]) -> str:
    """Of all that a step takes from a dataset: prompts, gold answers, and the columns that reward functions get."""
    return fingerprint(
        json.dumps([one.prompt, one.final_answer, one.columns], sort_keys=True, default=_spelled) for one in examples)


def of_adapter(path: str | None) -> str | None:
    """Of the start adapter's files, which a resumed run reads again as its reference; None without one."""
    files = [] if path is None else [Path(path) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return "-".join(digests) or None


def of_reward_files(reward_funcs: list[str]) -> dict[str, str]:
    """Of each file that reward functions are named in, by its place; what the file imports is not read."""
    places = dict.fromkeys(name.rpartition(":")[0] for name in reward_funcs)
    return {place: hashlib.sha256(Path(place).read_bytes()).hexdigest() for place in places if place.endswith(".py")}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> str:
    """Of the vocabulary, the special tokens, the chat template, and the tokens that these prompts became."""
    digest = hashlib.sha256(json.dumps(
        [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens)), tokenizer.eos_token_id,
         tokenizer.chat_template]).encode())
    for prompt in prompts:
        digest.update(array("q", [len(prompt), *prompt]).tobytes())
    return digest.hexdigest()


def _spelled(value: Any) -> str:
    # Of anything else the words may hold its place in memory, another one each time.
    return repr(value) if isinstance(value, PLAIN) else type(value).__name__
