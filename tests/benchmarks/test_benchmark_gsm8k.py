"""What the page of the published experiment says of a run and its evaluations, worked out by hand. A second."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_models import tiny_qwen2
from transformers import AutoTokenizer

from benchmarks.gsm8k import experiment
from benchmarks.gsm8k.cost import operations, phases, prompt_tokens
from benchmarks.gsm8k.page import draw, markdown
from grpo.evaluation.answers import Answer, save_answers
from grpo.options.evaluation import parse
from grpo.run.command import load
from grpo.run.examples import load_problems

MODEL = str(Path(__file__).parents[2] / "data" / "tiny_qwen2")


@pytest.fixture
def plan(tmp_path: Path) -> experiment.Plan:
    """Of a work folder with a run of 20 steps, two prompts of two completions each, and answers at 0 and 2 shots."""
    argv = ["--model", MODEL, "--data", "wordproblems", "--work", str(tmp_path), "--shots", "0", "2", "--problems", "4",
            "--max_steps", "20", "--beta", "0.0"]
    plan, name = experiment.read_command_line(argv)
    assert name == "gsm8k"
    plan.run.mkdir()
    config = load(plan.train_options)
    config.save(plan.run / "config.yaml")
    problems, _ = load_problems(config)
    steps, completions = [], []
    for step in range(20):
        for prompt in range(2):
            right = [step >= 10, prompt == 0]  # two completions of each prompt
            question = problems[2 * step + prompt].title
            completions += [{"step": step, "question": question, "completion": "", "reward": 0.5 + one,
                             "rewards": {"format": 0.5, "correctness": float(one)}, "length": 4, "truncated": False}
                            for one in right]
        steps.append({"step": step, "step_s": 3.0, "reward": 1.0, "accuracy": 0.5, "num_tokens": 100 + step % 2,
                      "rollout_s": 1.0, "reference_s": 0.0, "update_s": 2.0 + step % 2})
    for file, rows in (("metrics.jsonl", steps), ("completions.jsonl", completions)):
        (plan.run / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for shots in (0, 2):
        for label, right in (("base", [True, False, False, False]), ("trained", [True, True, shots == 2, shots == 2])):
            folder = plan.work / f"{label}-{shots}-shots"
            answers = [Answer(index=index, question="", final_answer="1", completion="", strict=one, lenient=one,
                              format=True, truncated=False) for index, one in enumerate(right)]
            save_answers(answers, folder / f"answers_{experiment.LABELS[label]}_{shots}_shots.jsonl")
            (folder / "eval.json").write_text("{}")
    return plan


def test_the_ends_of_a_training_are_means_of_prompts(plan: experiment.Plan) -> None:
    found = experiment.training(plan.run)
    assert found["steps"] == 20 and found["completions"] == 80 and found["seconds"] == 60
    # First ten steps: prompts of accuracy 1/2 and 0, ten of each; last ten: 1 and 1/2.
    assert found["first"]["accuracy"]["mean"] == 0.25 and found["last"]["accuracy"]["mean"] == 0.75
    assert found["first"]["reward"]["mean"] == 0.75 and found["last"]["reward"]["mean"] == 1.25
    # Variance 20 / 19 * 1/16 of 20 values: half width 1.96 * sqrt(1 / (16 * 19)).
    assert found["last"]["accuracy"]["half"] == pytest.approx(1.959964 / 304**0.5)


def test_base_and_trained_are_compared_on_the_same_problems(plan: experiment.Plan) -> None:
    found = experiment.evaluations(plan)
    assert [(one["label"], one["shots"], one["strict"]) for one in found] == [
        ("base", 0, 0.25), ("trained", 0, 0.5), ("base", 2, 0.25), ("trained", 2, 1.0)]
    assert [one.get("p_value") for one in found] == [None, 1.0, None, 0.25]  # 1 and 3 signs that could be either


def test_the_evaluation_is_asked_as_the_training_was(plan: experiment.Plan) -> None:
    for label in experiment.LABELS:
        (plan.run / "adapter").mkdir(exist_ok=True)
        (plan.run / "adapter" / "adapter_config.json").touch()
        (plan.work / f"{label}-2-shots" / "eval.json").unlink()
    base, trained = (parse(experiment.asked(plan, label, 2)) for label in experiment.LABELS)
    longer = parse(experiment.asked(dataclasses.replace(plan, answer_length=99), "base", 2))
    assert longer.max_completion_length == 99
    assert base.adapter is None and trained.adapter == str(plan.run / "adapter")
    assert (base.load_in_4bit, base.num_shots, base.limit, base.seed, base.max_completion_length) == (
        True, [2], 4, 42, experiment.recipe_of(plan)["max_completion_length"])


def test_the_floor_of_a_step_is_its_operations_over_a_product_s_speed() -> None:
    # One layer of 64 hidden, 96 inner, 4 and 2 heads of 16: 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 = 30,720 weights.
    config = tiny_qwen2(num_hidden_layers=1, intermediate_size=96).config
    recipe = {"use_peft": True, "lora_modules_to_save": [], "beta": 0.0, "gradient_checkpointing": "auto",
              "num_iterations": 1}
    layers, head = 2 * 30_720, 2 * 320 * 64
    found = operations(config, recipe)
    assert found == {"sampling": (layers + head, layers), "reference": (0, 0),
                     "update": (2 * layers + 2 * head, 2 * layers)}
    whole_head = recipe | {"lora_modules_to_save": ["lm_head"], "beta": 0.1, "gradient_checkpointing": "true"}
    assert operations(config, whole_head) == {"sampling": (layers + head, layers), "reference": (layers + head, layers),
                                              "update": (3 * layers + 3 * head, 3 * layers)}
    assert operations(config, recipe | {"use_peft": False})["update"] == (3 * layers + 3 * head, 3 * layers)
    assert operations(config, recipe | {"num_iterations": 2})["update"] == (4 * layers + 4 * head, 4 * layers)
    metrics = [{"num_tokens": number, "rollout_s": 1.0, "reference_s": 0.0, "update_s": number} for number in (1, 3)]
    # Two tokens of completions and five of prompts a step.
    assert phases(metrics, found, prompt_tokens=5, flops=2.0) == [
        {"phase": "sampling", "seconds": 1.0, "floor": layers + head + 2.5 * layers},
        {"phase": "reference", "seconds": 0.0, "floor": 0.0},
        {"phase": "update", "seconds": 2.0, "floor": 2 * (layers + head) + 5 * layers}]


def test_the_prompts_of_a_step_are_counted_with_what_they_share_once(plan: experiment.Plan) -> None:
    config = load(plan.train_options)
    first, second, third = load_problems(config)[0][:3]
    steps = [[first, second], [third]]
    rows = [{"step": step, "question": one.title} for step, asked in enumerate(steps) for one in asked * 2]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = [tokenizer.encode(one.prompt) for one in (first, second, third)]
    shared = next(place for place, (a, b) in enumerate(zip(ids[0], ids[1])) if a != b)
    assert shared > 0
    assert prompt_tokens(config, rows) == (len(ids[0]) + len(ids[1]) - shared + len(ids[2])) / 2


def test_what_is_done_is_not_done_again_and_the_page_has_it(plan: experiment.Plan) -> None:
    (plan.run / "summary.json").write_text("{}")
    results = plan.work / "results"
    experiment.main(["--model", MODEL, "--data", "wordproblems", "--work", str(plan.work), "--shots", "0", "2",
                     "--name", "mine"], results)
    page = (results / "mine.md").read_text()
    assert "| 2 | trained | 100.0 (51.0 to 100.0) |" in page and "| 0.25 |" in page
    assert "20 steps, 80 completions, 1 minutes" in page and "0.75 ± 0.11 | 1.25 ± 0.11" in page
    assert (results / "mine.png").stat().st_size > 10_000
    result = json.loads((results / "mine.json").read_text())
    assert result["product_flops"] > 1e9 and "| update | 2.5 |" in page and "| reference | 0 | 0 |  |" in page
    assert markdown(result, "mine") == page
    draw(result, results / "again.png")
    assert (results / "again.png").read_bytes() == (results / "mine.png").read_bytes()


def test_a_time_that_is_over_leaves_the_rest_for_the_next_sitting(plan: experiment.Plan, capsys) -> None:
    (plan.run / "summary.json").write_text("{}")
    (plan.work / "base-0-shots" / "eval.json").unlink()
    experiment.main(["--model", MODEL, "--work", str(plan.work), "--shots", "0", "--minutes", "0"], plan.work)
    assert f"the time is over: the same command goes on with {plan.work}" in capsys.readouterr().out
    assert not (plan.work / "gsm8k.json").exists()
