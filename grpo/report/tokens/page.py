"""Some groups of one step, token by token, as one self-contained HTML page, made only from the files of a run."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from grpo.report.json_lines import read_step, steps_of
from grpo.report.markup import escaped, folded, page, paragraph, shortened, table
from grpo.report.tokens.style import COLORS, LEVELS, STYLE, legend
from grpo.report.tokens.token import Token, tokens_of
from grpo.report.tokens.worked import EXAMPLE, worked

HEADER = ("place", "token", "sampler", "old", "new", "ratio", "clip", "KL", "entropy", "in the loss", "policy",
          "KL pull", "share")
MEANINGS = (
    ("sampler", "probability of the token under the distribution that it was drawn from"),
    ("old", "its probability for the policy in the first update of the step"),
    ("new", "its probability for the policy in the last of the step's num_iterations updates, before that update moved "
            "the weights; with one update old and new are the same"),
    ("ratio", "new / old"),
    ("clip", "above or below: the ratio left its bounds in the direction of the advantage, so the policy loss has no "
             "gradient here; weight 0: rollout_correction left the token out"),
    ("KL", "to the reference at this token, in nats, as kl_estimator measures it, in the first update"),
    ("entropy", "of the policy's choice of this token, in nats, in the first update; 0: it had no choice"),
    ("in the loss", "no: the completion is masked, and nothing was computed for it"),
    ("policy, KL pull", "-d loss / d log-probability in the last update: of the clipped policy loss and of beta times "
                        "the KL, divided as loss_type says. Positive: the update raises the token"),
    ("share", "policy + KL pull, over the sum of its sizes for all tokens of the step"))


def kept_steps(output_dir: Path) -> list[int]:
    """The steps whose tokens the run has kept, in order."""
    path = output_dir / "tokens.jsonl"
    return steps_of(path) if path.is_file() else []


def write_page(output_dir: Path, step: int) -> Path:
    """Write `tokens-STEP.html` into the output folder of a run that kept tokens of this step, and return its path."""
    config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    rows = read_step(output_dir / "tokens.jsonl", step)
    metrics = output_dir / "metrics.jsonl"
    measured = (read_step(metrics, step) if metrics.is_file() else []) or [{}]
    bounds = {"epsilon": config["epsilon"], "epsilon_high": config["epsilon_high"]}
    tokens = [tokens_of(row, **bounds) for row in rows]
    shade = shades([token for each in tokens for token in each], config["epsilon"], config["epsilon_high"])
    groups = [list(group) for _, group in groupby(zip(rows, tokens), key=lambda pair: pair[0]["group"])]
    body = [
        paragraph(f"{len(groups)} of the {rows[0]['groups']} groups of step {step}, token by token.", "headline"),
        paragraph("The first groups whose rewards differ, and the first others where those are too few. The numbers "
                  "are those that the update used."),
        *legend(), "<main>", *(part for each in groups for part in _group(each, config, measured[0], shade)), "</main>",
        "<h2>What the numbers are</h2>", paragraph(_settings(config)), table(("column", "meaning"), MEANINGS),
        paragraph(f"The example of README, by hand: {worked(EXAMPLE).text}")]
    path = output_dir / f"tokens-{step}.html"
    partial = path.with_suffix(".tmp")  # a process that ends here leaves no half page
    title = f"Tokens of step {step} of GRPO run {output_dir.resolve().name}"
    partial.write_text(page(title, body, STYLE), encoding="utf-8")
    return partial.replace(path)


def _settings(config: dict[str, Any]) -> str:
    names = ("loss_type", "scale_rewards", "beta", "kl_estimator", "epsilon", "epsilon_high", "num_iterations",
             "temperature", "rollout_correction")
    exact = "" if not config["beta"] or config["kl_estimator"] != "exact" else (
        " The exact KL pulls on all tokens of the vocabulary at once: that pull is not in the numbers of one token.")
    return ", ".join(f"{name} {config[name]}" for name in names) + "." + exact


def _group(pairs: Sequence[tuple[dict[str, Any], list[Token]]], config: dict[str, Any], measured: dict[str, Any],
           shade: Callable[[Token], str]) -> list[str]:
    """One group: its rewards worked through, and each completion."""
    first = pairs[0][0]
    names = list(first["rewards"])
    rows = [(str(row["completion"] + 1), *(_short(row["rewards"].get(name)) for name in names), _short(row["reward"]),
             _signed(row["advantage"], 4), f"{len(tokens)}{', truncated' if row['truncated'] else ''}",
             _percent(sum(abs(token.share or 0.0) for token in tokens))) for row, tokens in pairs]
    parts = [f"<h2>Group {first['group'] + 1}</h2>", f"<pre>{escaped(shortened(first['question']))}</pre>",
             paragraph(by_hand([row for row, _ in pairs], config, measured), "work"),
             _numbers(("completion", *names, "reward", "advantage", "tokens", "of the step's pull"), rows)]
    for row, tokens in pairs:
        out = "" if any(token.counts for token in tokens) else ", not in the loss"
        parts += [f"<h3>Completion {row['completion'] + 1}: reward {_short(row['reward'])}, advantage "
                  f"{_signed(row['advantage'], 3)}{out}</h3>",
                  '<p class="tokens">' + "".join(_span(token, shade) for token in tokens) + "</p>",
                  folded("Its tokens as a table", _numbers(HEADER, [_cells(token) for token in tokens]))]
    return parts


def by_hand(rows: Sequence[dict[str, Any]], config: dict[str, Any], measured: dict[str, Any]) -> str:
    """How the group's rewards become its advantages, in words."""
    if config["multi_objective_aggregation"] == "normalize_then_sum":
        return ("By hand it is long: each reward function is compared with its own mean and standard deviation in the "
                "group, and their weighted sum is divided by its standard deviation over the whole step "
                "(normalize_then_sum). The table has what comes of it.")
    scale, batch_std = config["scale_rewards"], measured.get("reward_std_batch")
    if scale == "batch" and batch_std is None:
        return "The standard deviation of this step's rewards is not recorded; the table has what comes of it."
    found = worked([row["reward"] for row in rows], scale=scale, batch_std=batch_std)
    gated = any(found.advantages) and not any(row["advantage"] for row in rows)
    return f"By hand: {found.text}" + (
        " But no completion is right, so advantage_gate outcome sets all to 0." if gated else "")


def shades(tokens: Sequence[Token], epsilon: float, epsilon_high: float) -> Callable[[Token], str]:
    """The CSS classes of a token: for each of COLORS how dark it is, and u or d for up or down; see style.py."""
    counted = [token for token in tokens if token.counts]
    most_share, most_kl, most_entropy = (
        max((abs(getattr(token, name) or 0.0) for token in counted), default=0.0)
        for name in ("share", "kl", "entropy"))

    def level(value: float | None, most: float) -> str:
        """u or d and a number from 1 to LEVELS; nothing below a hundredth of `most`."""
        if not value or not most or abs(value) < most / 100:
            return ""
        return f"{'u' if value > 0 else 'd'}{min(LEVELS, 1 + int(LEVELS * abs(value) / most))}"

    def classes(token: Token) -> str:
        surprise = "" if token.new is None else sum(token.new < border for border in (0.9, 0.5, 0.1, 0.01))
        moved = (token.ratio or 1.0) - 1
        found = (level(token.share, most_share), f"u{surprise}" if surprise else "",
                 level(moved, epsilon_high if moved > 0 else epsilon), level(token.kl, most_kl),
                 level(token.entropy, most_entropy))
        marks = [f"{name[0].lower()}{one}" for name, one in zip(COLORS, found) if one]
        return " ".join(["t", *marks, *(["x"] if token.clip else []), *([] if token.counts else ["m"])])

    return classes


def _span(token: Token, shade: Callable[[Token], str]) -> str:
    """A token with its color and, on hover, its numbers."""
    hover = "\n".join(f"{name}: {value}" for name, value in zip(HEADER, _cells(token)) if value)
    return f'<span class="{shade(token)}" title="{escaped(hover)}">{escaped(_visible(token.text))}</span>'


def _numbers(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of short cells; where it is wider than the screen it scrolls."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return ('<div class="scroll" tabindex="0" role="region" aria-label="numbers">'
            f'<table class="numbers"><tr>{head}</tr>{body}</table></div>')


def _cells(token: Token) -> list[str]:
    numbers = [_short(value) for value in (token.sampler, token.old, token.new, token.ratio)]
    text = _visible(token.text).rstrip("\n").replace(" ", "␣")
    return [str(token.place), text, *numbers, token.clip, _short(token.kl), _short(token.entropy),
            "yes" if token.counts else "no", _short(token.policy), _short(token.kl_pull),
            "" if token.share is None else _percent(token.share, sign="+")]


def _visible(text: str) -> str:
    return text.replace("\n", "↵\n") or "(empty)"


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value + 0.0:.5g}"  # + 0.0: no "-0"


def _signed(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value + 0.0:+.{digits}f}"


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share + 0.0:{sign}.3g} %"
