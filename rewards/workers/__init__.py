"""The processes that call reward functions, so that an accident in one cannot hurt the run.

`rewards.workers.pool` is the trainer's side, `rewards.workers.keeper` watches a process and ends it, and
`rewards.workers.runner` is that process: the only one that imports a user's file.
"""
