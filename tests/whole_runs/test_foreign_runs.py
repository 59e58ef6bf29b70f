"""Recipes of other trainers, as their users have them, train a tiny model on conversations. 10 seconds.

Only what no test can have is given beside the file: the model, the data, the reward, and completions that are short.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_recipes import RECIPES
from tiny_models import CHAT_TEMPLATE, tiny_qwen2, tiny_tokenizer
from transformers import AutoTokenizer

import grpo.step
import train

SYSTEM = "Think first, then answer."  # open-r1-demo's
SPOKEN = "{% for message in messages %}{{ message.content }}{% endfor %}"  # its chat template
# As written for open-r1 and TRL: `solution` is a column of theirs.
REWARD = """
def vowels(completions, solution, **kwargs):
    assert all(one.startswith("It is ") for one in solution), solution
    return [sum(letter in "aeiou" for letter in one[0]["content"]) / 9 for one in completions]


def spaces(prompts, completions, **kwargs):
    assert [one[-1]["role"] for one in prompts] == ["user"] * len(prompts), prompts
    return [float(" " in one[0]["content"]) for one in completions]
"""


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is 2 + {number}?"}]


def solution(number: int) -> str:
    return f"It is {2 + number}."


ROWS: dict[str, Callable[[int], dict]] = {
    "open-r1-demo": lambda n: {"problem": asked(n)[0]["content"], "solution": solution(n)},
    "philschmid-qlora": lambda n: {"prompt": asked(n), "solution": solution(n)},
    "trl-script": lambda n: {"prompt": asked(n), "solution": solution(n)},
}
# (messages of row n, the template) as TRL would hand them to the tokenizer
SPOKEN_TO: dict[str, tuple[Callable[[int], list], str]] = {
    "open-r1-demo": (lambda n: [{"role": "system", "content": SYSTEM}, *asked(n)], SPOKEN),
    "philschmid-qlora": (asked, CHAT_TEMPLATE),
    "trl-script": (asked, CHAT_TEMPLATE),
}
# By the recipe's own schedule, at its first step of three (a warm-up of one), its second and its third.
RATES = {"open-r1-demo": [2e-5, 2e-5, 2e-6 + 1.8e-5 / 2], "philschmid-qlora": [1e-5] * 3,
         "trl-script": [1e-5, 1e-5, 1e-5 / 2]}
SIZES = {"open-r1-demo": (4, 16), "philschmid-qlora": (2, 8), "trl-script": (8, 8)}  # prompts, completions of each


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in with one rank, with a model, its tokenizer and chat template, and a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    tiny_qwen2(num_hidden_layers=2).save_pretrained("model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained("model")
    Path("rewards.py").write_text(REWARD)
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_of_another_trainer_trains_on_conversations(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable
) -> None:
    (place / "problems.jsonl").write_text("\n".join(json.dumps(ROWS[name](number)) for number in range(40)))
    rollouts, generate = [], grpo.step.generate

    def watched(*args, **options):
        rollouts.append(generate(*args, **options))
        return rollouts[-1]

    monkeypatch.setattr(grpo.step, "generate", watched)
    run = begin("--config", str(RECIPES / f"{name}.yaml"), "--model_name_or_path", "model",
                "--train_dataset_id_or_path", "problems.jsonl", "--reward_funcs", "rewards.py:vowels",
                "rewards.py:spaces", "--max_completion_length", "12", "--max_steps", "3", "--eval_examples", "0")
    assert train.follow(run)
    said, template = SPOKEN_TO[name]
    expected = [AutoTokenizer.from_pretrained("model").apply_chat_template(
        said(number), chat_template=template, add_generation_prompt=True)["input_ids"] for number in range(40)]
    num_prompts, num_generations = SIZES[name]
    for rollout in rollouts:
        assert len(rollout.prompt_ids) == num_prompts and all(prompt in expected for prompt in rollout.prompt_ids)
        assert len(rollout.token_NT) == num_prompts * num_generations
    lines = (place / run.config.output_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["learning_rate"] for record in records] == pytest.approx(RATES[name])
    assert records[0]["kl"] == 0 < records[2]["kl"] and all(record["reward_failures"] == 0 for record in records)
