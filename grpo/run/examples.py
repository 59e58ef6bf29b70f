"""The problems of a run: those it trains on, and those it is tested on."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from data import load_examples
from data.example import Example
from grpo.config import Config
from grpo.evaluation.answers import check_gold


def load_problems(config: Config) -> tuple[list[Example], list[Example]]:
    """Training problems, and held-out ones where an evaluation wants them: never from the training split."""
    options: dict[str, Any] = {
        "num_shots": config.num_shots, "seed": config.seed, "prompt_column": config.prompt_column}
    train = load_examples(config.train_dataset_id_or_path, config.dataset_splits, **options)
    if "correctness" in config.reward_funcs and "final_answer" in train[0].columns:  # without it the reward is refused
        check_gold("train_dataset_id_or_path", config.train_dataset_id_or_path,
                   [(example.place, example.columns["final_answer"]) for example in train],
                   needed_by="the reward correctness",
                   valid="a number in each row, or reward_funcs without correctness")
    if config.eval_examples == 0:
        return train, []
    own = config.test_dataset_id_or_path is not None
    option, split = ("test_dataset_id_or_path", "test") if own else ("train_dataset_id_or_path", "validation")
    test = load_examples(getattr(config, option), split, **options)
    check_gold(option, getattr(config, option), [(example.place, example.final_answer) for example in test],
               needed_by="the evaluation", valid="a number in each row, or eval_examples=0")
    return train, test


def fit_context(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, context: int, config: Config
) -> tuple[list[Example], list[list[int]], int]:
    """Examples whose prompt leaves room for a completion, their prompts as tokens, and how many were left out.

    Raises:
        ValueError: no prompt is short enough, or one is too long for the model and no limit says to leave it out.
    """
    room = context - config.max_completion_length
    limit = min(config.max_prompt_length or room, room)
    encoded = [tokenizer.encode(example.prompt) for example in examples]
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
