"""Rewards for programs: a hundred answers judged by hand, HumanEval's form, stdin and stdout, and what is refused.

12 seconds.
"""

import pytest
from boxes import boxed

from rewards.code import code_format, code_runs, code_tests, program_of
from rewards.loading import load
from rewards.sandbox.program import Limits


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    with boxed():
        yield


def fenced(program: str, language: str = "python") -> str:
    return f"```{language}\n{program}\n```"


QUICK = Limits(cpu_s=1, wall_s=0.5)
ADD = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0", "assert add(0, 0) == 0", "assert add(1.5, 2) == 3.5"]
GOOD = fenced("def add(a, b):\n    return a + b")
# completion, (code_format, code_runs, code_tests) on ADD
ANSWERS = [
    (GOOD, (1, 1, 1)),
    (f"Here it is:\n{GOOD}\nIt adds.", (1, 1, 1)),
    (f"{GOOD}\n", (1, 1, 1)), (f"\n\n{GOOD}", (1, 1, 1)),
    (fenced("def add(a, b):\n    return a + b", "py"), (1, 1, 1)),
    (fenced("def add(a, b):\n    return a + b", "python3"), (1, 1, 1)),
    (fenced("def add(a, b):\n    return a + b", "Python"), (1, 1, 1)),
    (fenced("def add(a, b):\n    return a + b", ""), (1, 1, 1)),
    (fenced("def add(a, b):\n    return a + b", " python"), (1, 1, 1)),
    ("1. First\n   ```python\n   def add(a, b): return a + b\n   ```", (1, 1, 1)),  # in a list
    (fenced("add = lambda a, b: a + b"), (1, 1, 1)),
    (fenced("from operator import add"), (1, 1, 1)),
    (fenced("def add(*n): return sum(n)"), (1, 1, 1)),
    (fenced("class Adder:\n    def __call__(self, a, b): return a + b\nadd = Adder()"), (1, 1, 1)),
    (fenced("def plus(a, b): return a + b\nadd = plus"), (1, 1, 1)),
    (fenced("import functools\n@functools.cache\ndef add(a, b): return a + b"), (1, 1, 1)),
    (fenced("def add(a: int, b: int) -> int:\n    '''Add.'''\n    return a + b"), (1, 1, 1)),
    (fenced("from typing import *\ndef add(a, b): return a + b"), (1, 1, 1)),
    (fenced("def add(a, b):\n    print('adding')\n    return a + b"), (1, 1, 1)),
    (fenced("def add(a, b): return a + b\nassert add(1, 1) == 2"), (1, 1, 1)),
    (fenced("def add(a, b): return a + b\nif __name__ == '__main__':\n    1 / 0"), (1, 1, 1)),
    (fenced("def add(a, b): return a - b"), (1, 1, 0.25)),  # 0 and 0
    (fenced("def add(a, b): return a * b"), (1, 1, 0.25)),
    (fenced("def add(a, b): return 5"), (1, 1, 0.25)), (fenced("def add(a, b): return 0"), (1, 1, 0.5)),
    (fenced("def add(a, b): return int(a + b)"), (1, 1, 0.75)),  # 3 is not 3.5
    (fenced("def add(a, b): return float(a + b)"), (1, 1, 1)),  # 5.0 == 5 in Python
    (fenced("def add(a, b): return str(a + b)"), (1, 1, 0)), (fenced("def add(a, b): return [a + b]"), (1, 1, 0)),
    (fenced("def add(a, b): return abs(a + b)"), (1, 1, 1)), (fenced("def add(a, b): pass"), (1, 1, 0)),
    (fenced("def add(a, b): print(a + b)"), (1, 1, 0)), (fenced("def add(a, b): return a"), (1, 1, 0.25)),
    (fenced("def add(a, b): raise NotImplementedError"), (1, 1, 0)), (fenced("def add(a): return a"), (1, 1, 0)),
    (fenced("def add(a, b):\n    if a == 2: return 5\n    raise ValueError"), (1, 1, 0.25)),
    (fenced("def add(a, b): return complex(a + b)"), (1, 1, 1)), (fenced("def add(a, b): yield a + b"), (1, 1, 0)),
    (fenced("async def add(a, b): return a + b"), (1, 1, 0)), (fenced("def Add(a, b): return a + b"), (1, 1, 0)),
    (fenced("def sub(a, b): return a - b"), (1, 1, 0)), (fenced("add = 5"), (1, 1, 0)), (fenced("pass"), (1, 1, 0)),
    (fenced(""), (1, 1, 0)), (fenced("# def add(a, b): return a + b"), (1, 1, 0)), (fenced("print(5)"), (1, 1, 0)),
    (fenced("def add(a, b) return a + b"), (1, 0, 0)), (fenced("def add(a, b):\nreturn a + b"), (1, 0, 0)),
    (fenced("def add(a, b):\n    return a +"), (1, 0, 0)), (fenced("function add(a, b) { return a + b }"), (1, 0, 0)),
    (fenced("The answer is a + b."), (1, 0, 0)), (fenced("def add(a, b):\n\treturn a\n        + b"), (1, 0, 0)),
    (fenced("def add(a, b): return a + b\x00"), (1, 0, 0)), (fenced("x = '"), (1, 0, 0)),
    (fenced("(" * 300), (1, 0, 0)),
    (fenced("1 / 0\ndef add(a, b): return a + b"), (1, 0.5, 0)), (fenced("import numpy"), (1, 0.5, 0)),
    (fenced("import nothing_like_this\ndef add(a, b): return a + b"), (1, 0.5, 0)),
    (fenced("raise SystemExit(0)\ndef add(a, b): return a + b"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nimport sys\nsys.exit(0)"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nimport os\nos._exit(0)"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nraise ValueError"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nassert add(1, 1) == 3"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nundefined"), (1, 0.5, 0)),
    (fenced("def add(a, b): return a + b\nx = input()"), (1, 0.5, 0)),  # stdin is empty
    (fenced("def f(): f()\nf()"), (1, 0.5, 0)), (fenced("open('/etc/passwd')"), (1, 0.5, 0)),
    (fenced("import socket\nsocket.socket()"), (1, 0.5, 0)), (fenced("import os\nos.fork()"), (1, 0.5, 0)),
    (fenced("import subprocess\nsubprocess.run(['ls'])"), (1, 0.5, 0)), (fenced("x = [0] * 10**12"), (1, 0.5, 0)),
    (fenced("def add(a, b):\n    open('x', 'w').write(str(a + b))\n    return eval(open('x').read())"), (1, 1, 1)),
    (fenced("def add(a, b):\n    import os\n    os._exit(0)"), (1, 1, 0)),
    (fenced("def add(a, b):\n    import sys\n    sys.exit(0)"), (1, 1, 0)),
    (fenced("def add(a, b): return add(a, b)"), (1, 1, 0)), (fenced("def add(a, b): return [0] * 10**12"), (1, 1, 0)),
    (fenced("def add(a, b): return type('E', (), {'__eq__': lambda s, o: True})()"), (1, 1, 0)),
    # Each test has a new process.
    (fenced("x = 0\ndef add(a, b):\n    global x\n    x += 1\n    return 5 if x == 1 else 0"), (1, 1, 0.25)),
    (fenced("import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 0"), (1, 1, 0.5)),
    ("def add(a, b): return a + b", (0, 0, 0)), ("", (0, 0, 0)), ("```", (0, 0, 0)), ("``````", (0, 0, 0)),
    ("`def add(a, b): return a + b`", (0, 0, 0)), ("```python def add(a, b): return a + b```", (0, 0, 0)),
    ("```python\ndef add(a, b): return a + b", (0, 0, 0)),  # never closed
    ("~~~python\ndef add(a, b): return a + b\n~~~", (0, 0, 0)), ("```\n```", (1, 1, 0)),
    (fenced("def add(a, b): return a + b", "java"), (0, 0, 0)),
    (fenced("def add(a, b): return a + b", "js"), (0, 0, 0)),
    (fenced("add(1, 2)", "text"), (0, 0, 0)), ("'''python\ndef add(a, b): return a + b\n'''", (0, 0, 0)),
    (GOOD + "\n" + GOOD, (0, 1, 1)), (fenced("pass") + "\n" + GOOD, (0, 1, 1)),  # the last one counts
    (GOOD + "\n" + fenced("def add(a, b): return 0"), (0, 1, 0.5)), (GOOD + "\n" + fenced("def"), (0, 0, 0)),
    (GOOD + "\n```text\nadds two numbers\n```", (1, 1, 1)), (f"#### {GOOD}", (0, 0, 0)),
    (f"<think>\nadd?\n</think>\n{GOOD}", (1, 1, 1)), ([{"role": "assistant", "content": GOOD}], (1, 1, 1)),
    ([{"role": "assistant", "content": None}], (0, 0, 0)), ([], (0, 0, 0)), (7, (0, 0, 0)),
]


def test_a_hundred_answers_earn_what_they_should() -> None:
    completions, expected = [answer for answer, _ in ANSWERS], [earned for _, earned in ANSWERS]
    rows = [ADD] * len(ANSWERS)
    assert len(ANSWERS) >= 100
    found = zip(code_format(completions), code_runs(completions, rows), code_tests(completions, rows), strict=True)
    assert [pair for pair in zip(completions, found, expected) if pair[1] != pair[2]] == []


def test_all_or_nothing_gives_no_part() -> None:
    almost = fenced("def add(a, b): return int(a + b)")
    assert code_tests([GOOD, almost], [ADD, ADD], all_or_nothing=True) == [1.0, 0.0]


def test_a_test_that_runs_out_of_time_ends_the_others() -> None:
    slow = fenced("def add(a, b):\n    while a == 2: pass\n    return a + b")
    assert code_tests([slow], [ADD], limits=QUICK) == [0.0]
    assert code_tests([slow], [ADD[1:] + ADD[:1]], limits=QUICK) == [0.75]


@pytest.mark.parametrize("test", ["while True: pass", "import os\nos._exit(0)", "raise SystemExit", "assert"])
def test_a_test_that_does_not_reach_its_end_is_not_passed(test: str) -> None:
    assert code_tests([GOOD], [[test]], limits=QUICK) == [0.0]


def test_an_object_is_not_what_it_is_written_as() -> None:
    shown = fenced("class Five:\n    def __repr__(self): return '5'\ndef add(a, b): return Five()")
    assert code_tests([shown], [["assert add(2, 3) == '5'"]]) == [0.0]


# -- programs that read and write --------------------------------------------------------------------------------------

PAIRS = [{"input": "3\n", "output": "9\n"}, {"input": "0\n", "output": "0\n"}, {"input": "-2\n", "output": "4\n"}]


@pytest.mark.parametrize(("program", "runs", "share"), [
    ("print(int(input()) ** 2)", 1.0, 1.0), ("n = int(input())\nprint(n * n, end='')", 1.0, 1.0),
    ("print(int(input()) ** 2, ' \\n\\n')", 1.0, 1.0),  # blanks at the end of a line, empty lines at the end
    ("print('', int(input()) ** 2)", 1.0, 0.0),  # a blank in front is another text
    ("print(float(input()) ** 2)", 1.0, 0.0), ("print(9)", 1.0, 1 / 3), ("print('9', '0', '4')", 1.0, 0.0),
    ("print(int(input()) ** 2)\nraise SystemExit(1)", 0.5, 0.0),
    ("print(int(input()) ** 2)\nraise SystemExit", 1.0, 1.0),
    ("import sys\nfor line in sys.stdin: print(int(line) ** 2)", 1.0, 1.0), ("print(int(input()) ** 2", 0.0, 0.0),
    ("def solve():\n    return int(input()) ** 2\nprint(solve())", 1.0, 1.0), ("print(int(input()) // 0)", 0.5, 0.0),
    ("import os\nos.write(1, b'9')\nos._exit(0)", 1.0, 1 / 3),
])
def test_a_program_that_reads_and_writes_is_compared_as_in_competitions(program, runs: float, share: float) -> None:
    assert code_runs([fenced(program)], [PAIRS]) == [runs]
    assert code_tests([fenced(program)], [PAIRS]) == [share]


# -- the forms of datasets ---------------------------------------------------------------------------------------------

HUMAN_EVAL = """
METADATA = {'author': 'nobody'}

def check(candidate):
    assert candidate([1, 2, 3]) == [1, 4, 9], "squares"
    for n in range(20):
        assert candidate([n]) == [n * n]
    assert math.isclose(sum(candidate([0.5] * 4)), 1.0)

check(squares)
"""


def test_a_test_of_the_form_of_human_eval_is_one_test() -> None:
    right, wrong = fenced("def squares(x): return [v * v for v in x]"), fenced("def squares(x):\n    pass")
    assert code_tests([right, wrong], [[HUMAN_EVAL]] * 2) == [1.0, 0.0]


def test_what_stands_before_a_program_is_there_for_it_and_for_its_tests() -> None:
    program = fenced("def area(r): return PI * r * r")
    assert code_tests([program], [["assert area(2) == PI * 4"]], context=["PI = 3"]) == [1.0]
    assert code_tests([program], [["assert area(2) == PI * 4"]]) == [0.0]
    changed = fenced("PI = 0\ndef area(r): return 0")  # the test has the PI of the dataset
    assert code_tests([changed], [["assert area(2) == PI * 4"]], context=["PI = 3"]) == [0.0]


def test_a_function_with_a_name_of_python_is_meant_where_the_dataset_says_so() -> None:
    program = fenced("def sum(a, b): return a + b")
    assert code_tests([program], [["assert sum(1, 2) == 3"]], entry_point=["sum"]) == [1.0]
    assert code_tests([program], [["assert sum([1, 2]) == 3"]]) == [1.0]  # Python's own: the test says nothing of it


@pytest.mark.parametrize(("program", "test"), [
    ("def f(x): return (1, {2: [3.5]}, {'a'}, None, True, 2**200)",
     "assert f(0) == (1, {2: [3.5]}, {'a'}, None, True, 2**200)\nassert type(f(0)) is tuple"),
    ("def f(x): return x",
     "for v in (b'a', 1j, frozenset({1}), float('inf'), '\\ud800', -0.0, 10**400): assert f(v) == v"),
    ("def f(x): return x", "v = f(float('nan'))\nassert v != v"),
    ("def f(*a, **k): return [a, k]", "assert f(1, 2, c=3) == [(1, 2), {'c': 3}]"),
    ("from collections import *\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
    ("def f(x): raise KeyError(x)", "try: f(1)\nexcept Exception: pass\nelse: assert False"),
])
def test_plain_values_cross_the_wall_as_they_are(program: str, test: str) -> None:
    assert code_tests([fenced(program)], [[test]]) == [1.0]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_row_without_tests_is_no_row() -> None:
    with pytest.raises(ValueError, match=r"^tests=\[\]: needs at least one test$"):
        code_tests([GOOD], [[]])


def test_the_last_block_is_the_program() -> None:
    assert program_of(fenced("a = 1") + "\ntext\n" + fenced("b = 2")) == "b = 2\n"
    assert program_of("no block") is None


def test_the_same_program_with_the_same_tests_is_run_once(monkeypatch) -> None:
    from rewards import code

    asked = []
    monkeypatch.setattr(code, "tested", lambda box, task, test, limits: asked.append(test) or code.Verdict(True))
    assert code_tests([GOOD, GOOD, GOOD], [ADD[:1], ADD[:1], ADD[1:2]]) == [1.0, 1.0, 1.0]
    assert asked == ADD[:2] or asked == ADD[1::-1]


@pytest.mark.parametrize(("options", "line"), [
    ({"timeout": 0}, "timeout=0 must be a number of at least 0.1; nearest valid value: 0.1"),
    ({"memory": 1}, "memory=1 must be a number of at least 64; nearest valid value: 64"),
    ({"memory": "much"}, "memory='much' must be a number of at least 64; nearest valid value: 64"),
    ({"all_or_nothing": 1}, "all_or_nothing=1 must be true or false; nearest valid value: false"),
    ({"code_sandbox": "docker"}, "code_sandbox='docker': must be one of full, process; nearest valid value: full"),
])
def test_options_that_are_none_are_refused_before_any_program_runs(options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^reward_options of code_tests: {line}$"):
        load(["code_tests"], None, {"code_tests": options})


def test_options_become_limits() -> None:
    options = {"timeout": 0.5, "memory": 100, "all_or_nothing": True}
    function = load(["code_tests"], None, {"code_tests": options})["code_tests"]
    assert function.keywords == {"code_sandbox": "full", "all_or_nothing": True,
                                 "limits": Limits(cpu_s=0.5, wall_s=0.5, memory=100 * 2**20)}
