"""Public reward functions run unchanged: TRL's arguments, async functions, objects, conversations, what they log, None.

Or they are refused, with the argument that is missing, before the model loads. Each is called where a run calls it, in
a process of its own. 12 seconds.
"""

import functools
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ranks import ROOT
from refusals import refused, save_small_run, small_run
from reward_pools import score, starting

import train
from data.rows import RESERVED
from grpo.run.command import load
from rewards import loading
from rewards.arguments import ARGUMENTS, check_columns
from rewards.loading import name_of
from rewards.math import correctness_reward, format_reward
from rewards.workers.processes import TOKEN

FILE = ROOT / "tests" / "support" / "trl_rewards.py"
NAN = math.nan
TALK = [[{"role": "user", "content": "Why?"}], [{"role": "system", "content": "."}, {"role": "user", "content": "So"}]]
REPLIES = [[{"role": "assistant", "content": "<think>a\nb</think> 7"}], [{"role": "assistant", "content": "none 7"}]]


@pytest.fixture(scope="module")
def pool():
    """All of them in one process, which imports them once."""
    names = ["solved", "only_mathematics", "judged", "asks_by_itself", "later_more", "notes", "too_long", "async_judge",
             "doubled", "shorter", "nothing", "names_its_prompt", "passes_the_rest_on"]
    with starting() as start:
        yield start(*(f"{FILE}:{name}" for name in names), taken=["kl"])


@pytest.fixture(scope="module")
def scored(pool):
    """What they say of two completions."""
    pool.check_columns(["prompt", "solution", "task"])
    return score(pool, r"so \boxed{7}", "no", prompts=["ab", "abcd"], state={"global_step": 3, "max_steps": 12},
                 solution=["7", "7"], task=["math", "code"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("solved", [1.0, 0.0]),  # sync, with a column and a module beside its file
        ("only_mathematics", [2.0, NAN]),  # None where it does not apply
        ("judged", [12.0, 2.0]),  # async, all completions at the same time
        ("asks_by_itself", [2.0, 2.0]),  # sync, with an event loop inside
        ("later_more", [0.25, 0.25]),  # step 3 of 12
        ("notes", [1.0, 0.0]),
        ("too_long", [0.0, -1.0]),  # an object; it gets 1 and 2 tokens and no completions
        ("async_judge", [0.25, 0.25]),  # an object whose call is async
        ("doubled", [24.0, 4.0]),  # a partial
        ("shorter", [-0.5, 0.75]),  # made by a function: 1 - 12/8, 1 - 2/8
        ("nothing", [NAN, NAN]),
        ("names_its_prompt", [2.0, 4.0]),
        ("passes_the_rest_on", [1.0, 1.0]),  # completion_ids are in **kwargs; prompt is not, as with TRL
    ],
)
def test_a_public_function_s_shape_runs(scored, name, values) -> None:
    assert name not in scored.failures, scored.failures
    assert scored.parts[name] == pytest.approx(values, nan_ok=True)


def test_what_a_function_logs_comes_back_with_its_rewards(scored) -> None:
    assert scored.metrics == {"boxed": [0.5]} and scored.extra == {"found": ["7", None]}
    assert scored.failures == {}


def test_an_async_function_finds_its_event_loop_open_in_the_next_call(pool, scored) -> None:
    again = score(pool, "abc", solution=["1"], task=["math"], state={"global_step": 0, "max_steps": 1})
    assert again.parts["judged"] == [3.0] and again.failures == {}


def test_conversations_are_passed_on_as_they_are(tmp_path: Path) -> None:
    with starting() as start:
        one = start(f"{FILE}:tagged", f"{FILE}:last_question", "format")
        _, parts, failures, *_ = score(one, *REPLIES, prompts=TALK, answer=["7", "7"])
    assert failures == {} and parts == {"tagged": [1.0, 0.0], "last_question": [2.0, 0.0], "format": [0.0, 0.0]}


# -- refused before the model loads ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose model would not load."""
    folder = tmp_path_factory.mktemp("run")
    save_small_run(folder)
    (folder / "model" / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (f"{FILE}:needs_an_environment", ["missing a required argument: 'environments'", "completion_ids", "prompt"]),
        (f"{FILE}:solved", ["missing a required argument: 'solution'", "final_answer"]),
        (f"{FILE}:scaled", ["missing a required argument: 'factor'"]),
        (f"{FILE}:TooLong", ["'TooLong' is a class", "trl_rewards.py:my_reward, with my_reward = TooLong(...)"]),
        ("no_such_package.rewards:f", ["ModuleNotFoundError: No module named 'no_such_package'"]),
        ("my-rewards:f", ["must be format, correctness, ", ", path/to/file.py:function or module:function"]),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_in_one_line_before_the_model_loads(
    folder: Path, capsys: pytest.CaptureFixture, function: str, words: list[str]
) -> None:
    line = refused(train.main, small_run(folder, reward_funcs=function), folder, capsys)
    assert [word for word in words if word not in line] == []


def test_a_function_of_a_module_that_python_can_import_is_found_by_its_name(folder: Path) -> None:
    functions = loading.load(["rewards.math:format_reward", "correctness"])
    assert functions == {"format_reward": format_reward, "correctness": correctness_reward}
    argv = ["--reward_funcs", "rewards.math:format_reward", "--output_dir", str(folder / "out")]
    assert load(argv).reward_funcs == ["rewards.math:format_reward"]


def test_the_nearest_argument_is_named(tmp_path: Path) -> None:
    (tmp_path / "near.py").write_text("def f(completion, answer): pass\ndef g(completions, answer): pass\n")
    with pytest.raises(ValueError, match="'f': missing a required argument: 'completion'; .*: completions$"):
        check_columns(loading.load([f"{tmp_path / 'near.py'}:f"]), ["answer"])
    with pytest.raises(ValueError, match="'g': missing a required argument: 'answer'; .*: final_answer$"):
        check_columns(loading.load([f"{tmp_path / 'near.py'}:g"]), ["final_answer"])


def test_no_column_of_a_dataset_has_the_name_of_an_argument() -> None:
    assert set(RESERVED) == set(ARGUMENTS)


def test_a_function_that_python_has_no_signature_of_gets_everything() -> None:
    check_columns({"dict": dict}, ["answer"])


# -- what goes wrong in a call -----------------------------------------------------------------------------------------

BAD_NOTES = '''
def takes_the_kl(completions, log_metric): log_metric("kl", 1.0)
def takes_a_part(completions, log_metric): log_metric("rewards/mine", 1.0)
def logs_a_word(completions, log_metric): log_metric("mine", "high")
def logs_without_a_name(completions, log_metric): log_metric(7, 1.0)
def logs_one_for_two(completions, log_extra):
    log_extra("half", [1])
    return [1.0, 1.0]
def logs_a_number(completions, log_extra): log_extra("half", 1)
def first(completions, log_extra):
    for value in 0.5, float("inf"):
        log_extra("shared", [value])
    return [0.0, 0.0]
def second(completions, log_extra): log_extra("shared", [0, 0])
def takes_a_share(completions, log_metric): log_metric("phantom_advantage_share/mine", 1.0)
'''


def test_a_note_that_cannot_be_kept_fails_where_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(BAD_NOTES)
    names = [line.split()[1].partition("(")[0] for line in BAD_NOTES.splitlines() if line.startswith("def")]
    with starting() as start:
        found = score(start(*(f"{tmp_path / 'notes.py'}:{name}" for name in names), taken=["kl"]), "a", "b")
    assert {name: reason for name, (_, reason) in found.failures.items()} == {
        "takes_the_kl": "raised ValueError: log_metric('kl', ...): the trainer has a metric of this name; nearest "
                        "valid value: 'my_kl' (notes.py:2)",
        "takes_a_part": "raised ValueError: log_metric('rewards/mine', ...): the trainer has a metric of this name; "
                        "nearest valid value: 'my_mine' (notes.py:3)",
        "logs_a_word": "raised ValueError: could not convert string to float: 'high' (notes.py:4)",
        "logs_without_a_name": "raised TypeError: log_metric(7, ...): needs a name (notes.py:5)",
        "logs_one_for_two": "logged 1 values in the column 'half'; log_extra needs one for each of 2 completions",
        "logs_a_number": "raised TypeError: log_extra('half', 1): needs a name and a list (notes.py:9)",
        "second": "raised ValueError: log_extra('shared', ...): first logs this column; nearest valid value: "
                  "'second_shared' (notes.py:14)",
        "takes_a_share": "raised ValueError: log_metric('phantom_advantage_share/mine', ...): the trainer has a metric "
                         "of this name; nearest valid value: 'my_mine' (notes.py:15)"}
    assert found.metrics == {} and found.extra == {"shared": [0.5, None]}


def test_a_field_that_the_state_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    with starting() as start:
        found = score(start(f"{FILE}:asks_too_much"), "a", state={"global_step": 1, "max_steps": 2})
    (count, reason), = found.failures.values()
    assert count == 1 and "trainer_state has no 'log_history'; it has global_step, max_steps (trl_rewards.py:" in reason


NOTES_ALONE = '''
import numpy
async def alone(completions, log_metric, log_extra):
    if len(completions) > 1 or completions == ["bad"]:
        raise RuntimeError("one by one")
    log_metric("calls", numpy.float32(2.0))
    log_metric("broken", float("nan"))
    log_extra("seen", numpy.array([len(completions[0])]))
    log_extra("odd", [{"a": {1, }, "b": (numpy.int64(2), float("nan"))}])
    return [1.0]
'''


def test_of_completions_asked_one_by_one_each_has_its_note_and_every_call_its_metric(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(NOTES_ALONE)
    with starting() as start:
        found = score(start(f"{tmp_path / 'alone.py'}:alone"), "a", "bad", "abc")
    assert found.failures == {"alone": (1, "raised RuntimeError: one by one (alone.py:5)")}
    assert found.metrics["calls"] == [2.0, 2.0] and all(map(math.isnan, found.metrics["broken"]))
    odd = {"a": "{1}", "b": [2, None]}
    assert found.extra == {"seen": [1, None, 3], "odd": [odd, None, odd]}


def test_two_folders_whose_modules_have_the_same_name_are_not_mixed_up(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_rewards.py").write_text(
            f"import shared\ndef {name}(completions): return shared.f()\n")
        (tmp_path / name / "shared.py").write_text(f"def f(): return [{value}]")
    files = [f"{tmp_path / name / name}_rewards.py:{name}" for name in ("one", "two")]
    with starting() as start:
        assert score(start(files[1]), "a").total == [2.0]
        with pytest.raises(ValueError, match=f"two'.* ImportError: shared is in {tmp_path}/two and in {tmp_path}/one"):
            start(*files)


# -- a completion without a reward -------------------------------------------------------------------------------------


def test_a_completion_that_every_function_gave_none_has_no_total_and_one_function_s_none_is_left_out_of_it() -> None:
    with starting() as start:
        one = start(f"{FILE}:nothing", f"{FILE}:only_mathematics", weights=[1.0, 2.0])
        found = score(one, "a", "b", task=["math", "code"])
    assert found.total == pytest.approx([2.0, NAN], nan_ok=True)  # 2 * len("p")


@pytest.mark.parametrize(
    ("failure", "weights", "total", "part"),
    [
        ("zero", [1.0, 1.0], [2.0, 1.0, 2.0], [1.0, 0.0, 1.0]),
        ("exclude", [1.0, 1.0], [2.0, NAN, 2.0], [1.0, NAN, 1.0]),
        ("exclude", [0.0, 1.0], [1.0, 1.0, 1.0], [1.0, NAN, 1.0]),  # it has no say in the reward
    ],
)
def test_a_failed_grader_gives_0_or_leaves_its_completion_out(failure, weights, total, part) -> None:
    with starting() as start:
        found = score(start("raises", "counts", weights=weights, failure=failure), "good", "bad", "fine")
    assert found.total == pytest.approx(total, nan_ok=True)
    assert found.parts["raises"] == pytest.approx(part, nan_ok=True) and found.failures["raises"][0] == 1


# -- functions from Python ---------------------------------------------------------------------------------------------


def test_a_function_of_a_module_is_named_so_that_another_process_finds_it(tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(FILE.read_text())
    main, package = ModuleType("__main__"), ModuleType("package.inner")
    main.__file__ = str(script)
    exec("def mine(): pass\nmade = (lambda: lambda: 0)()", vars(main))
    main.part = functools.partial(main.mine)
    exec("def f(): pass", vars(package))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "package.inner", package)
    assert name_of(format_reward) == "format" and name_of("a.py:f") == "a.py:f"
    assert [name_of(one) for one in (main.mine, main.made, main.part)] == [
        f"{script}:mine", f"{script}:made", f"{script}:part"]
    assert name_of(package.f) == "package.inner:f"
    assert name_of(score) == f"{ROOT / 'tests/support/reward_pools.py'}:score"
    for nameless in (lambda: 0, functools.partial(score)):
        with pytest.raises(ValueError, match="^reward_funcs=.* nearest valid value: a function, a partial or an obj"):
            name_of(nameless)
    del main.__file__  # a notebook
    with pytest.raises(ValueError, match="nearest valid value: 'my_rewards.py:my_reward', from a cell .* %%writefile"):
        name_of(main.mine)


def test_a_file_that_trains_when_it_is_imported_is_refused(tmp_path: Path, monkeypatch) -> None:
    script = "import grpo\ndef f(completions): return [1.0]\ngrpo.train(grpo.Config(plan=1))\n"
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setenv(TOKEN, "some")  # as in the process that loads it
    with pytest.raises(ValueError, match=r"RuntimeError: grpo.train\(\) is called .* __name__ == .*\(script.py:3\)"):
        loading.load([f"{tmp_path / 'script.py'}:f"])
