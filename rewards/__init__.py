"""Reward functions: programs that score completions, called as TRL calls them.

A user's function has all rights of the user. It runs in processes of its own, so that an accident in it cannot hurt the
run: `rewards.runner` calls what `rewards.loading` finds, `rewards.worker` watches it, `rewards.pool` is the trainer's
side.
"""

from rewards.arguments import ARGUMENTS, check_columns
from rewards.loading import BUILT_IN, load, metric_name, name_of
from rewards.values import LARGEST_REWARD, check_values

__all__ = ["ARGUMENTS", "BUILT_IN", "LARGEST_REWARD", "check_columns", "check_values", "load", "metric_name", "name_of"]
