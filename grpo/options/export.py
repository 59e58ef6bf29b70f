"""The options of `python -m grpo.export`. Imports no torch, so that `--help` and a mistake are answered at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.options.command_line import command_line
from grpo.options.option import check, convert, option, options
from grpo.options.refusal import refuse
from grpo.options.surroundings import check_folder, check_writable, located

TRAINED = ("adapter/adapter_config.json", "model/config.json")
USAGE = "python -m grpo.export FOLDER [--option value ...]"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of grpo.export; FOLDER is the output folder of a run, or an adapter."""

    output: str | None = option(None, "Folder to write; none: export/ in a run's folder, FOLDER-export of an adapter.")
    model: str | None = option(None, "Folder or Hub name of the base model; none: the one that FOLDER names.")
    torch_dtype: str = option("bfloat16", "Type of the written weights.", choices=("bfloat16", "float16", "float32"))
    limit: int = option(
        100, "Problems by which the written model is compared with what was trained; 0: no comparison.",
        unit="problems", within="[0, inf)")
    push_to_hub: str | None = option(None, "Name of a repository on the Hub that gets the written folder.")
    hub_private_repo: bool = option(False, "Make that repository private if it is new.")


def parse(argv: Sequence[str]) -> tuple[Path, Settings]:
    """FOLDER and the settings of a command line; ValueError for one that is unknown, out of range, or missing."""
    known, parser = options(Settings), command_line(Settings, usage=USAGE)
    parser.add_argument("FOLDER", nargs="?")
    given = parser.parse_args(list(argv))
    name = given.pop("FOLDER", None)
    if name is None:
        raise ValueError(f"FOLDER is missing: {USAGE}; nearest valid value: outputs/run")
    folder = Path(name).expanduser()
    values = {option: convert(known[option], value) for option, value in given.items()}
    values |= located({"model": values.get("model")})
    settings = Settings(**values)
    for one in known.values():
        check(one, getattr(settings, one.name))
    ended = (folder / "config.yaml").is_file() and any((folder / one).is_file() for one in TRAINED)
    if not ended and not (folder / "adapter_config.json").is_file():
        refuse("FOLDER", str(folder), f"must hold config.yaml with {' or '.join(TRAINED)}, as a run's folder does at "
               "its end, or be an adapter", "the output_dir of a run that has ended")
    check_folder("model", settings.model, holding="config.json")
    if settings.output is not None:
        check_writable("output", Path(settings.output))
    if settings.output is not None and Path(settings.output).is_dir() and any(Path(settings.output).iterdir()):
        refuse("output", settings.output, "holds files, which are not written over", f"{settings.output}-2")
    if settings.push_to_hub is not None and settings.push_to_hub.count("/") > 1:
        refuse("push_to_hub", settings.push_to_hub, "must be NAME or USER/NAME", Path(settings.push_to_hub).name)
    return folder, settings
