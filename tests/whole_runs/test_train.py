"""Whole runs of train.py: the same run in different ways. 40 seconds.

Compared: one rank without ZeRO, two ranks with ZeRO-3 that keeps nothing gathered, and the same as two nodes of one
rank each; in float32 with plain LoRA on a tiny random model, and in bfloat16 on the shipped model in 4 bits. The random
model's reward is a program of the user's own, as it earns nothing on arithmetic. Runs that are killed and resumed are
in tests/saving/test_resume.py.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from faults import Warm
from ranks import SHARD_EVERYTHING
from tiny_models import tiny_qwen2, tiny_tokenizer
from transformers import Qwen2ForCausalLM

from grpo.report.metrics import METRICS

NUM_STEPS, NUM_SHARDED = 5, 2
REWARD = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a dataset with ready prompts, a reward file and a recipe that uses them."""
    folder = tmp_path_factory.mktemp("train")
    tiny_qwen2(num_hidden_layers=2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question: Tom has {i} apples.\nSolution:", "final_answer": str(i)} for i in range(30)]
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "my_rewards.py").write_text(REWARD)
    recipe = {
        "model_name_or_path": str(folder / "model"), "train_dataset_id_or_path": str(folder / "data.json"),
        "reward_funcs": [f"{folder / 'my_rewards.py'}:vowels"], "prompts_per_step": 4, "num_generations": 4,
        "max_completion_length": 20, "micro_batch_tokens": 110, "max_steps": NUM_STEPS, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",  # so that a shorter run is the start of a longer one
        "num_iterations": 2, "beta": 0.1, "keep_tokens": 2, "gradient_checkpointing": True, "eval_examples": 0,
        "save_strategy": "no",
        "load_in_4bit": False, "torch_dtype": "float32", "deepspeed": SHARD_EVERYTHING,
        "lora_target_modules": ["q_proj", "down_proj"],  # ZeRO takes its time per module
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def arguments(folder: Path, name: str, *options: str) -> tuple[str, ...]:
    return "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / name), *options


def train(warm: Warm, folder: Path, name: str, *options: str, num_ranks: int = 1, num_nodes: int = 1) -> Path:
    """Run it to the end without a launcher; its output folder, with what rank 0 wrote beside it."""
    ended = warm.run(*arguments(folder, name, *options), num_ranks=num_ranks, num_nodes=num_nodes)
    assert ended.codes == [0] * num_ranks, ended.err[0][-3000:]
    (folder / f"{name}.err").write_text(ended.err[0])
    (folder / f"{name}.out").write_text(ended.out[0])
    return folder / name


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def completions(output: Path) -> list[tuple[int, str, str]]:
    return [(row["step"], row["question"], row["completion"]) for row in lines(output / "completions.jsonl")]


def assert_same_metrics(one: Path, other: Path, tolerance: float, skip: set[int] = frozenset()) -> None:
    """Of the steps that both have."""
    pairs = list(zip(lines(one / "metrics.jsonl"), lines(other / "metrics.jsonl"), strict=False))
    assert len(pairs) > len(skip)
    for expected, found in (pair for pair in pairs if pair[0]["step"] not in skip):
        for metric in ("loss", "kl", "grad_norm"):
            assert found[metric] == pytest.approx(expected[metric], abs=tolerance), (expected["step"], metric)


@pytest.fixture(scope="module")
def alone(warm: Warm, folder: Path) -> Path:
    """Float32 LoRA on one rank without ZeRO."""
    return train(warm, folder, "alone", "--zero_stage", "0")


@pytest.fixture(scope="module")
def sharded(warm: Warm, folder: Path) -> Path:
    """The start of it on two ranks, ZeRO-3, nothing kept gathered."""
    return train(warm, folder, "sharded", "--max_steps", str(NUM_SHARDED), num_ranks=2)


def test_two_sharded_ranks_repeat_the_run_of_one(alone: Path, sharded: Path) -> None:
    assert len(lines(sharded / "metrics.jsonl")) == NUM_SHARDED
    assert completions(sharded) == completions(alone)[: NUM_SHARDED * 16]
    assert_same_metrics(alone, sharded, 1e-4)


def test_the_run_does_something(alone: Path) -> None:
    records = lines(alone / "metrics.jsonl")
    assert len(records) == NUM_STEPS and len(completions(alone)) == NUM_STEPS * 16
    assert records[0]["kl"] == 0.0 and records[-1]["kl"] > 1e-5
    assert all(record["grad_norm"] > 1e-3 and record["zero_variance_share"] < 1 for record in records)
    assert records[0]["ratio_max"] > 1.0, "the second iteration has left the old policy"
    assert all(record["sampler_gap_max"] < 1e-4 for record in records)
    assert all(record["micro_batches"] > 2 for record in records)
    for key in ("step", "reward", "kl", "loss", "grad_norm", "step_s", "rollout_s", "update_s", "peak_memory_bytes"):
        assert all(isinstance(record[key], int | float) for record in records), key


def test_the_metrics_of_a_step_are_the_rows_of_the_table(alone: Path) -> None:
    only_asked_for = {"correction_weight_mean", "correction_capped_share", "beta", "entropy_coef", "<name>",
                      "accuracy_of_first", "groups_drawn", "filtered_share"}
    for record in lines(alone / "metrics.jsonl"):
        rows = {name.replace("/vowels", "/<name>") for name in record}
        assert rows == METRICS.keys() - only_asked_for


def test_the_start_block_works_the_example_of_readme_through(alone: Path) -> None:
    said = "group      rewards (1, 0, 0, 0) become the advantages (1.500, -0.500, -0.500, -0.500)\n"
    assert alone.with_suffix(".out").read_text().count(said) == 1


def test_the_tokens_of_two_ranks_are_those_of_one(alone: Path, sharded: Path) -> None:
    kept, pairs = lines(alone / "tokens.jsonl"), list(zip(*(lines(one / "tokens.jsonl") for one in (alone, sharded))))
    assert len(kept) == NUM_STEPS * 2 * 4 and len(pairs) == NUM_SHARDED * 2 * 4
    for one, other in pairs:
        assert [one[name] for name in ("step", "group", "completion", "id", "mask")] == [
            other[name] for name in ("step", "group", "completion", "id", "mask")]
        assert one["total_pull"] == pytest.approx(other["total_pull"], abs=1e-4) and len(one["logprob"]) == 2
        for name in ("kl", "entropy", "sampler_logprob"):
            assert one[name] == pytest.approx(other[name], abs=1e-4)
        for name in ("logprob", "policy_pull", "kl_pull"):
            assert sum(one[name], []) == pytest.approx(sum(other[name], []), abs=1e-4)
    assert 'href="tokens-0.html"' in (alone / "report.html").read_text()


@torch.no_grad()
def test_the_tokens_of_step_0_have_the_numbers_of_transformers(folder: Path, alone: Path) -> None:
    model, tokenizer = Qwen2ForCausalLM.from_pretrained(folder / "model").eval(), tiny_tokenizer()
    for row in lines(alone / "tokens.jsonl")[:8]:
        prompt = tokenizer(row["question"])["input_ids"]
        logits_LV = model(torch.tensor([prompt + row["id"]])).logits[0, len(prompt) - 1:-1]
        logprob_TV = logits_LV.float().log_softmax(dim=-1)
        logprob_T = logprob_TV.gather(1, torch.tensor(row["id"])[:, None])[:, 0]
        assert row["logprob"][0] == pytest.approx(logprob_T.tolist(), abs=1e-4)
        assert row["entropy"] == pytest.approx((-logprob_TV.exp() * logprob_TV).sum(dim=-1).tolist(), abs=1e-4)
        assert row["sampler_logprob"] == pytest.approx(logprob_T.tolist(), abs=1e-4) and set(row["kl"]) == {0.0}


def test_five_steps_outside_a_healthy_range_are_a_warning_beside_the_bar(alone: Path) -> None:
    assert all(record["truncated_share"] > 0.2 for record in lines(alone / "metrics.jsonl"))
    assert "\nwarning [step 4] truncated_share is " in alone.with_suffix(".err").read_text()


def test_correcting_for_a_sampler_that_agrees_changes_nothing(warm: Warm, folder: Path, sharded: Path) -> None:
    """In the first step, that is: weights within 1e-5 of 1 move a gradient by 1e-7, and later a token at a border."""
    options = ("--rollout_correction", "truncated", "--max_steps", "2")
    corrected = train(warm, folder, "corrected", *options, num_ranks=2)
    assert completions(corrected)[:16] == completions(sharded)[:16]
    assert_same_metrics(sharded, corrected, 1e-4, skip={1})
    for record, plain in zip(lines(corrected / "metrics.jsonl"), lines(sharded / "metrics.jsonl")[:2], strict=True):
        assert record["correction_weight_mean"] == pytest.approx(1.0, abs=1e-4)
        assert record["correction_capped_share"] == 0.0
        assert record.keys() - plain.keys() == {"correction_weight_mean", "correction_capped_share"}


def test_a_run_writes_the_files_of_the_fixed_interface(alone: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "completions.jsonl", "report.html", "summary.json",
                 "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (alone / name).stat().st_size > 0, name


def test_two_nodes_of_one_rank_repeat_the_run_of_two_ranks(warm: Warm, folder: Path, sharded: Path) -> None:
    """Its first two steps."""
    nodes = train(warm, folder, "nodes", "--max_steps", "2", num_ranks=2, num_nodes=2)
    assert completions(nodes) == completions(sharded)[: 2 * 16]
    assert_same_metrics(sharded, nodes, 1e-6)


def test_two_sharded_ranks_repeat_the_run_of_one_in_4_bit_bfloat16(warm: Warm, folder: Path) -> None:
    # The shipped model, because the text of a random one, 4.5 nats a token, changes with the last bit of a bfloat16.
    options = ("--load_in_4bit", "true", "--torch_dtype", "bfloat16", "--model_name_or_path", "data/tiny_qwen2",
               "--train_dataset_id_or_path", "wordproblems", "--reward_funcs", "format", "correctness",
               "--max_completion_length", "48", "--micro_batch_tokens", "256", "--learning_rate", "1e-4",
               "--seed", "1", "--max_steps", "2", "--prompts_per_step", "2")
    alone = train(warm, folder, "alone4", "--zero_stage", "0", *options)
    sharded = train(warm, folder, "sharded4", *options, num_ranks=2)
    rows = list(zip(completions(alone), completions(sharded), strict=True))
    # In bfloat16 a token on the border of two can fall either way: a step with other text is not compared. On the
    # machine this was written on every text is the same, and the metrics agree to 2e-4.
    other_steps = {one[0] for one, other in rows if one != other}
    assert 0 not in other_steps and sum(one != other for one, other in rows) <= 3
    assert_same_metrics(alone, sharded, 1e-2, skip=other_steps)


def test_the_outcome_gate_leaves_a_step_in_which_nothing_is_right_without_advantages(
    warm: Warm, folder: Path, alone: Path
) -> None:
    def advantages(output: Path) -> set[float]:
        return {row["advantage"] for row in lines(output / "completions.jsonl") if row["step"] == 0}

    # No completion is all vowels, which would be 1, so none is right.
    options = ("--max_steps", "1", "--outcome_reward", "vowels", "--advantage_gate", "outcome")
    gated = train(warm, folder, "gated", *options, num_ranks=2)
    assert len(advantages(alone)) > 4 and advantages(gated) == {0.0}
    (record,) = lines(gated / "metrics.jsonl")
    assert record["reward_std_within_group"] > 0 and record["phantom_advantage_share"] == record["surrogate"] == 0.0
