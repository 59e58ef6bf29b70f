"""Problems to train on: generated, GSM8K, or any dataset with a prompt column, through one function."""

from dataclasses import replace

from data.example import Example
from data.prompts import build_prompt


def load_examples(path_or_name: str, split: str, *, num_shots: int, seed: int,
                  prompt_column: str = "prompt") -> list[Example]:
    """The examples of one split of any dataset; its columns reach the reward functions by name.

    Rows with `prompt_column` are used as they are. Rows without it must have GSM8K's question and answer, and get our
    template with `num_shots` solved examples.

    Args:
        path_or_name: "wordproblems" (generated), a .jsonl or .json file, a folder with one file per split (train.jsonl,
            validation.json, ...), or a Hub name.
        split: train, validation or test. Use validation, not test, to evaluate on held-out rows of the same file.
        seed: of the generator, or of the shuffle that divides train from validation.

    ValueError for num_shots outside 0 to 8, or a dataset that is missing, broken, empty or lacks columns.
    """
    from data import gsm8k, wordproblems  # not above: `python -m data.gsm8k` must not have been imported already

    if path_or_name != "wordproblems":
        return gsm8k.load(path_or_name, split, num_shots=num_shots, seed=seed, prompt_column=prompt_column)
    examples = wordproblems.load(split, num_examples=wordproblems.MAX_EXAMPLES, seed=seed)
    prompts = [build_prompt(example.question, num_shots) for example in examples]
    return [replace(example, prompt=prompt, columns=example.columns | {"prompt": prompt})
            for example, prompt in zip(examples, prompts, strict=True)]
