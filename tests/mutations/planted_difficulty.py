"""Mistakes in which problems a step samples, and in what gives way; see planted.py."""

REFILLS = [
    ("a step's own problems stand in", " if index not in own]  # of no epoch", "]"),
    ("the stand-ins of every step are the same", "_permutation(num_examples, seed, -1 - step)",
     "_permutation(num_examples, seed, -1)"),
    ("every place has the same stand-ins", "others[place::prompts_per_step]", "others"),
]

PASS_RATES = [
    ("the lowest pass rate is outside", "self.low <= self.right", "self.low < self.right"),
    ("no highest pass rate", " / scored <= self.high", " / scored <= 1"),
    ("a problem that is not known is outside", "return not scored or ", "return bool(scored) and "),
    ("a place without a problem", " or candidates[:1]", ""),
    ("the newest group alone is counted", "self.right[one.problem] += one.right",
     "self.right[one.problem] = one.right"),
    ("completions are counted once", "self.scored[one.problem] += one.scored",
     "self.scored[one.problem] = one.scored"),
    ("the numbers at the end of any words count", "answer.strict, 1)", "answer.lenient, 1)"),
    ("a question twice is its last problem", "places.setdefault(example.title, []).append(index)",
     "places[example.title] = [index]"),
    ("a file without a problem of the run is taken", "if not known:", "if False:"),
]

GROUPS = [
    ("the first group of a place stays", "row = {b: row for row, (b, _) in enumerate(drawn)}",
     "row = {b: row for row, (b, _) in reversed(list(enumerate(drawn)))}"),
    ("rewards of the groups that gave way", "row.values() for g in range(num_generations)]))",
     "range(len(row)) for g in range(num_generations)]))"),
]

DRAW = [
    ("a stand-in gets the noise of what it stands for", " + run.config.prompts_per_step * again", ""),
    ("the noise belongs to the place on the rank",
     "first = run.config.prompts_per_step // world_size() * rank() + ", "first = "),
    ("a closed gate teaches", "gate_advantages(advantage_BG, right_BG, gate=run.config.advantage_gate).any(dim=1)",
     "advantage_BG.any(dim=1)"),
    ("pass@k is judged by rewards", 'if run.config.adv_estimator == "pass_at_k":\n        advantage_BG = pass',
     'if False:\n        advantage_BG = pass'),
]

JOIN = [
    ("the last call's failures alone", "(joined.failures.get(name, (0, \"\"))[0] + failed, reason)",
     "(failed, reason)"),
    ("a column that one call logs moves up", "joined.extra.setdefault(name, [None] * before)",
     "joined.extra.setdefault(name, [])"),
]

TAKE = [
    ("what is taken is as long as what is not", "longest = int(length_N.max())\n    return Rollout",
     "longest = rollout.token_NT.shape[1]\n    return Rollout"),
]

PULL = [
    ("the pull of the KL is its value", "(2 * kl_UT.detach().abs()).sqrt()", "kl_UT.detach()"),
    ("the pull of the KL whatever beta is", "pull = beta * sums", "pull = sums"),
    ("the pull of the KL beside the advantages", "pull / ((pull + mass) or 1.0)", "pull / (mass or 1.0)"),
]

BETA = [
    ("the pull of the KL with the beta of the start", 'beta = work.coefficients.get("beta", config.beta)',
     "beta = config.beta"),
]

DIFFICULTY_GROUPS = [
    ("grpo/report/measures.py", ("test_update.py",), PULL),
    ("grpo/update.py", ("test_update.py",), BETA),
    ("grpo/schedule.py", ("test_dynamic_sampling.py",), REFILLS),
    ("grpo/run/pass_rates.py", ("test_dynamic_sampling.py",), PASS_RATES),
    ("grpo/run/groups.py", ("test_dynamic_sampling.py",), GROUPS),
    ("grpo/step.py", ("test_dynamic_sampling.py",), DRAW),
    ("rewards/workers/pool.py", ("test_dynamic_sampling.py",), JOIN),
    ("grpo/packing.py", ("test_dynamic_sampling.py",), TAKE),
]
