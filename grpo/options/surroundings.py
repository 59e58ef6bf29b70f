"""What a run needs around it (ranks, files, packages), checked before any model loads."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from grpo.options.refusal import nearest, refuse

DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".gz")
# What a run writes to output_dir, and a second run there would write over. The first are weights and results; of a run
# that ended before its first checkpoint there are only the others.
RESULTS = ("checkpoints", "adapter", "model", "summary.json")
WRITTEN = (*RESULTS, "config.yaml", "run.json", "report.html", "metrics.jsonl", "completions.jsonl", "tokens.jsonl",
           "evaluation", "skipped", "trackers.json")
LAUNCHER = ("RANK", "WORLD_SIZE")
PROJECT = Path(importlib.util.find_spec("data").origin).parents[1]  # of a checkout, or as pip installed it
READ = ("model_name_or_path", "tokenizer_name_or_path", "adapter_name_or_path", "train_dataset_id_or_path",
        "test_dataset_id_or_path")


def world_size() -> int:
    """Number of ranks, from torchrun's environment; 1 without torchrun.

    Raises:
        ValueError: what torchrun sets is there in part, or is no number.
    """
    given = {name: os.environ[name] for name in LAUNCHER if name in os.environ}
    if given in ({}, {"WORLD_SIZE": "1"}):
        return 1
    for name in LAUNCHER:
        if not given.get(name, "").isdecimal():
            stray = ", ".join(f"{one}={value!r}" for one, value in given.items())
            refuse(name, given.get(name), f"must be a number beside {stray} in the environment, where torchrun sets "
                   "both", f"`unset {' '.join(given)}`, or torchrun")
    return int(given["WORLD_SIZE"])


def located(names: dict[str, str | None]) -> dict[str, str | None]:
    """Names of files, folders or what a Hub has, as they are looked up, by option.

    ~ is spelled out, and a relative path that is not here is the project's, where the shipped recipes' paths start.
    """
    found = {}
    for name, value in names.items():
        path = None if value is None else os.path.expanduser(value)
        in_project = path and "/" in path and not os.path.exists(path) and os.path.exists(PROJECT / path)
        found[name] = str(PROJECT / path) if in_project else path
    return found


def check_surroundings(values: dict[str, Any]) -> None:
    """Refuse with ValueError what cannot run here; `values` are those of all options by name.

    Every rank looks at output_dir, so no rank may write there before all have passed this check.
    """
    prompts, ranks = values["prompts_per_step"], values["plan"] or world_size()
    if prompts % ranks:
        refuse("prompts_per_step", prompts, f"must be a multiple of the {ranks} ranks",
               max(1, round(prompts / ranks)) * ranks)
    for name in (*READ, "output_dir"):
        _check_path(name, values[name])
    check_folder("model_name_or_path", values["model_name_or_path"], holding="config.json")
    check_folder("tokenizer_name_or_path", values["tokenizer_name_or_path"], holding="tokenizer_config.json")
    check_folder("adapter_name_or_path", values["adapter_name_or_path"], holding="adapter_config.json", hub=False)
    for name in ("train_dataset_id_or_path", "test_dataset_id_or_path"):
        dataset = values[name]
        is_local = dataset and (_looks_local(dataset) or dataset.endswith(DATA_SUFFIXES))
        if is_local and not Path(dataset).expanduser().exists():
            _refuse_missing(name, dataset, "must be an existing file or folder")
    for entry in values["reward_funcs"]:
        path = entry.rpartition(":")[0]
        _check_path("reward_funcs", path)
        if path.endswith(".py") and not Path(path).is_file():
            _refuse_missing("reward_funcs", entry, "must name an existing file before the colon")
    for package in values["report_to"]:
        if importlib.util.find_spec(package) is None:
            refuse("report_to", package, f"needs the package {package}, which is not installed here", "none")
    if values["plan"] is None:  # a plan writes nothing
        check_output_dir(Path(values["output_dir"]), resume=values["resume"])
        _check_start(values)


def check_writable(name: str, path: Path) -> None:
    """Refuse with ValueError an output folder that cannot be made, without making it."""
    if path.parts[:1] == ("~",):
        refuse(name, str(path), "is taken as it is, and a shell would replace its ~", path.expanduser())
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir():
        refuse(name, str(path), f"cannot be made: {there} is no folder", there.with_name(f"{there.name}-2"))
    if not os.access(there, os.W_OK | os.X_OK):
        refuse(name, str(path), f"cannot be made: {there} may not be written to", "a folder of your own")


def _check_path(name: str, value: str | None) -> None:
    """Refuse a path that the system cannot look up, such as a name that is too long."""
    try:
        os.stat(value or ".")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        refuse(name, value, f"cannot be looked up: {error.strerror}", "a shorter path")


def _looks_local(name: str) -> bool:
    # A Hub name has at most one slash, inside it.
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def check_folder(name: str, value: str | None, *, holding: str, hub: bool = True) -> None:
    """Refuse with ValueError a path without this file; `hub`: what looks like no path is a Hub's, and not looked up."""
    if value is None or hub and not (_looks_local(value) or os.path.exists(value)) or (Path(value) / holding).is_file():
        return
    valid = _alike(value, [path.parent for path in Path(value).parent.glob(f"*/{holding}")])
    refuse(name, value, f"must be a folder that holds {holding}",
           valid or "a folder that save_pretrained wrote" + (", or a Hub name" if hub else ""))


def _refuse_missing(name: str, value: str, rule: str) -> None:
    path = value.rpartition(":")[0] or value
    valid = _alike(path, [one for one in Path(path).parent.glob("[!.]*") if one.exists()])
    refuse(name, value, rule, valid or "a path that exists")


def _alike(value: str, paths: list[Path]) -> Path | None:
    """The path whose last part is most similar."""
    named = {path.name: path for path in paths}
    return named.get(nearest(Path(value).name, named))


def _check_start(values: dict[str, Any]) -> None:
    # The export would write over it, and a resumed run needs it as its reference.
    name, folder = ("adapter_name_or_path", "adapter") if values["use_peft"] else ("model_name_or_path", "model")
    start, export = values[name], Path(values["output_dir"], folder)
    if start and Path(start).resolve().is_relative_to(export.resolve()):
        refuse(name, start, f"is where this run's export goes: output_dir={values['output_dir']!r} holds it",
               f"a copy elsewhere, or output_dir={values['output_dir']}-2")


def folder_of(recipe: Path) -> Path | None:
    """The output folder of a run whose config.yaml this is, wherever it lies now; None for any other recipe."""
    is_of_run = recipe.name == "config.yaml" and any(recipe.parent.glob("checkpoints/step-*"))
    return recipe.parent if is_of_run else None


def check_output_dir(path: Path, *, resume: bool) -> None:
    """Refuse with ValueError a folder that is not writable, has another run, or has no checkpoint to resume.

    A run that ended before its first checkpoint is no other run: `saving.output_lock` puts its files aside.
    """
    if not path.is_file():
        check_writable("output_dir", path)
    found = next((name for name in RESULTS if holds(path / name)), None)
    if path.exists() and not path.is_dir() or found and not resume:
        number = next(number for number in range(2, 10**6) if not Path(f"{path}-{number}").exists())
        what = f"holds another run ({found}), which is not written over without --resume" if found else "is a file"
        refuse("output_dir", str(path), what, f"{path}-{number}")
    if resume and not any(path.glob("checkpoints/step-*")):
        refuse("resume", resume, f"needs a checkpoint, and output_dir={str(path)!r} holds none", False)


def holds(path: Path) -> bool:
    """Is there a file, or a folder with something in it?"""
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)
