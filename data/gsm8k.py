"""GSM8K as prompts for reinforcement learning: raw rows get our template, prepared rows are taken as they are.

    python -m data.gsm8k --input openai/gsm8k --output_dir data/gsm8k_8shot --num_shots 8 --seed 42

writes files of prepared rows, with prompt and final answer. They are read like any other dataset with a prompt column.
"""

import argparse
import json
import os
import re
import sys
import warnings
from pathlib import Path

from data.conversation import converse, last_said
from data.example import Example
from data.prompts import COMPLETION, build_prompt, check_num_shots
from data.rows import SPLITS, Row, check_answers, find_splits, look_up, read

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
ANSWER_MARK = "####"
PREPARED_COLUMNS = ("prompt", "question", "answer", "final_answer")


def load(
    path_or_name: str, split: str, *, num_shots: int, seed: int, prompt_column: str = "prompt",
    answer_column: str | None = None, dataset_config: str | None = None, chat: bool = False,
) -> list[Example]:
    """The examples of one split, from raw GSM8K rows or rows with prompts; arguments as for `data.load_examples`.

    `chat` makes texts the user's message of a conversation.
    """
    check_num_shots(num_shots)
    rows, places = read(path_or_name, split, prompt_column=prompt_column, seed=seed, dataset_config=dataset_config)
    if answer_column is not None:
        check_answers(path_or_name, rows, answer_column)
    numbered = list(zip(rows, places, strict=True))
    if prompt_column not in rows[0]:
        return [raw_example(row, place, num_shots=num_shots, answer_column=answer_column, chat=chat)
                for row, place in numbered]
    if num_shots and rows[0][prompt_column] != build_prompt(rows[0].get("question") or "", num_shots):
        warnings.warn(f"num_shots={num_shots} has no effect: {path_or_name} has ready prompts", stacklevel=2)
    return [prepared_example(row, place, prompt_column=prompt_column, answer_column=answer_column, chat=chat)
            for row, place in numbered]


def raw_example(
    row: Row, place: str, *, num_shots: int, answer_column: str | None = None, chat: bool = False
) -> Example:
    """A GSM8K row as an example: without calculator marks, and with an answer that ends in our answer line."""
    question = row["question"].strip()
    reasoning, mark, _ = CALCULATOR_MARK.sub("", row["answer"]).rpartition(ANSWER_MARK)
    if not mark:
        raise ValueError(f"answer={row['answer']!r:.60} in {place}: must end in '#### N' as in GSM8K, or give "
                         "prompt_column")
    final_answer = find_final_answer(row, answer_column)
    prompt = (converse if chat else build_prompt)(question, num_shots=num_shots)
    answer = COMPLETION.format(reasoning=reasoning.strip(), final_answer=final_answer).strip()
    return Example(question=question, answer=answer, final_answer=final_answer, prompt=prompt, place=place,
                   columns=row | {"prompt": prompt, "final_answer": final_answer})


def prepared_example(
    row: Row, place: str, *, prompt_column: str, answer_column: str | None = None, chat: bool = False
) -> Example:
    """A row with a prompt as an example; only a row with an answer gets a column final_answer."""
    final_answer, prompt = find_final_answer(row, answer_column), row[prompt_column]
    if isinstance(prompt, list):  # a table gives each message the keys of all, with None in those that it lacks
        prompt = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    elif chat:
        prompt = converse(prompt)
    question = last_said(prompt) if isinstance(prompt, list) else str(row.get("question") or "")
    columns = {"prompt": row[prompt_column]} | row
    if answer_column is not None or "answer" in row and "final_answer" not in row:
        columns["final_answer"] = final_answer
    return Example(question=question, answer=str(row.get("answer") or ""), final_answer=final_answer, prompt=prompt,
                   columns=columns, place=place)


def find_final_answer(row: Row, answer_column: str | None = None) -> str:
    """The answer column as text; without one final_answer, else what follows "####" in the answer, or all of it."""
    if answer_column is None and row.get("final_answer") is not None:
        return str(row["final_answer"])
    answer = row.get("answer") if answer_column is None else look_up(row, answer_column)
    text = "" if answer is None else str(answer)
    return text.rpartition(ANSWER_MARK)[2].strip().removeprefix("The final answer is").strip()


def main() -> None:
    """Write the prepared files of a raw GSM8K: train.json, validation.json and, if it has one, test.json."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", default="openai/gsm8k", help="Hub name, raw .jsonl file, or folder of such files")
    parser.add_argument("--output_dir", required=True, help="new folder for the files")
    parser.add_argument("--num_shots", type=int, default=8, help="solved examples before each question, 0 to 8")
    parser.add_argument("--seed", type=int, default=42, help="seed of the split between train and validation")
    arguments = parser.parse_args()
    try:
        prepare(arguments.input, Path(arguments.output_dir), num_shots=arguments.num_shots, seed=arguments.seed)
    except ValueError as error:
        seen = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(error))
        print(f"error: {''.join(seen)}", file=sys.stderr)
        sys.exit(2)


def prepare(path_or_name: str, output_dir: Path, *, num_shots: int, seed: int) -> None:
    """Load every split, then write each to its own file; ValueError if one exists or the data cannot be loaded."""
    there = next(path for path in (output_dir, *output_dir.parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir={str(output_dir)!r} cannot be made: {there} is no folder that may be written to")
    for file in (output_dir / f"{split}.json" for split in SPLITS):
        if file.exists():
            raise ValueError(f"output_dir={str(output_dir)!r}: holds {file.name} already; must be a new folder")
    splits = [split for split in SPLITS if split != "test" or split in find_splits(path_or_name, "train")]
    examples = {split: load(path_or_name, split, num_shots=num_shots, seed=seed) for split in splits}
    output_dir.mkdir(parents=True, exist_ok=True)
    for split, rows in examples.items():
        table = [{name: getattr(row, name) for name in PREPARED_COLUMNS} for row in rows]
        text = json.dumps(table, ensure_ascii=False, indent=1)
        (output_dir / f"{split}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{output_dir / split}.json: {len(rows)} rows, num_shots {num_shots}, seed {seed}")


if __name__ == "__main__":
    main()
