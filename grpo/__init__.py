"""Group relative policy optimisation: the mathematics, the policy, the rollout and what holds them together."""

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.run.summary import Summary
    from train import train

# What stands beside grpo in a checkout (data, kernels, rewards, recipes, the programs) pip puts into it.
_project = Path(__file__).parent / "_project"
if not _project.is_dir():
    _project = Path(__file__).parents[1]
if str(_project) not in sys.path:
    sys.path.insert(0, str(_project))

# When imported on a CPU it looks for a compiled kernel on the Hub and warns, although it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["Config", "Summary", "train"]
_HOMES = {"Config": "grpo.config", "Summary": "grpo.run.summary", "train": "train"}


def __getattr__(name: str) -> Any:
    """What a program needs of a run; imported when it is asked for, since a run's libraries take ten seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'grpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
