"""Finds reward functions by their names, and the name of a function that Python code hands over."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from math import isfinite  # not "import math": here that is our own submodule
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.arguments import with_options
from rewards.values import blame, shown

# Imported only where they are asked for: some need a library.
BUILT_IN = {"format": "rewards.math:format_reward", "correctness": "rewards.math:correctness_reward",
            "keywords": "rewards.text:keywords", "keyword_groups": "rewards.text:keyword_groups",
            "contexts": "rewards.text:contexts", "semantic": "rewards.text:semantic",
            "code_format": "rewards.code:code_format", "code_runs": "rewards.code:code_runs",
            "code_tests": "rewards.code:code_tests",
            "math_verify": "rewards.latex:math_verify", "reasoning_gym": "rewards.gym:reasoning_gym",
            **{name: f"rewards.trl:{name}" for name in (
                "accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_cosine_scaled_reward",
                "get_repetition_penalty_reward", "get_soft_overlong_punishment")},
            **{name: f"rewards.open_r1:{name}" for name in (
                "tag_count_reward", "len_reward", "think_answer_format_reward")}}
# What some of them need besides, each an extra of setup.cfg; of the first the version that rewards/gym.py knows.
EXTRAS = {"reasoning_gym": "reasoning-gym==0.1.25", **dict.fromkeys((
    "math_verify", "accuracy_reward", "reasoning_accuracy_reward", "get_cosine_scaled_reward", "len_reward"),
    "math-verify")}
_FOLDERS: list[Path] = []  # of the reward files that were imported


def load(reward_funcs: list[str], reward_weights: list[float] | None = None,
         reward_options: dict[str, dict[str, Any]] | None = None) -> dict[str, Callable[..., Any]]:
    """Find the reward functions, and refuse with ValueError what is missing, fails to import or does not fit together.

    Args:
        reward_funcs: each a name of BUILT_IN, "path/to/file.py:function" or "module:function". What stands for
            `function` may be anything that can be called: an async function, a partial, an object with __call__.
        reward_weights: one factor per function; None means 1.0 for each.
        reward_options: by metric name, arguments with which the function is called besides ours and the columns.

    Returns functions by metric name, to be called by `rewards.arguments.call`.
    """
    weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
    if not reward_funcs:
        raise ValueError("reward_funcs=[]: needs at least one function; nearest valid value: [format, correctness]")
    if len(weights) != len(reward_funcs):
        raise ValueError(f"reward_weights={weights}: needs one weight per function of reward_funcs={reward_funcs}")
    if not all(isfinite(weight) for weight in weights):
        raise ValueError(f"reward_weights={weights}: every weight must be a finite number, such as 1.0")
    found = [(metric_name(name), _find(name)) for name in reward_funcs]
    functions = dict(found)
    if len(functions) < len(found):
        names = [name for name, _ in found]
        raise ValueError(f"reward_funcs={reward_funcs}: metrics need different names, these are {names}; rename one")
    given = reward_options or {}
    for name in given:
        if name not in functions:
            raise ValueError(f"reward_options={name!r}: must be one of reward_funcs: {', '.join(functions)}")
    return {name: with_options(name, function, given.get(name, {}))
            if name in given or hasattr(function, "read_options") else function for name, function in functions.items()}


def metric_name(name: str) -> str:
    """The name of an entry of reward_funcs in the metrics: the function without its file."""
    return name.rpartition(":")[2]


def name_of(function: str | Callable[..., Any]) -> str:
    """The entry of reward_funcs that finds a function again in another process; a name is its own.

    Raises:
        ValueError: no module holds the function under a name, as with a lambda in a call, or it is in no file.
    """
    if isinstance(function, str):
        return function
    for name, place in BUILT_IN.items():
        if place == f"{getattr(function, '__module__', None)}:{getattr(function, '__name__', None)}":
            return name
    own = sys.modules.get(getattr(function, "__module__", ""))
    for module in (own, *list(sys.modules.values())):  # an object or a partial may have its name in any
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function and _place(module):
                return f"{_place(module)}:{name}"
    near = "a function, a partial or an object that has a name there"
    if getattr(own, "__name__", "") == "__main__" and not _place(own):
        near = "'my_rewards.py:my_reward', from a cell of the notebook that begins with %%writefile my_rewards.py"
    raise ValueError(f"reward_funcs={shown(function)}: is called in another process, which must find it by its name at "
                     f"the top of a file; nearest valid value: {near}")


def _place(module: ModuleType) -> str:
    """How reward_funcs names a module: by its file, within a package by its name; empty where it has neither."""
    if "." in module.__name__:  # its file alone might miss the package around it
        return module.__name__
    file = getattr(module, "__file__", None) or ""
    return str(Path(file).resolve()) if file.endswith(".py") else ""


def _find(name: str) -> Callable[..., Any]:
    if name in EXTRAS:
        _check_extra(name, *EXTRAS[name].split("=="))
    place, _, attribute = BUILT_IN.get(name, name).rpartition(":")
    is_file = place.endswith(".py")
    if not is_file and not all(map(str.isidentifier, place.split("."))):
        nearest = f"{name}:FUNCTION" if name.endswith(".py") else get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise ValueError(f"reward_funcs={name!r}: must be {', '.join(BUILT_IN)}, path/to/file.py:function or "
                         f"module:function; nearest valid value: {nearest}")
    if is_file and not Path(place).is_file():
        raise ValueError(f"reward_funcs={name!r}: no file {place} (looked in {Path(place).resolve().parent})")
    try:
        module = _import_file(Path(place).resolve()) if is_file else importlib.import_module(place)
    except BaseException as error:  # sys.exit() in the file, too
        raise ValueError(f"reward_funcs={name!r}: importing it raised {blame(error)}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        callables = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        what = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise ValueError(f"reward_funcs={name!r}: {attribute!r} {what} in {place}; its functions: {callables}")
    if inspect.isclass(function):
        raise ValueError(f"reward_funcs={name!r}: {attribute!r} is a class, whose call makes an object; nearest valid "
                         f"value: {place}:my_reward, with my_reward = {attribute}(...) there")
    return function


def _check_extra(name: str, package: str, version: str = "") -> None:
    """Refuse a function whose package is not there, or there in another version than the one that is needed."""
    from importlib import metadata  # here, as few need it

    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = ""
    if not found or version and found != version:
        raise ValueError(f"reward_funcs={name!r}: needs the package {EXTRAS[name]}, and {found or 'none'} is installed "
                         f"here; nearest valid: pip install {EXTRAS[name]}")


def _import_file(file: Path) -> ModuleType:
    name = str(file)
    if name not in sys.modules:  # imported once for all its functions
        _open_folder(file.parent)
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _open_folder(folder: Path) -> None:
    """Let a file import the modules beside it, as a script may; also later, when its functions are called.

    Raises:
        ImportError: it would get a module of another reward file's folder under the name of one of its own.
    """
    if folder in _FOLDERS:
        return
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        home = file.parents[1] if file.name == "__init__.py" else file.parent
        if home in _FOLDERS and (Path(folder, name).is_dir() or Path(folder, f"{name}.py").is_file()):
            raise ImportError(f"{name} is in {folder} and in {home}, and Python imports one of them; rename one")
    _FOLDERS.append(folder)
    sys.path.insert(0, str(folder))
