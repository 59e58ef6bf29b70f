"""What the doctor says of a chat template that is not used, opens a thought, or ends nothing. 5 seconds."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE

from data.example import Prompt
from data.prompts import build_prompt
from grpo.doctor import problems
from grpo.doctor.chat import chat_template, what_ends
from grpo.doctor.finding import Finding
from grpo.run.parts import Run
from rewards.workers.pool import RewardPool

USER = {"role": "user", "content": "What is 2 + 2?"}
BEGUN = {"role": "assistant", "content": "Let me see.\n<think>"}
OPENS = CHAT_TEMPLATE.replace("{{ 'assistant: ' }}", "{{ 'assistant: <think>\n' }}")


@pytest.fixture(scope="module")
def run(begin: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run of the shipped model, whose tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("run")
    return begin("--eval_examples", "0", "--prompts_per_step", "2", "--load_in_4bit", "false", "--zero_stage", "0",
                 "--output_dir", str(folder / "out"))


def with_prompt(run: Run, prompt: Prompt, template: str | None = CHAT_TEMPLATE, **options) -> Run:
    """The run with four such prompts, a tokenizer with this template, and no stop strings."""
    tokenizer = deepcopy(run.tokenizer)
    tokenizer.chat_template = template
    examples = [replace(one, prompt=prompt) for one in run.train_examples[:4]]
    return replace(run, tokenizer=tokenizer, train_examples=examples,
                   config=replace(run.config, **{"stop_strings": [], **options}))


def look(run: Run, prompt: Prompt, *args, **options) -> Finding:
    changed = with_prompt(run, prompt, *args, **options)
    return chat_template(changed, changed.train_examples)


def test_a_template_that_texts_do_not_go_through_is_doubtful_unless_that_is_meant(run: Run) -> None:
    unused = look(run, "What is 2 + 2?")
    assert unused.level == "warn" and unused.words == "there, and not used: the prompts are texts"
    assert unused.cure.startswith("apply_chat_template=true")
    for fine in (look(run, "What is 2 + 2?", None), look(run, "What is 2 + 2?", apply_chat_template="false"),
                 look(run, run.train_examples[0].prompt), look(run, "user: 2 + 2?<|endoftext|>\nassistant:")):
        assert fine.level == "ok", fine
    tokenizer = deepcopy(run.tokenizer)
    tokenizer.add_tokens(["<answer>"])  # as a word
    assert look(replace(run, tokenizer=tokenizer), "Put it in <answer>.").level == "warn"


def test_a_text_that_brings_the_first_token_which_the_tokenizer_adds_is_named(run: Run) -> None:
    from tokenizers.processors import TemplateProcessing

    end = run.tokenizer.eos_token
    twice = with_prompt(run, f"{end}What is 2 + 2?", None)
    twice.tokenizer.bos_token = end
    twice.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, run.tokenizer.eos_token_id)])
    assert f"prompts without {end}" in chat_template(twice, twice.train_examples).cure


def test_a_thought_that_the_template_opens_is_named_and_one_that_is_closed_is_not(run: Run) -> None:
    opened = look(run, [USER], OPENS)
    assert opened.level == "warn" and "ends in" in opened.words and "<think>" in opened.words
    assert "rewards that do not look for <think>" in opened.cure and "enable_thinking: false" in opened.cure
    assert look(run, [USER]).level == "ok"
    assert look(run, [USER], chat_template_kwargs={"enable_thinking": False}).level == "ok"  # <think></think>
    assert look(run, [USER, BEGUN]).level == "ok"  # rewards get what was begun


def test_a_variable_that_the_template_does_not_name_is_named(run: Run) -> None:
    found = look(run, [USER], chat_template_kwargs={"enable_thinking": False, "enable_thought": 1})
    assert found.level == "warn" and found.cure.startswith("chat_template_kwargs without enable_thought,")


def test_an_answer_that_no_token_ends_is_named(run: Run) -> None:
    ends = problems.end_of_text(with_prompt(run, [USER], CHAT_TEMPLATE.replace("<end>", "<|endoftext|>")))
    assert [one.level for one in ends] == ["ok", "ok"] and "0 of 0 can be sampled" in ends[1].words
    open_end = problems.end_of_text(with_prompt(run, [USER], CHAT_TEMPLATE.replace("<end>", "")))[0]
    assert open_end.level == "warn" and "chat_template=one that ends an answer" in open_end.cure
    nothing = replace(with_prompt(run, "What is 2 + 2?"), stop_token_ids=set())
    assert problems.end_of_text(nothing)[0].level == "fail"


@pytest.mark.parametrize(("prompt", "template", "cure"), [
    ([USER], CHAT_TEMPLATE, "chat_template=the one that the model was trained with"),
    ("What is 2 + 2?", CHAT_TEMPLATE, "apply_chat_template=true"),
    ("What is 2 + 2?", None, "num_shots"), (build_prompt("What is 2 + 2?"), CHAT_TEMPLATE, "num_shots"),
])
def test_where_nothing_ends_the_cure_is_that_of_the_prompts(run: Run, prompt: Prompt, template, cure: str) -> None:
    assert what_ends(with_prompt(run, prompt, template)).startswith(cure)


def test_every_check_of_the_problems_takes_messages(run: Run) -> None:
    found = {one.check: one for one in problems.of_problems(with_prompt(run, [USER]), own_rewards=False)}
    assert found["duplicates"].level == "warn" and "3 of 4 training prompts" in found["duplicates"].words
    assert found["prompt end"].level == found["prompt length"].level == "ok"
    assert found["reward correctness"].words.startswith("4 of 4 gold answers earn 1.0")


def test_the_users_own_rewards_get_messages_from_the_doctor_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"""
def mine(prompts, completions, **columns):
    assert prompts == [[{USER}]] * 4, prompts
    assert all(one[0]["role"] == "assistant" for one in completions), completions
    return [one[0]["content"].startswith({BEGUN["content"]!r}) for one in completions]
""")
    pool = RewardPool([f"{tmp_path / 'mine.py'}:mine"], None, timeout_s=20, memory_bytes=2**30)
    try:
        conversation = replace(with_prompt(run, [USER, BEGUN]), rewards=pool)
        found = problems.rewards(conversation, conversation.train_examples, own=True)
    finally:
        pool.close()
    assert found[0].words == "1 for gold answers, 1 for no text and nonsense"
