"""What a run is made of before it has a model on a GPU: problems, and prompts that fit. 4 seconds."""

from pathlib import Path

import pytest
from fault_runs import numbers, texts
from refusals import save_small_run, small_run
from tiny_models import tiny_tokenizer

import train
from data.example import Example
from grpo.config import Config
from grpo.run import examples
from grpo.run.examples import fit_context, form_of_prompts, load_problems

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


def test_two_runs_of_one_process_compute_the_same(tmp_path: Path) -> None:
    save_small_run(tmp_path)
    for output in ("first", "second"):
        argv = small_run(tmp_path, output_dir=tmp_path / output, load_in_4bit=False, max_steps=2, learning_rate=0.01)
        assert train.main(argv) == 0
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")
    assert texts(tmp_path / "first") == texts(tmp_path / "second")


def test_the_context_bounds_a_prompt_with_its_completion() -> None:
    kept, *_ = fit_context(EXAMPLES, tiny_tokenizer(), 12, Config(max_prompt_length=9, max_completion_length=7))
    assert [len(one.prompt) for one in kept] == [3, 5]  # 12 - 7 tokens are left
    with pytest.raises(ValueError, match="max_completion_length=7 with a prompt of 9 tokens"):
        fit_context(EXAMPLES, tiny_tokenizer(), 12, Config(max_completion_length=7))


def test_the_length_of_messages_is_that_of_the_text_that_the_template_makes_of_them() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ more }}"
    example = Example(question="", answer="", final_answer="1", prompt=[{"role": "user", "content": "xyz"}])
    config = Config(max_completion_length=7, chat_template_kwargs={"more": "xy"})
    _, prompts, _ = fit_context([example], tokenizer, 100, config)
    assert prompts == [tokenizer.encode("xyzxy")]
    with pytest.raises(ValueError, match="max_completion_length=7 with a prompt of 5 tokens"):
        fit_context([example], tokenizer, 11, config)


@pytest.mark.parametrize(("test", "configurations"), [
    (None, ["main", "main"]), ("wordproblems", ["main", "main"]), ("d.csv", ["main", None])])
def test_the_configuration_of_the_training_dataset_is_not_that_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str | None, configurations: list
) -> None:
    (tmp_path / "d.csv").write_text("prompt,label\nq,1\n")
    monkeypatch.chdir(tmp_path)
    asked, load_examples = [], examples.load_examples

    def watched(*args, **options):
        asked.append(options["dataset_config"])
        return load_examples(*args, **options)

    monkeypatch.setattr(examples, "load_examples", watched)
    load_problems(Config(dataset_config="main", answer_column="label", test_dataset_id_or_path=test))
    assert asked == configurations


def test_texts_are_not_held_out_from_messages(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "q"}], "answer": "1"}')
    with pytest.raises(ValueError, match="test_dataset_id_or_path=.*must have messages as prompts where the training"):
        load_problems(Config(test_dataset_id_or_path=str(path)))
    load_problems(Config(test_dataset_id_or_path=str(path), apply_chat_template="true"))


def test_the_options_of_the_prompts_are_those_of_both_datasets() -> None:
    both = load_problems(Config(apply_chat_template="true", system_prompt="Be brief.", num_shots=1))
    assert {len(problems[0].prompt) for problems in both} == {4}  # system, a question, its answer, the problem


def test_the_start_names_the_option_where_a_template_is_there_and_not_used() -> None:
    tokenizer = tiny_tokenizer()
    assert form_of_prompts(tokenizer, "q", {1, 2}, ["\n\n"]) == (
        "texts, as they are; a completion ends with <eos> or <end> or the text '\\n\\n'")
    tokenizer.chat_template = "{{ messages }}"
    said = form_of_prompts(tokenizer, "q", {1, 999}, [])
    assert "as they are; the chat template is not used (apply_chat_template=true makes" in said
    assert said.endswith("a completion ends with <eos> or token 999")
