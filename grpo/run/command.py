"""What a command line of train.py asks for. Imports no torch: all but a run itself is answered at once."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo.config import Config
from grpo.health import last_words
from grpo.memory import plan
from grpo.options import foreign, recipe
from grpo.options.command_line import Parser, command_line
from grpo.options.option import options
from grpo.options.refusal import told
from grpo.options.surroundings import PROJECT, READ, check_surroundings, folder_of, located, world_size

TOY_RECIPE = PROJECT / "recipes" / "toy.yaml"
TOY_PARTS = {"model_name_or_path", "train_dataset_id_or_path"}


def asked(argv: list[str]) -> Config:
    """The configuration of a command line that asks for a run.

    Raises:
        SystemExit: with 0 after `--help` and `--plan`, with 2 after a line about each mistake, else with 1.
    """
    try:
        config = load(argv)
        if config.plan is None:
            return config
        print("\n".join(plan.page(config)))
    except ValueError as error:
        raise SystemExit(last_words.fail(told(error), 2)) from None
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(last_words.fail(last_words.words(error), 1)) from None
    raise SystemExit(0)


@functools.cache
def parser() -> Parser:
    """What reads the command line."""
    made = command_line(Config, recipe.ForeignNames, usage="torchrun train.py [--config FILE] [--option value ...]",
                        renamed=recipe.renamed(Config), hidden=recipe.hidden())
    made.add_argument("--config", metavar="FILE", help="YAML recipe [recipes/toy.yaml where neither it nor a model nor "
                      "a training dataset is given]")
    return made


def load(argv: list[str]) -> Config:
    """The configuration of `train.py [--config recipe.yaml] [--option value ...]`; `--help` prints and exits.

    Overrides win over the recipe, and the recipe over the defaults of the dataclass. recipes/toy.yaml is the recipe
    where neither a recipe nor a model nor a training dataset is given.

    Raises:
        ValueError: a line for each mistake that names the field, the value, the rule and the nearest valid value.
    """
    given = parser().parse_args(argv)
    # A rate for the shipped model would break another one, so nobody's own model or data gets it.
    mine = TOY_PARTS & {foreign.RENAMED.get(name, name) for name in given}
    file: Any = located({"config": given.pop("config", None)})["config"] or (None if mine else TOY_RECIPE)
    values, notes = recipe.resolve(recipe.read(file) if file else {}, given, Config, world_size=world_size())
    home = folder_of(Path(file)) if file and values.get("resume") and "output_dir" not in given else None
    if home and home.resolve() != Path(values.get("output_dir", "")).resolve():  # the run's folder has been moved
        notes.append(f"output_dir={home}: the run's {file} lies there, and says {values.get('output_dir')}")
        values["output_dir"] = str(home)
    return found(Config(**values, recipe="recipes/toy.yaml" if file is TOY_RECIPE else file, notes=tuple(notes)))


def found(config: Config) -> Config:
    """The configuration with its files where they are here; ValueError where it cannot run here."""
    places: dict[str, Any] = located({name: getattr(config, name) for name in READ})
    config = replace(config, **places)
    check_surroundings({name: getattr(config, name) for name in options(Config)})
    return config
