"""Mistakes in which reward says what is right, and in what each reward adds to an advantage; see planted.py."""

TERMS = [
    ("never normalised", 'if aggregation == "normalize_then_sum":', "if False:"),
    ("always normalised", 'if aggregation == "normalize_then_sum":', "if True:"),
    ("each reward by the batch's std", "group_advantages(value_FBG.flatten(0, 1), eps=eps)",
     'group_advantages(value_FBG.flatten(0, 1), scale="batch", eps=eps)'),
    ("each reward only centred", "group_advantages(value_FBG.flatten(0, 1), eps=eps)",
     'group_advantages(value_FBG.flatten(0, 1), scale="none", eps=eps)'),
    ("another eps for each reward", "value_FBG.flatten(0, 1), eps=eps", "value_FBG.flatten(0, 1)"),
    ("weights before the normalisation", "value_FBG = torch.where(scored_BG, reward_FBG.float(), math.nan)",
     "value_FBG = torch.where(scored_BG, weight_F[:, None, None] * reward_FBG.float(), math.nan)"),
    ("no weights", "weight_F.float()[:, None, None] * value_FBG.nan_to_num()", "value_FBG.nan_to_num()"),
    ("what is left out stays in a reward's mean", "torch.where(scored_BG, reward_FBG.float(), math.nan)",
     "reward_FBG.float()"),
    ("None is 0 before the normalisation", "torch.where(scored_BG, reward_FBG.float(), math.nan)",
     "torch.where(scored_BG, reward_FBG.float().nan_to_num(), math.nan)"),
    ("None spoils a sum", "* value_FBG.nan_to_num(), math.nan)", "* value_FBG, math.nan)"),
    ("what is left out is 0", "* value_FBG.nan_to_num(), math.nan)", "* value_FBG.nan_to_num(), 0.0)"),
    ("any aggregation is known", "if aggregation not in AGGREGATIONS:", "if False:"),
]

COMPARE = [
    ("the batch's std with the unscored", "global_std(compared_BG[scored_BG])",
     "global_std(compared_BG.nan_to_num().flatten())"),
    ("this rank's std for that of all", "batch_std = global_std(compared_BG[scored_BG]) if", "batch_std = None if"),
    ("normalised rewards are summed and not compared", "term_FBG.sum(dim=0) if gdpo else reward_BG", "reward_BG"),
    ("the sum is divided by the group's std again", 'scale = "batch" if', 'scale = "group" if'),
    ("the sum is not divided by the batch's std", 'scale = "batch" if', 'scale = "none" if'),
    ("the reward's std for that of what is compared", "global_std(compared_BG[scored_BG])",
     "global_std(reward_BG[scored_BG])"),
    ("correctness is the outcome whatever is named", "is_right(reward_BG, parts, config.outcome_reward)",
     "is_right(reward_BG, parts, None)"),
    ("no gate", "gate=config.advantage_gate)", 'gate="none")'),
    ("groups are flat by their reward alone", "compared_BG=compared_BG,", "compared_BG=reward_BG,"),
]

MEASURES = [
    ("a partial reward is right", "RIGHT = 1.0\n", "RIGHT = 0.5\n"),
    ("anything above 0 is right", "dtype=torch.float64) >= RIGHT)", "dtype=torch.float64) > 0)"),
    ("more than full marks is wrong", "dtype=torch.float64) >= RIGHT)", "dtype=torch.float64) == RIGHT)"),
    ("full marks are wrong", "dtype=torch.float64) >= RIGHT)", "dtype=torch.float64) > RIGHT)"),
    ("None is right", "dtype=torch.float64) >= RIGHT)", "dtype=torch.float64).nan_to_num(RIGHT) >= RIGHT)"),
    ("the outcome that is named is not asked", 'outcome = outcome_reward or "correctness"', 'outcome = "correctness"'),
    ("every group is phantom", "torch.where(right_BG.any(dim=1), 0.0, mass_B)", "mass_B"),
    ("a group with anything wrong is phantom", "torch.where(right_BG.any(dim=1), 0.0, mass_B)",
     "torch.where(right_BG.all(dim=1), 0.0, mass_B)"),
    ("each function has all of the phantom mass", "float((phantom_B * pull_B).sum())", "float(phantom_B.sum())"),
    ("a function's share of all groups", "float((phantom_B * pull_B).sum())", "float((mass_B * pull_B).sum())"),
    ("pulls of rewards that are not centred", "(term_FBG - term_FBG.nanmean(dim=2, keepdim=True)).abs()",
     "term_FBG.abs()"),
    ("pulls centred over the prompts", "term_FBG.nanmean(dim=2, keep", "term_FBG.nanmean(dim=1, keep"),
    ("what has no reward spoils a pull", ".abs().nansum(dim=2)", ".abs().sum(dim=2)"),
    ("nothing divided by nothing", "torch.where(pull_FB.any(dim=0), pull_FB.sum(dim=0), 1.0)", "pull_FB.sum(dim=0)"),
    ("pulls over all groups", "pull_FB.sum(dim=0), 1.0)", "pull_FB.sum(), 1.0)"),
]

METRICS = [
    ("a function's share has no row", 'f"{head}/<name>" if function else name', "name"),
    ("any slash is a function", 'f"{head}/<name>" if function else name',
     '"phantom_advantage_share/<name>" if function else name'),
]

WATCH = [
    ("functions are not watched", "or heads[name] != name and logged.startswith(heads[name])]", "]"),
    ("one name is like another", "or heads[name] != name and logged.startswith(heads[name])]",
     "or logged.startswith(heads[name])]"),
    ("no cure for a function", "metric(name).cure", "METRICS[name].cure"),
]

COMBINATIONS = [
    ("any outcome is there", "if outcome is not None and outcome not in names:", "if False:"),
    ("a gate without an outcome", 'if config.advantage_gate == "outcome" and outcome is None and', "if False and"),
    ("an outcome by its file", "nearest(outcome.rpartition(\":\")[2], names)", "nearest(outcome, names)"),
]

DERIVED = [
    ("a scale without effect is not told", '"normalize_then_sum", ["scale_rewards"]),', '"normalize_then_sum", []),'),
]

FOREIGN = [
    ("TRL's aggregation is unknown", "reward_weights multi_objective_aggregation scale_rewards",
     "reward_weights scale_rewards"),
]

ARGUMENTS = [
    ("a function's share may be logged", '("rewards/", "phantom_advantage_share/")', '("rewards/",)'),
]

DOCTOR = [
    ("an outcome that is never right is fine", 'warn="" if right else', 'warn="" if True else'),
    ("an outcome is judged where none is named", "if known and run.config.outcome_reward in gold.parts:",
     "if known and (run.config.outcome_reward or 'own') in gold.parts:"),
]

SHAPING_GROUPS = [
    ("grpo/advantage.py", ("test_advantage.py",), TERMS),
    ("grpo/step.py", ("test_compare.py",), COMPARE),
    ("grpo/report/measures.py", ("test_metrics.py",), MEASURES),
    ("grpo/report/metrics.py", ("test_metrics.py",), METRICS),
    ("grpo/report/watch.py", ("test_watch.py",), WATCH),
    ("grpo/options/combinations.py", ("test_config.py",), COMBINATIONS),
    ("grpo/options/derived.py", ("test_config.py",), DERIVED),
    ("grpo/options/foreign.py", ("test_foreign.py",), FOREIGN),
    ("rewards/arguments.py", ("test_trl_calls.py",), ARGUMENTS),
    ("grpo/doctor/problems.py", ("test_doctor_rewards.py",), DOCTOR),
]
