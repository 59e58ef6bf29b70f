"""Prompts that are messages: what is read, what becomes tokens, what ends a turn, what rewards get. 5 seconds."""

import json
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, tiny_tokenizer

from data import load_examples
from data import prompt_ids as prompt_ids_module
from data.conversation import for_rewards
from data.example import Example
from data.prompt_ids import all_prompt_ids, end_of_turn, prompt_ids
from data.prompts import STOP_STRINGS, build_prompt, default_stop_strings

EOS, END = 1, 2
USER = {"role": "user", "content": "What is 2 + 2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
BEGUN = {"role": "assistant", "content": "Let me think.\n<think>"}


def tokenizer_with(template: str = CHAT_TEMPLATE):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def load(folder: Path, rows: list[dict], **options) -> list[Example]:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(str(folder / "mine.jsonl"), "train", **{"num_shots": 0, "seed": 0, **options})


def message(folder: Path, rows: list[dict], **options) -> str:
    """The error of a load, which must be one line."""
    with pytest.raises(ValueError) as caught:
        load(folder, rows, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_messages_are_used_as_they_are_and_every_column_reaches_the_rewards(tmp_path):
    row = {"prompt": [SYSTEM, USER], "reward_model": {"ground_truth": "4"}, "data_source": "verl"}
    (example,) = load(tmp_path, [row], answer_column="reward_model.ground_truth")
    assert (example.prompt, example.question, example.final_answer) == ([SYSTEM, USER], "What is 2 + 2?", "4")
    assert example.columns == {**row, "final_answer": "4"}


def test_the_prompt_column_may_have_any_name_and_the_question_is_what_the_user_said_last(tmp_path):
    said = [USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3 + 3?"}]
    (example,) = load(tmp_path, [{"messages": said, "label": 6}], prompt_column="messages", answer_column="label")
    assert (example.prompt, example.question, example.final_answer) == (said, "And 3 + 3?", "6")
    assert example.title == "And 3 + 3?" and json.loads(example.prompt_text) == said
    (begun,) = load(tmp_path, [{"prompt": [*said, BEGUN]}])
    assert begun.question == "And 3 + 3?"


def test_keys_that_a_table_adds_to_a_message_are_left_out_of_it(tmp_path):
    (example,) = load(tmp_path, [{"prompt": [{**USER, "name": None}]}])
    assert example.prompt == [USER]


def test_a_text_becomes_the_users_message_only_where_that_is_asked_for(tmp_path):
    row = {"prompt": "2 + 2?", "answer": "4"}
    said = [{"role": "user", "content": "2 + 2?"}]
    (auto,), (false,) = load(tmp_path, [row]), load(tmp_path, [row], apply_chat_template="false")
    assert auto.prompt == false.prompt == "2 + 2?"
    (true,) = load(tmp_path, [row], apply_chat_template="true")
    assert (true.prompt, true.question) == (said, "2 + 2?")
    (with_system,) = load(tmp_path, [row], system_prompt="Be brief.")
    assert with_system.prompt == [SYSTEM, *said]


def test_a_raw_row_is_asked_as_the_question_alone_behind_solved_examples_as_turns(tmp_path):
    rows = [{"question": f" 2 + {number}? ", "answer": f"#### {2 + number}"} for number in range(10)]
    example = load(tmp_path, rows, apply_chat_template="true", num_shots=1, system_prompt="Be brief.")[0]
    assert [one["role"] for one in example.prompt] == ["system", "user", "assistant", "user"]
    assert example.prompt[1]["content"].startswith("Mira picks 14 apples")
    assert example.prompt[2]["content"].startswith("In the afternoon Mira")
    assert example.prompt[2]["content"].endswith("\n#### The final answer is 42")
    assert example.prompt[3]["content"] == example.question and example.question.startswith("2 + ")
    (generated, *_) = load_examples("wordproblems", "test", num_shots=0, seed=0, apply_chat_template="true")
    assert generated.prompt == [{"role": "user", "content": generated.question}]
    with pytest.raises(ValueError, match="num_shots=9"):
        load_examples("wordproblems", "test", num_shots=9, seed=0, apply_chat_template="true")


def test_a_system_prompt_stands_in_front_and_is_refused_where_there_is_one(tmp_path):
    assert [one.prompt for one in load(tmp_path, [{"prompt": [USER]}] * 2, system_prompt="Be brief.")] == [
        [SYSTEM, USER]] * 2
    rows = [{"prompt": [USER]}, {"prompt": [{"role": "system", "content": "Sing."}, USER]}]
    assert "row 2 of" in message(tmp_path, rows, system_prompt="Be brief.")
    assert "has a system message of its own" in message(tmp_path, rows, system_prompt="Be brief.")


def test_messages_are_refused_where_no_template_may_be_applied(tmp_path):
    assert "are messages" in message(tmp_path, [{"prompt": [USER]}], apply_chat_template="false")
    told = message(tmp_path, [{"prompt": "q"}], apply_chat_template="false", system_prompt="Be brief.")
    assert told.endswith("nearest valid value: apply_chat_template=auto")


@pytest.mark.parametrize(("prompt", "words"), [
    ("a text", "must be a list of messages as in row 1, is 'a text'"),
    ([], "must be a list of messages as in row 1, is []"),
    (["a text"], "message 1 is 'a text'"),
    ([USER, {"role": "user"}], "must have messages with a role and a content, both text; message 2 is"),
    ([{"content": "q"}], "message 1 is {'content': 'q'}"),
    ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], "message 1 is {'role'"),
    ([{"role": "user", "content": "half \ud83d"}], "message 1 is {'role'"),
    ([SYSTEM], "must end in a message of role user, tool, assistant, not of 'system'"),
])
def test_what_are_no_messages_is_refused_by_row(tmp_path, prompt, words):
    told = message(tmp_path, [{"prompt": [USER]}, {"prompt": prompt}])
    assert "row 2, column 'prompt' " in told and words in told


def test_messages_written_as_text_are_refused_and_other_brackets_are_not(tmp_path):
    for written in (json.dumps([USER]), str([USER]), json.dumps([USER], indent=1)):
        assert "written as text; nearest valid: a list, in a .jsonl" in message(tmp_path, [{"prompt": written}])
    assert load(tmp_path, [{"prompt": '[{"x": 1}] is a list.'}])[0].prompt == '[{"x": 1}] is a list.'


@pytest.mark.parametrize(("row", "final_answer"), [
    ({"solution": "so it is\n#### 5"}, "5"), ({"solution": 0}, "0"), ({"solution": None}, ""),
    ({"solution": "5", "final_answer": "6"}, "5"), ({"solution": "5", "answer": "#### 7"}, "5"),
])
def test_the_answer_column_becomes_the_final_answer(tmp_path, row, final_answer):
    (example,) = load(tmp_path, [{"prompt": "p", **row}], answer_column="solution")
    assert example.final_answer == example.columns["final_answer"] == final_answer
    assert example.columns["solution"] == row["solution"]


def test_an_answer_column_that_a_row_lacks_is_refused_with_the_nearest(tmp_path):
    rows = [{"prompt": "p", "reward_model": {"ground_truth": "1"}}, {"prompt": "p", "reward_model": None}]
    told = message(tmp_path, rows[:1], answer_column="reward_model.ground_thruth")
    assert "row 1 has no answer_column='reward_model.ground_thruth'; it has prompt, reward_model, " in told
    assert told.endswith("nearest valid value: answer_column=reward_model.ground_truth")
    assert "row 2 has no answer_column" in message(tmp_path, rows, answer_column="reward_model.ground_truth")
    (dotted,) = load(tmp_path, [{"prompt": "p", "a.b": "1", "a": {"b": "2"}}], answer_column="a.b")
    assert dotted.final_answer == "1"


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_the_tokens_of_messages_are_those_of_the_template_and_of_a_text_those_of_the_tokenizer():
    tokenizer = tokenizer_with()
    assert prompt_ids(tokenizer, "2 + 2?") == tokenizer.encode("2 + 2?")
    for variables in (None, {"enable_thinking": False}):
        asked = tokenizer.apply_chat_template([USER], add_generation_prompt=True, **variables or {})["input_ids"]
        assert prompt_ids(tokenizer, [USER], variables) == asked
    thought, plain = (tokenizer.decode(prompt_ids(tokenizer, [USER], {"enable_thinking": on})) for on in (False, True))
    assert thought == plain + "<think></think>" == "user: What is 2 + 2?<end>\nassistant: <think></think>"


def test_many_prompts_become_what_each_becomes_alone(monkeypatch):
    monkeypatch.setattr(prompt_ids_module, "BATCH", 2)
    tokenizer = tokenizer_with()
    texts = ["2 + 2?", "How many apples has Tom, who has 12 and buys 30 more?", "a", "0", "é"]
    assert all_prompt_ids(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    conversations, variables = [[USER], [USER, BEGUN], [USER, BEGUN, USER]], {"enable_thinking": False}
    assert all_prompt_ids(tokenizer, conversations, variables) == [
        prompt_ids(tokenizer, one, variables) for one in conversations]
    assert all_prompt_ids(tokenizer, []) == []


def test_a_last_message_of_the_assistant_is_continued():
    tokenizer = tokenizer_with()
    assert tokenizer.decode(prompt_ids(tokenizer, [USER, BEGUN])) == (
        "user: What is 2 + 2?<end>\nassistant: Let me think.\n<think>")


def test_a_text_gets_the_tokens_around_it_and_messages_only_those_of_the_template():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with("<eos>" + CHAT_TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", EOS)])
    assert prompt_ids(tokenizer, "2 + 2?").count(EOS) == prompt_ids(tokenizer, [USER]).count(EOS) == 1


def test_without_a_template_or_with_one_that_fails_messages_are_one_line():
    cases = ((None, "has no chat template; nearest valid: a file with one"),
             ("{{ raise_exception('no\nsystem') }}", "that end in 'What is 2 + 2?': TemplateError: no system"),
             ("{{ messages", "TemplateSyntaxError"))
    for template, words in cases:
        with pytest.raises(ValueError, match="chat_template") as caught:
            prompt_ids(tokenizer_with(template), [USER])
        assert words in str(caught.value) and "\n" not in str(caught.value)


TURN = "{% for message in messages %}{{ message['content'] }}"


@pytest.mark.parametrize(("template", "ends"), [
    (CHAT_TEMPLATE, {END}),
    (TURN + "{{ ' \n<eos>' }}{% endfor %}", {EOS}),  # behind blanks
    (TURN + "{{ '\n### ' }}{% endfor %}<end>", set()),  # ordinary text comes first
    (TURN + "{% endfor %}", set()),
    ("<end>{{ messages[0]['content'] }}<end>", set()),  # says nothing of an answer
])
def test_a_turn_ends_with_the_special_token_that_the_template_puts_behind_an_answer(template, ends):
    assert end_of_turn(tokenizer_with(template), [USER]) == end_of_turn(tokenizer_with(template), [USER, BEGUN]) == ends
    assert end_of_turn(tokenizer_with(template), "a text") == set()


def test_the_end_of_a_turn_is_found_where_a_template_refuses_two_answers_in_a_row():
    strict = "{% if messages[-2].role == messages[-1].role %}{{ raise_exception('roles must alternate') }}{% endif %}"
    assert end_of_turn(tokenizer_with(strict + CHAT_TEMPLATE), [USER, BEGUN]) == {END}


def test_only_prompts_that_end_as_our_template_does_stop_at_the_next_question():
    ours, ready = build_prompt("2 + 2?", 1), "Question: 2 + 2?\nSolution:"
    assert default_stop_strings([ours, build_prompt("q")]) == STOP_STRINGS
    assert default_stop_strings([ours, ready]) == default_stop_strings([[USER]]) == []


# -- rewards -----------------------------------------------------------------------------------------------------------


def test_rewards_get_the_conversation_in_the_form_of_trl():
    assert for_rewards("2 + 2?", " 4") == ("2 + 2?", " 4")
    assert for_rewards([SYSTEM, USER], "4") == ([SYSTEM, USER], [{"role": "assistant", "content": "4"}])
    # What was continued belongs to the answer.
    assert for_rewards([USER, BEGUN], "4</think>") == (
        [USER], [{"role": "assistant", "content": "Let me think.\n<think>4</think>"}])


def test_a_reward_that_changes_its_prompt_changes_no_other():
    prompt = [USER]
    first, _ = for_rewards(prompt, "4")
    first.pop()
    assert for_rewards(prompt, "4")[0] == [USER]
