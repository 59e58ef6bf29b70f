"""Answers to held-out problems, scored: by train.py before and after the training, and by eval.py.

Each completion is scored twice. "Strict" asks for the right number in the trained format, "lenient" for the right
number at the end of any words. If only the strict score rises, the model has learnt the format, not arithmetic.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data.conversation import for_rewards
from data.example import Example
from grpo.options.refusal import refuse
from grpo.sampler.decoder import Decoder
from grpo.sampler.generate import generate
from grpo.types import Rollout
from rewards.math import correctness_reward, format_reward, gold_number, is_right
from rewards.number import last_number


class Judged(NamedTuple):
    """What a judge says of one completion: fields of an Answer."""

    strict: bool
    lenient: bool
    format: bool


Judge = Callable[[list[Example], Rollout], list[Judged]]  # of N completions, given each one's problem


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion of one held-out problem, scored."""

    index: int  # place of the problem in the evaluated set: the same before and after, at any number of ranks
    question: str  # without template or examples; the prompt where the dataset gives only that
    final_answer: str  # the gold answer
    completion: str
    strict: bool  # the answer line is there and its number is right; or outcome_reward says that it is right
    lenient: bool  # strict, or the last number of the completion is right
    format: bool  # the answer line is there; or a reward whose name has "format" in it is above 0
    truncated: bool  # max_completion_length ended the completion


def evaluate(decoder: Decoder, tokenizer: PreTrainedTokenizerBase, examples: list[Example], prompts: list[list[int]], *,
             num_samples: int = 1, temperature: float = 0.0, top_p: float = 1.0, seed: int, max_completion_length: int,
             stop_token_ids: set[int], stop_strings: list[str], prompt_index: list[int] | None = None,
             num_slots: int | None = None, progress: str | None = None, judge: Judge | None = None) -> list[Answer]:
    """Answer every example of this rank `num_samples` times, and score the answers. Makes no collective call.

    Args:
        prompts: the tokens of each example's prompt.
        temperature: 0 decodes greedily.
        prompt_index: place of each example in the set of all ranks; None: 0, 1, 2, ...
        num_slots: completions decoded at the same time; None: all.
        progress: label of a progress bar.
        judge: says what is right; None: `by_number`.

    ValueError for several greedy samples, or a prompt that leaves no room for its completion.
    """
    if num_samples > 1 and temperature == 0:
        raise ValueError(f"num_samples={num_samples}: greedy samples are all the same; use 1, or a temperature > 0")
    indices = list(range(len(examples))) if prompt_index is None else prompt_index
    check_room(prompts, indices, max_completion_length, decoder.config.max_position_embeddings)
    if not examples:
        return []
    with tqdm(total=len(examples) * num_samples, desc=progress, unit="answer", miniters=0,
              disable=progress is None) as bar:  # at each look, and not only when an answer has ended
        rollout = generate(
            decoder, prompts, tokenizer=tokenizer, num_generations=num_samples,
            max_completion_length=max_completion_length, temperature=temperature, top_p=top_p,
            stop_token_ids=stop_token_ids, stop_strings=stop_strings, seed=seed, step=0, prompt_index=indices,
            num_slots=num_slots, bar=bar)
    asked = [example for example in examples for _ in range(num_samples)]
    judged = (judge or by_number)(asked, rollout)
    return [
        Answer(index=indices[n // num_samples], question=example.title, final_answer=example.final_answer,
               completion=rollout.text[n], **judged[n]._asdict(), truncated=bool(rollout.truncated_N[n]))
        for n, example in enumerate(asked)
    ]


def check_gold(option: str, dataset: str, gold_of_place: Iterable[tuple[str, Any]], *, needed_by: str,
               valid: str) -> None:
    """Refuse a gold answer that is no number: no completion could match it, and the accuracy would look like a low one.

    Args:
        option: that gave the `dataset`.
        gold_of_place: the place of each row, as in Example, and its gold answer.
        needed_by: who needs the number, for the message.
        valid: the nearest valid value.
    """
    for place, gold in gold_of_place:
        if gold_number(gold) is None:
            refuse(option, dataset, f"{place} has the final_answer {gold!r:.40}, which no completion can match: "
                                    f"{needed_by} needs a number", valid)


def check_room(prompts: list[list[int]], indices: list[int], max_completion_length: int, context: int) -> None:
    """Refuse with ValueError prompts that leave no room for their completion in the model's context."""
    length, index = max(zip(map(len, prompts), indices, strict=True), default=(0, 0))
    if length + max_completion_length > context:
        raise ValueError(
            f"max_completion_length={max_completion_length}: with the {length} prompt tokens of problem {index} it "
            f"exceeds the model's context of {context} tokens; nearest valid value: {max(context - length, 0)}")


def by_number(asked: list[Example], rollout: Rollout) -> list[Judged]:
    """The judge of problems whose answer is a number."""
    gold = [example.final_answer for example in asked]
    texts = [for_rewards(example.prompt, text)[1] for example, text in zip(asked, rollout.text, strict=True)]
    rows = zip(correctness_reward(texts, gold), format_reward(texts), rollout.text, gold, strict=True)
    return [Judged(right > 0, right > 0 or last_number_right(text, answer), formatted > 0)
            for right, formatted, text, answer in rows]


def last_number_right(completion: str, final_answer: str) -> bool:
    return is_right(last_number(completion), gold_number(final_answer))


def answers_path(output_dir: Path, mode: str, when: str) -> Path:
    """The file of a run's held-out answers: `mode` is greedy or sampled, `when` is before or after."""
    return output_dir / "evaluation" / f"{mode}_{when}.jsonl"


def save_answers(answers: list[Answer], path: Path) -> None:
    """Write answers as JSON lines: a resumed run still needs its scores from before the training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")  # so a file with the name `path` is complete
    partial.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
    partial.replace(path)


def load_answers(path: Path) -> list[Answer]:
    with path.open(encoding="utf-8") as lines:
        return [Answer(**json.loads(line)) for line in lines]
