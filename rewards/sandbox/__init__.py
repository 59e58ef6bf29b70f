"""A place to run programs that must not be trusted, such as those a model writes.

`python -m rewards.sandbox --check` shows which of its layers hold on a machine. `box` starts it, `program` speaks to a
process in it, `verdict` says whether a program passes a test, `inside/` is what runs there, `seccomp` and `view` are
what a program may call and see, `layers` refuses where something is missing.
"""
