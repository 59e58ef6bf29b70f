"""The options about prompts, in train.py and eval.py alike: texts of several lines, a template's file. 4 seconds."""

import inspect
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE
from transformers import PreTrainedTokenizerBase

from data.rows import SUFFIXES
from grpo.options import evaluation
from grpo.options.chat import read_template
from grpo.run.command import load

BOTH = pytest.mark.parametrize("parse", [load, evaluation.parse], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where outputs/toy, the default, holds no run of `make train`."""
    monkeypatch.chdir(tmp_path)


@BOTH
def test_by_default_the_data_decides(parse) -> None:
    options = parse([])
    assert (options.apply_chat_template, options.stop_strings, options.prompt_column) == ("auto", None, "prompt")
    for name in ("system_prompt", "chat_template", "chat_template_kwargs", "answer_column", "dataset_config"):
        assert getattr(options, name) is None


@BOTH
def test_stop_strings_and_a_system_prompt_may_hold_line_breaks(parse) -> None:
    options = parse(["--stop_strings", "\n\n", "</answer>", "\tQ:", "--system_prompt", "Think.\nThen answer."])
    assert options.stop_strings == ["\n\n", "</answer>", "\tQ:"] and options.system_prompt == "Think.\nThen answer."
    assert parse(["--stop_strings"]).stop_strings == [] and parse(["--stop_strings", "none"]).stop_strings is None
    for wrong in ("", " ", "a\0b", "\x1b[31m"):
        with pytest.raises(ValueError, match="stop_strings=.*must be text"):
            parse(["--stop_strings", wrong])
    with pytest.raises(ValueError, match="prompt_column=.*must be text"):
        parse(["--prompt_column", "a\nb"])


@BOTH
def test_a_chat_template_is_given_as_text_or_as_a_file(parse, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8")
    assert parse(["--chat_template", str(file)]).chat_template == CHAT_TEMPLATE
    assert parse(["--chat_template", CHAT_TEMPLATE]).chat_template == CHAT_TEMPLATE
    with pytest.raises(ValueError, match="chat_template=.*jinja2' must be a template or a file with one: No such file"):
        parse(["--chat_template", f"{file}2"])
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "words").write_text("Hello\n")
    problems = {tmp_path: "Is a directory", tmp_path / "bytes": "it is no UTF-8", tmp_path / "words": "it has neither"}
    for path, problem in problems.items():
        with pytest.raises(ValueError, match=f"must be a template or a file with one: {problem}"):
            parse(["--chat_template", str(path)])


@pytest.mark.parametrize("text", ["{{ messages }}", "{% if x %}y{% endif %}"])
def test_what_only_a_template_holds_is_no_name_of_a_file(text: str) -> None:
    assert read_template(text) == text


def test_a_saved_recipe_holds_the_template_itself(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(CHAT_TEMPLATE)
    asked = load(["--chat_template", str(tmp_path / "template.jinja"), "--stop_strings", "\n\n", "Q:"])
    asked.save(tmp_path / "config.yaml")
    (tmp_path / "template.jinja").unlink()
    assert load(["--config", str(tmp_path / "config.yaml")]) == asked


@BOTH
def test_what_the_trainer_decides_is_no_variable_of_a_template(parse) -> None:
    assert parse(["--chat_template_kwargs", "{enable_thinking: false}"]).chat_template_kwargs == {
        "enable_thinking": False}
    # All that the library's own function takes, but for what a template reads (and the object itself).
    given = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
    for name in given - {"self", "tools", "documents", "sanitize_control_tokens", "kwargs"}:
        with pytest.raises(ValueError, match=f"chat_template_kwargs=.*{name}.*nearest valid value: without this key"):
            parse(["--chat_template_kwargs", f"{{{name}: true}}"])
    with pytest.raises(ValueError, match="chat_template_kwargs={1: 2}"):
        parse(["--chat_template_kwargs", "{1: 2}"])


def test_a_template_that_nothing_goes_through_is_named() -> None:
    options = ["--apply_chat_template", "false", "--chat_template", "{{ messages }}",
               "--chat_template_kwargs", "{a: 1}"]
    assert [note for note in load(options).notes if "apply_chat_template is false" in note] == [
        "chat_template='{{ messages }}' has no effect: apply_chat_template is false",
        "chat_template_kwargs={'a': 1} has no effect: apply_chat_template is false"]


def test_columns_of_generated_problems_are_their_own() -> None:
    options = ["--prompt_column", "q", "--answer_column", "a", "--dataset_config", "main"]
    found = [note for note in load(options).notes if "generated data has its own columns" in note]
    assert [note.split("=")[0] for note in found] == ["dataset_config", "prompt_column", "answer_column"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_any_format_is_missed_before_anything_else_happens(suffix: str) -> None:
    with pytest.raises(ValueError, match=f"train_dataset_id_or_path='nowhere{suffix}' must be an existing file"):
        load(["--train_dataset_id_or_path", f"nowhere{suffix}"])
