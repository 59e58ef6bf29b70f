"""Reward functions: programs that score completions, called as TRL calls them.

A user's function has all rights of the user. It runs in processes of its own (`rewards.workers`), so that an accident
in it cannot hurt the run.
"""
