"""The recipe of Reasoning Gym in a run: its gold answers earn most, and a step's completions get its scores. 8 seconds.

Skipped where the package is not installed.
"""

from pathlib import Path

import pytest
from ranks import ROOT

from grpo.doctor.problems import rewards, sample
from grpo.report.measures import Clock
from grpo.step import collect

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")


def test_the_recipe_of_reasoning_gym_is_scored_by_the_task(begin, tmp_path: Path) -> None:
    smaller = ["--prompts_per_step", "4", "--num_generations", "4", "--max_completion_length", "24"]
    recipe = ["--config", str(ROOT / "recipes" / "reasoning-gym.yaml"), "--output_dir", str(tmp_path / "out")]
    run = begin(*recipe, *smaller, "--eval_examples", "4")
    found = {finding.check: finding for finding in rewards(run, sample(run), own=True)}
    assert found["reward reasoning_gym"].words.startswith("1 for gold answers, 0 for no text and nonsense")
    assert {finding.level for finding in found.values()} == {"ok"}
    collected = collect(run, 0, Clock(0))
    assert 0.0 <= collected.metrics["rewards/reasoning_gym"] <= 1.0
    assert {example.question for example in run.test_examples}.isdisjoint(
        example.question for example in run.train_examples)
