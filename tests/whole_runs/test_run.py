"""What a run is made of before it has a model on a GPU: prompts that fit. 4 seconds."""

import pytest
from tiny_models import tiny_tokenizer

from data.example import Example
from grpo.config import Config
from grpo.run.examples import fit_context

# Byte by byte: prompts of 3, 9 and 5 tokens.
EXAMPLES = [Example(question=prompt, answer="", final_answer="1", prompt=prompt, columns={})
            for prompt in ("xyz", "xyzxyzxyz", "xyzxy")]


@pytest.mark.parametrize(("limit", "lengths"), [(9, [3, 9, 5]), (8, [3, 5]), (3, [3])])
def test_what_is_longer_than_max_prompt_length_is_left_out_of_the_problems_and_of_the_prompts_rows_are_made_for(
    limit: int, lengths: list[int]
) -> None:
    config = Config(max_prompt_length=limit, max_completion_length=7)
    kept, prompts, left_out = fit_context(EXAMPLES, tiny_tokenizer(), 100, config)
    assert [len(one.prompt) for one in kept] == [len(prompt) for prompt in prompts] == lengths
    assert left_out == 3 - len(lengths)


def test_the_context_bounds_a_prompt_with_its_completion() -> None:
    kept, *_ = fit_context(EXAMPLES, tiny_tokenizer(), 12, Config(max_prompt_length=9, max_completion_length=7))
    assert [len(one.prompt) for one in kept] == [3, 5]  # 12 - 7 tokens are left
    with pytest.raises(ValueError, match="max_completion_length=7 with a prompt of 9 tokens"):
        fit_context(EXAMPLES, tiny_tokenizer(), 12, Config(max_completion_length=7))
