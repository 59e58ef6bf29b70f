"""The problems of a run: those it trains on, and those it is tested on."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from data import load_examples
from data.example import Example, Prompt
from data.prompt_ids import all_prompt_ids
from grpo.config import Config
from grpo.evaluation.answers import check_gold
from grpo.options.refusal import refuse


def load_problems(config: Config) -> tuple[list[Example], list[Example]]:
    """Training problems, and held-out ones where an evaluation wants them: never from the training split."""
    options: dict[str, Any] = {name: getattr(config, name) for name in (
        "num_shots", "seed", "prompt_column", "answer_column", "apply_chat_template", "system_prompt")}
    train_path, test_path = config.train_dataset_id_or_path, config.test_dataset_id_or_path
    train = load_examples(train_path, config.dataset_splits, dataset_config=config.dataset_config, **options)
    if "correctness" in config.reward_funcs and "final_answer" in train[0].columns:  # without it the reward is refused
        check_gold("train_dataset_id_or_path", train_path,
                   [(example.place, example.columns["final_answer"]) for example in train],
                   needed_by="the reward correctness",
                   valid="a number in each row, or reward_funcs without correctness")
    if config.eval_examples == 0:
        return train, []
    test = load_examples(
        test_path or train_path, "test" if test_path else "validation",
        dataset_config=config.dataset_config if test_path in (None, train_path) else None, **options)
    if type(test[0].prompt) is not type(train[0].prompt):  # what ends a completion depends on it
        refuse("test_dataset_id_or_path", test_path, "must have messages as prompts where the training dataset has "
               "them, and texts where it has texts", "apply_chat_template=true, which makes texts messages")
    if config.outcome_reward in (None, "correctness"):
        check_gold("test_dataset_id_or_path" if test_path else "train_dataset_id_or_path", test_path or train_path,
                   [(example.place, example.final_answer) for example in test],
                   needed_by="the evaluation",
                   valid="a number in each row, outcome_reward=a function that says what is right, or eval_examples=0")
    # Where none is left out for its length, no more are needed.
    return train, test[: config.eval_examples if config.max_prompt_length is None else None]


def fit_context(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, context: int, config: Config
) -> tuple[list[Example], list[list[int]], int]:
    """Examples whose prompt leaves room for a completion, their prompts as tokens, and how many were left out.

    Raises:
        ValueError: no prompt is short enough, or one is too long for the model and no limit says to leave it out.
    """
    room = context - config.max_completion_length
    limit = min(config.max_prompt_length or room, room)
    encoded = all_prompt_ids(tokenizer, [example.prompt for example in examples], config.chat_template_kwargs)
    length = [len(prompt) for prompt in encoded]
    kept = [example for example, tokens in zip(examples, length) if tokens <= limit]
    # Problems are never left out without being asked to.
    if examples and (not kept or len(kept) < len(examples) and config.max_prompt_length is None):
        raise ValueError(
            f"max_completion_length={config.max_completion_length} with a prompt of {max(length)} tokens: together "
            f"they must fit in {limit + config.max_completion_length} tokens (the model's context is {context}); "
            f"nearest valid: max_completion_length={max(context - max(length), 1)}, fewer num_shots, "
            f"or max_prompt_length={max(room, 1)} to leave such problems out")
    return kept, [prompt for prompt in encoded if len(prompt) <= limit], len(examples) - len(kept)


def check_tokens(
    name: str, value: str | None, examples: list[Example], prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase, vocab_size: int,
) -> None:
    """Refuse a prompt with a token that a tokenizer was given later, and the model's embedding has no row for.

    Args:
        name: the option that names the dataset; `value` is its value.
    """
    first = max(vocab_size, tokenizer.vocab_size)  # a whole vocabulary that is too large is refused as such
    for example, tokens in zip(examples, prompts, strict=True):
        beyond = next((token for token in tokens if token >= first), None)
        if beyond is not None:
            refuse(name, value, f"{example.place or 'a prompt'} has the token "
                   f"{tokenizer.convert_ids_to_tokens(beyond)!r} ({beyond}), which is not below the model's "
                   f"vocab_size={vocab_size}", "prompts without it, or a model with a row for it")


def form_of_prompts(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, stop_token_ids: set[int], stop_strings: list[str]
) -> str:
    """How prompts such as this one become tokens, and what ends their completions, for the start of a run."""
    form = "messages, through the chat template"
    if isinstance(prompt, str):
        hint = "; the chat template is not used (apply_chat_template=true makes each text the user's message)"
        form = "texts, as they are" + (hint if tokenizer.chat_template is not None else "")
    ends = [tokenizer.decode([token]) or f"token {token}" for token in sorted(stop_token_ids)]
    strings = [f"the text {stop!r}" for stop in stop_strings]
    return f"{form}; a completion ends with {' or '.join([*ends, *strings])}"
