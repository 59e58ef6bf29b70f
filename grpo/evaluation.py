"""Held-out accuracy, and how sure we are of it: what train.py does before and after, and eval.py on demand.

Each completion is scored twice, because one number misleads: strict asks for the answer in the trained format, lenient
for the right number in any words. A jump of the strict score alone is format learning, not arithmetic.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data.example import Example
from grpo.decoder import Decoder
from grpo.rollout import generate
from grpo.types import Rollout
from rewards.math import TOLERANCE, correctness_reward, format_reward, gold_number, parse_number

SCORES = ("strict", "lenient", "format", "truncated")  # fields of an Answer
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")  # in "10-7" the last is 7
Z_95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion of one held-out problem, scored.

    Args:
        index: place of the problem in the evaluated set; the same before and after, whatever the number of ranks.
        question: the problem as text, without template or exemplars; the prompt where the dataset gives only that.
        final_answer: the gold answer as text.
        completion: what the policy wrote.
        strict: the answer line is there and its number is right.
        lenient: strict, or the last number of the completion is right.
        format: the answer line is there.
        truncated: max_completion_length ended the completion.
    """

    index: int
    question: str
    final_answer: str
    completion: str
    strict: bool
    lenient: bool
    format: bool
    truncated: bool


def evaluate(decoder: Decoder, tokenizer: PreTrainedTokenizerBase, examples: list[Example], *, num_samples: int = 1,
             temperature: float = 0.0, top_p: float = 1.0, seed: int, max_completion_length: int,
             stop_token_ids: set[int], stop_strings: list[str], prompt_index: list[int] | None = None,
             num_slots: int | None = None, progress: str | None = None) -> list[Answer]:
    """Let the decoder answer every example `num_samples` times, and score the answers. No collective inside.

    Args:
        decoder: holds the weights to score.
        tokenizer: of the decoder.
        examples: the problems of this rank.
        num_samples: completions per problem; more than one only makes sense when sampling.
        temperature: 0 decodes greedily.
        top_p: share of the probability mass that is sampled from.
        seed: of the sampling noise. The same seed before and after training draws the same noise, which narrows the
            difference between them.
        max_completion_length: tokens.
        stop_token_ids: end-of-sequence tokens.
        stop_strings: texts that end a completion.
        prompt_index: place of each example in the whole set, when this rank holds a part of it; None: 0, 1, 2, ...
        num_slots: completions continued at once, which bounds the memory; None: all.
        progress: label of a progress bar; None shows none.

    Returns:
        len(examples) * num_samples answers, the samples of one problem side by side.

    Raises:
        ValueError: several greedy samples asked for, or a prompt that leaves no room for its completion.
    """
    if num_samples > 1 and temperature == 0:
        raise ValueError(f"num_samples={num_samples}: greedy samples are all the same; use 1, or a temperature > 0")
    indices = list(range(len(examples))) if prompt_index is None else prompt_index
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    _check_room(prompts, indices, max_completion_length, decoder.config.max_position_embeddings)
    if not examples:
        return []
    with tqdm(total=len(examples) * num_samples, desc=progress, unit="row", disable=progress is None) as bar:
        rollout = generate(
            decoder, prompts, tokenizer=tokenizer, num_generations=num_samples,
            max_completion_length=max_completion_length, temperature=temperature, top_p=top_p,
            stop_token_ids=stop_token_ids, stop_strings=stop_strings, seed=seed, step=0, prompt_index=indices,
            num_slots=num_slots, progress=lambda _, finished: bar.update(finished - bar.n))
    return _score(rollout, examples, indices, num_samples)


def _check_room(prompts: list[list[int]], indices: list[int], max_completion_length: int, context: int) -> None:
    length, index = max(zip(map(len, prompts), indices, strict=True), default=(0, 0))
    if length + max_completion_length > context:
        raise ValueError(
            f"max_completion_length={max_completion_length}: with the {length} prompt tokens of problem {index} it "
            f"exceeds the model's context of {context} tokens; nearest valid value: {max(context - length, 0)}")


def _score(rollout: Rollout, examples: list[Example], indices: list[int], num_samples: int) -> list[Answer]:
    rows = [(index, example) for index, example in zip(indices, examples, strict=True) for _ in range(num_samples)]
    gold = [example.final_answer for _, example in rows]
    correct, formatted = correctness_reward(rollout.text, gold), format_reward(rollout.text)
    return [
        Answer(
            index=index,
            question=example.question or example.prompt,
            final_answer=gold[n],
            completion=rollout.text[n],
            strict=correct[n] > 0,
            lenient=correct[n] > 0 or last_number_right(rollout.text[n], gold[n]),
            format=formatted[n] > 0,
            truncated=bool(rollout.truncated_N[n]),
        )
        for n, (index, example) in enumerate(rows)
    ]


def last_number_right(completion: str, final_answer: str) -> bool:
    """Whether the last number of a text, in whatever words, is the gold one within the rewards' tolerance."""
    numbers = NUMBER.findall(completion)
    answer, truth = parse_number(numbers[-1]) if numbers else None, gold_number(final_answer)
    return answer is not None and truth is not None and abs(answer - truth) <= TOLERANCE


def num_right(answers: list[Answer], score: str = "strict") -> list[int]:
    """How many samples of each problem are right, problems in the order of their index."""
    counts: dict[int, int] = {}
    for answer in answers:
        counts[answer.index] = counts.get(answer.index, 0) + getattr(answer, score)
    return [counts[index] for index in sorted(counts)]


def wilson_interval(share: float, num: float) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927): all p with |share - p| <= z sqrt(p (1 - p) / num).

    Args:
        share: observed share of right answers.
        num: independent answers it was observed on; the effective number may be a fraction.
    """
    middle = (share + Z_95**2 / (2 * num)) / (1 + Z_95**2 / num)
    half = Z_95 / (1 + Z_95**2 / num) * math.sqrt(share * (1 - share) / num + Z_95**2 / (4 * num**2))
    # Shares of 0 and 1 are ends of their own interval, which rounding misses by a hair on either side.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def accuracy_interval(right: Sequence[int], num_samples: int) -> tuple[float, float]:
    """95 % confidence interval of the accuracy over problems like these, each answered `num_samples` times.

    The samples of one problem are alike, so they count as fewer: Wilson's interval with the effective number
    p (1 - p) / (var / B) of independent answers (Kish 1965), var the variance of the B problems' own accuracies. It
    lies between B (all samples of a problem agree) and B * num_samples; with one sample each it is B.
    """
    share_B = np.asarray(right) / num_samples
    share, num = float(share_B.mean()), len(share_B)
    variance = float(share_B.var()) / num
    effective = share * (1 - share) / variance if variance > 0 else num
    return wilson_interval(share, min(max(effective, num), num * num_samples))


def paired_test(before: Sequence[int], after: Sequence[int]) -> float:
    """Two-sided p value of "before and after are equally good", from the same problems answered by both.

    Were it so, each problem's difference would carry either sign with chance 1/2. The p value is the chance, over all
    2^B choices of signs, of a total at least as far from 0 as the observed one (Fisher 1935), exact by convolution.
    With one answer per problem this is McNemar's exact test.

    Args:
        before: right answers per problem, B of them.
        after: likewise, the same problems in the same order and as many answers to each.
    """
    differences = [y - x for x, y in zip(before, after, strict=True) if x != y]
    total = sum(abs(difference) for difference in differences)
    chance = np.zeros(total + 1)  # of the sum of the positive differences being 0, 1, ..., total
    chance[0] = 1.0
    for size in map(abs, differences):
        chance[size:] = chance[size:] + chance[:-size]  # the right side is complete before it is assigned
        chance /= 2
    signed_total = 2 * np.arange(total + 1) - total
    return min(1.0, float(chance[np.abs(signed_total) >= abs(sum(differences))].sum()))


def summarize(answers: list[Answer]) -> dict[str, Any]:
    """The shares of one evaluation, each accuracy with its 95 % interval; one row of the tables."""
    num_problems = len(num_right(answers))
    num_samples = len(answers) // num_problems
    summary: dict[str, Any] = {"num_problems": num_problems, "num_samples": num_samples}
    for score in SCORES:
        right = num_right(answers, score)
        summary[score] = sum(right) / len(answers)
        summary[f"{score}_interval"] = accuracy_interval(right, num_samples)
    return summary


def compare(before: list[Answer], after: list[Answer]) -> dict[str, float]:
    """The strict accuracy of both, and the p value of the paired test on the same problems."""
    right_before, right_after = num_right(before), num_right(after)
    return {
        "accuracy_before": sum(right_before) / len(before),
        "accuracy_after": sum(right_after) / len(after),
        "p_value": paired_test(right_before, right_after),
    }


def answers_path(output_dir: Path, mode: str, when: str) -> Path:
    """Where a run keeps its held-out answers: `mode` is greedy or sampled, `when` is before or after."""
    return output_dir / "evaluation" / f"{mode}_{when}.jsonl"


def save(answers: list[Answer], path: Path) -> None:
    """Write answers as JSON lines, so that a resumed run still has its scores from before the training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")  # a file of that name is whole
    partial.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
    partial.replace(path)


def load(path: Path) -> list[Answer]:
    """Read what `save` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [Answer(**json.loads(line)) for line in lines]
