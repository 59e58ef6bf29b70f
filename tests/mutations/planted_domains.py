"""Mistakes planted in rewards beyond arithmetic, and in what they are told."""

ARGUMENTS = [
    ("keys that are no text", "(key for key in value if not isinstance(key, str))", "()"),
    ("values that JSON has not", "isinstance(value, str | int | float) else value", "True else value"),
    ("keys inside a list", "if isinstance(value, list | tuple):", "if isinstance(value, tuple):"),
    ("a column changes an option", "        named -= function.keywords.keys()\n", "        pass\n"),
    ("options are not set", "return functools.partial(function, **(reader(**options) if reader else options))",
     "return function"),
    ("any option is known", "if option not in known:", "if False:"),
    ("completions may be an option", "_named(reader or function) if one not in ARGUMENTS]",
     "_named(reader or function)]"),
]

LOADING = [
    ("options of functions that are not there", "        if name not in functions:\n", "        if False:\n"),
    ("options are dropped", "with_options(name, function, given.get(name, {}))", "function"),
]

POOL = [
    ("the process knows no options", '"wanted": [reward_funcs, reward_weights, reward_options]',
     '"wanted": [reward_funcs, reward_weights]'),
]

DOMAIN_GROUPS = [
    ("rewards/arguments.py", ("test_reward_options.py",), ARGUMENTS),
    ("rewards/loading.py", ("test_reward_options.py",), LOADING),
    ("rewards/workers/pool.py", ("test_reward_options.py",), POOL),
]
