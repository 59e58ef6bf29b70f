"""Reward functions: programs that score completions, called as TRL calls them.

A user's function has all rights of the user. It runs in processes of its own, so that an accident in it cannot hurt the
run: `rewards.runner` calls what `rewards.loading` finds, `rewards.worker` watches it, `rewards.pool` is the trainer's
side.
"""
