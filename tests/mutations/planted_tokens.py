"""Mistakes planted in what is kept of single tokens, in their page, and in the example worked by hand."""

RECORD = [
    ("every group is kept, whatever its rewards", "key=lambda b: not has_B[b])", "key=lambda b: 0)"),
    ("groups without an advantage first", "key=lambda b: not has_B[b])", "key=lambda b: has_B[b])"),
    ("the pull has the sign of the loss", "kl_part_UT - slope_UT", "slope_UT - kl_part_UT"),
    ("the KL's pull counts in the policy's too", "kl_part_UT - slope_UT", "-slope_UT"),
    ("the KL's pull is without beta and divisor", "kl_UT, logprob_UT, kl_slope_UT,", "kl_UT.sum(), logprob_UT,"),
    ("KL of the last iteration", "values(iterations[0][name])", "values(iterations[-1][name])"),
    ("completions of other ranks count as zeros", "part[\"mask\"].any(dim=1).nonzero()[:, 0]",
     "torch.arange(len(part[\"mask\"]))"),
    ("the total is of the last micro-batch", 'now["total"] + total if', 'total if'),
    ("the total is of one rank", 'sum(part["total"] for part in parts)', 'parts[0]["total"]'),
    ("the total is of the kept completions", "torch.where(batch.mask_UT, slope_UT, 0.0).abs().sum(",
     "torch.where(mask_NT, slope_UT[self.kept_N], 0.0).abs().sum("),
    ("what ran out of memory stays", "self.iterations[-1] = {}", "pass"),
    ("what is masked has zeros", "if counts else None", "if True else None"),
    ("tokens of another completion", "rollout.token_NT[n, :length]", "rollout.token_NT[index, :length]"),
    ("columns of the first rank alone", "for each in columns for value",
     "for each in columns[:1] * 2 for value"),
]

UPDATE = [
    ("all iterations are one", "        work.tokens.begin()\n",
     "        work.tokens.iterations or work.tokens.begin()\n"),
    ("the pull of another loss", "work.tokens.add(batch, loss, current_UT,",
     "work.tokens.add(batch, 2 * loss, current_UT,"),
]

TOKEN = [
    ("old is the last iteration", 'row["logprob"][0], row', 'row["logprob"][-1], row'),
    ("new is the first iteration", 'row["logprob"][-1]', 'row["logprob"][0]'),
    ("the ratio upside down", "new[index] - old[index])", "old[index] - new[index])"),
    ("the share without the KL", "(policy + kl_pull) / total", "policy / total"),
    ("the share of the first iteration", 'row["total_pull"][-1]', 'row["total_pull"][0]'),
    ("the clip of the other side", 'row["advantage"] > 0 and ratio > 1 + epsilon_high',
     'row["advantage"] < 0 and ratio > 1 + epsilon_high'),
    ("no lower clip", 'row["advantage"] < 0 and ratio < 1 - epsilon', "False"),
]

PAGE = [
    ("the surprise of likely tokens", "token.new < border for", "token.new > border for"),
    ("the gate is not told", "if gated else", "if False else"),
    ("the batch's std is the group's", 'scale == "batch" and batch_std is None', "True"),
    ("questions are HTML", "escaped(shortened(first['question']))", "shortened(first['question'])"),
    ("a masked completion looks like the others", "[] if token.counts else [\"m\"]", "[]"),
    ("a clipped token looks like the others", '["x"] if token.clip else []', "[]"),
]

WORKED = [
    ("population std", "for one, number in counted.items()) / (len(scored) - 1))",
     "for one, number in counted.items()) / len(scored))"),
    ("another example", "EXAMPLE = (1.0, 0.0, 0.0, 0.0)", "EXAMPLE = (1.0, 0.0, 0.0)"),
    ("another eps", "EPS = 1e-4", "EPS = 1e-3"),
    ("unscored completions count as 0", "mean = sum(scored) / len(scored)", "mean = sum(scored) / len(rewards)"),
    ("the quotient of the rounded numbers", "_fixed(one / (std + eps), 4)", "_fixed(one / std, 4)"),
]

JSON_LINES = [
    ("steps that begin with the same digit", 'START + f"{step},".encode()', 'START + f"{step}".encode()'),
    ("broken lines are read", "for line in lines if _step_of(line) is not None]\n\n\nclass",
     "for line in lines]\n\n\nclass"),
    ("NaN in a list", "return [_finite(item) for item in value]", "return value"),
]

TOKEN_GROUPS = [
    ("grpo/report/tokens/record.py", ("test_tokens.py",), RECORD),
    ("grpo/update.py", ("test_tokens.py",), UPDATE),
    ("grpo/report/tokens/token.py", ("test_tokens.py",), TOKEN),
    ("grpo/report/tokens/page.py", ("test_tokens.py",), PAGE),
    ("grpo/report/tokens/worked.py", ("test_advantage.py",), WORKED),
    ("grpo/report/json_lines.py", ("test_tokens.py",), JSON_LINES),
    ("grpo/report/page.py", ("test_tokens.py",), [
        ("only the last step's page", "{steps[0], steps[-1]}", "{steps[-1]}")]),
    ("grpo/report/log.py", ("test_tokens.py",), [
        ("tokens of a course that was left stay", 'or (output_dir / "tokens.jsonl").exists()', "")]),
]
