"""Group relative policy optimisation: the mathematics, the policy, the rollout and what holds them together."""

import logging
import sys
from pathlib import Path

# What stands beside grpo in a checkout (data, kernels, rewards, recipes, the programs) pip puts into it.
_project = Path(__file__).parent / "_project"
if not _project.is_dir():
    _project = Path(__file__).parents[1]
if str(_project) not in sys.path:
    sys.path.insert(0, str(_project))

# When imported on a CPU it looks for a compiled kernel on the Hub and warns, although it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
