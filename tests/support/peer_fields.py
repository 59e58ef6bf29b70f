"""The options of TRL and transformers with their defaults, read from the installed classes.

    python tests/support/peer_fields.py    # where both are installed; writes tests/options/peer_fields.json

The file is committed, so that tests compare the table of grpo/options/foreign.py with it where there is no TRL.
"""

import dataclasses
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "options" / "peer_fields.json"
CLASSES = {"transformers": ["TrainingArguments"], "trl": ["GRPOConfig", "ModelConfig", "ScriptArguments"]}


def installed(package: str) -> dict[str, Any]:
    """The version of a package, and the fields of its classes with their defaults."""
    module = importlib.import_module(package)
    fields = {name: {field.name: _default(field) for field in dataclasses.fields(getattr(module, name))}
              for name in CLASSES[package]}
    return {"version": importlib.metadata.version(package), **fields}


def committed(package: str) -> dict[str, Any]:
    """The same as the file has it."""
    return json.loads(PATH.read_text())[package]


def _default(field: dataclasses.Field) -> Any:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return json.loads(json.dumps(getattr(value, "value", value)))  # enums by what a recipe says


if __name__ == "__main__":
    PATH.write_text(json.dumps({package: installed(package) for package in CLASSES}, indent=1) + "\n")
