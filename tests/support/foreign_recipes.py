"""Recipes of other trainers for a test: loaded, refused, or what is said of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import ROOT

from grpo.config import Config
from grpo.options import foreign
from grpo.options.option import options
from grpo.run.command import load

RECIPES = ROOT / "tests" / "options" / "recipes"
NOT_BUILT = {*foreign.SAME, *foreign.RENAMED.values()} - {*options(Config)}  # options that another change brings
NOT_BUILT |= {name for name, option in foreign.RENAMED.items() if option in NOT_BUILT}


def furnish(folder: Path) -> None:
    """Put the files there that the recipes name."""
    (folder / "problems.jsonl").write_text('{"prompt": "1 + 1"}')
    shutil.copy(RECIPES / "zero3.json", folder)


def loaded(place: Path, *argv: str, **keys: Any) -> Config:
    """The configuration of a recipe with these keys, which alone would load without a note."""
    built = {name: value for name, value in keys.items() if name not in NOT_BUILT}
    (place / "a.yaml").write_text(yaml.safe_dump(built, sort_keys=False))
    return load(["--config", "a.yaml", *argv])


def refused(place: Path, *argv: str, **keys: Any) -> list[str]:
    with pytest.raises(ValueError) as caught:
        loaded(place, *argv, **keys)
    return str(caught.value).split("\n")


def notes(place: Path, *argv: str, **keys: Any) -> list[str]:
    """What is said of a recipe with these keys, besides what it leaves to defaults."""
    return [line for line in loaded(place, *argv, **keys).notes if not line.startswith("not in the recipe")]
