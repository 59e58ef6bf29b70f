"""The plan of a run, and how long its packed batches are: with given amounts of memory, and Qwen2.5's shapes. 10 s."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import train
from grpo.config import Config
from grpo.memory import plan
from grpo.memory.batch_length import Budget, choose_budget
from grpo.memory.concurrency import Lengths
from grpo.memory.ledger import Ledger
from grpo.memory.plan import ledger_of
from grpo.run.command import load

QWEN = {  # H, I, Y, query heads, key/value heads, V, tied
    "tiny": (64, 128, 3, 4, 2, 320, True),
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size", "tie_word_embeddings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config files and nothing else."""
    folder = tmp_path_factory.mktemp("plan")
    for name, shape in QWEN.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(
            {"model_type": "qwen2", "max_position_embeddings": 32768, **dict(zip(NAMES, shape))}))
    return folder


def budget(
    folder: Path, free: int, lengths: Lengths = Lengths(4, 6, 30), **options
) -> tuple[Budget, Ledger]:
    """Of a tiny run: 4 prompts on one rank, 3 completions each; a group has at most 100 tokens, a step 388."""
    given = dict(prompts_per_step=4, num_generations=3, max_completion_length=lengths.completion) | options
    ledger = ledger_of(
        Config(**given), AutoConfig.from_pretrained(folder / "tiny"), num_ranks=1, dtype=torch.float32,
        rollout_dtype=torch.float32, on_gpu=False)
    return choose_budget(ledger, lengths, free=free), ledger


def test_memory_decides_about_checkpointing_and_the_length_of_packed_batches(folder: Path) -> None:
    _, ledger = budget(folder, 2**40)
    needs = {(tokens, on): ledger.update(tokens, checkpointing=on)
             for tokens in (40, 60, 100, 388) for on in (False, True)}

    def chosen(free: int, **options):
        return budget(folder, free, **options)[0][:2]

    assert chosen(2**40) == (388, "false")  # a rank's whole step
    assert chosen(2 * needs[388, False]) == (388, "false")
    assert chosen(2 * needs[388, False] - 2) == (387, "false")
    assert chosen(2 * needs[100, False]) == (100, "false")  # a group still fits
    tokens, checkpointing = chosen(2 * needs[100, False] - 2)
    assert checkpointing == "true" and 100 <= tokens <= 388
    assert chosen(2 * needs[60, True]) == (60, "true")
    assert chosen(2 * needs[40, True]) == (40, "true")  # a prompt with one completion
    assert chosen(2 * needs[60, True], micro_batch_tokens=388) == (388, "true")  # asked for: taken
    assert chosen(2 * needs[100, False], gradient_checkpointing="true")[1] == "true"
    assert chosen(2**40, micro_batch_tokens=77) == (77, "false")
    assert chosen(2 * needs[60, False], gradient_checkpointing="false") == (60, "false")


def test_packed_batches_have_at_most_32768_tokens_and_16384_are_enough(folder: Path) -> None:
    long = Lengths(0, 100, 20_000)
    found, ledger = budget(folder, 2**50, long)
    assert found[:2] == (32_768, "false")
    # A group has 60,100 tokens; one completion 20,100, more than 16,384.
    room = 2 * ledger.update(20_100, checkpointing=False)
    assert budget(folder, room, long)[0][:2] == (20_100, "false")
    assert budget(folder, room - 2, long)[0].gradient_checkpointing == "true"
    short = Lengths(0, 100, 10_000)
    room = 2 * ledger.update(16_384, checkpointing=False)
    assert budget(folder, room, short)[0][:2] == (16_384, "false")
    assert "without it 16,384 tokens fit, 16,384 are wanted" in budget(folder, room, short)[0].words


def test_what_does_not_fit_is_refused_in_one_line(folder: Path) -> None:
    _, ledger = budget(folder, 2**40)
    needs = {on: 2 * ledger.update(40, checkpointing=on) for on in (False, True)}
    with pytest.raises(ValueError, match=r"^max_completion_length=30 with prompts of 10 tokens .* nearest valid value"):
        budget(folder, needs[True] - 2)
    with pytest.raises(ValueError, match="^gradient_checkpointing='false' .* nearest valid value: true$"):
        budget(folder, needs[False] - 2, gradient_checkpointing="false")


def planned(folder: Path, capsys, monkeypatch, model: str, *options: str) -> list[str]:
    """The lines of `train.py --plan`, in front of no GPU."""
    monkeypatch.setattr(plan, "gpu_bytes", lambda: None)
    argv = ["--model_name_or_path", str(folder / model), "--prompts_per_step", "64", "--num_generations", "16",
            "--max_completion_length", "512", "--micro_batch_tokens", "none", "--gradient_checkpointing", "auto"]
    assert train.main([*argv, *options]) == 0
    return capsys.readouterr().out.splitlines()


def amounts(lines: list[str]) -> dict[str, float]:
    """Bytes by item, as printed."""
    found = [re.fullmatch(r"  (\S.*?) +([\d,.]+) ([MG])iB  .*", line) for line in lines]
    return {one[1]: float(one[2].replace(",", "")) * 2**(20 if one[3] == "M" else 30) for one in found if one}


# Half a byte a weight of the projections and 2 of embedding and head: 358 M + 136 M, 6.5 G + 2 x 545 M, 70 G + 2.5 G.
@pytest.mark.parametrize(("model", "ranks", "options", "base", "checkpointing"), [
    ("0.5B", 1, [], 358e6 / 2 + 2 * 136e6, "off"),
    ("0.5B", 8, [], (358e6 / 2 + 2 * 136e6) / 8, "off"),
    ("7B", 8, [], (6.53e9 / 2 + 2 * 1.09e9) / 8, "on"),
    ("72B", 64, ["--rollout_weights", "nf4"], (70.2e9 / 2 + 2 * 2.49e9) / 64, "on"),
])
def test_a_plan_adds_up_and_fits(folder, capsys, monkeypatch, model, ranks, options, base, checkpointing) -> None:
    lines = planned(folder, capsys, monkeypatch, model, "--plan", str(ranks), *options)
    found = amounts(lines)
    assert found["base"] == pytest.approx(base, rel=0.01)
    total = found.pop("total")
    assert total == pytest.approx(sum(found.values()), rel=0.002)
    assert total < 80e9
    text = "\n".join(lines)
    assert f"on {ranks} GPU" in lines[0] and "74.51 GiB (assumed)" in lines[0]
    assert "1,024 tokens (assumed: max_prompt_length is not set)" in lines[1]
    assert f"gradient checkpointing {checkpointing}" in text
    assert re.search(r"update: [\d,.]+ TFLOP .* at least [\d,.]+ s", text)
    assert re.search(r"rollout: [\d,]+ decoding steps .* at least [\d,.]+ s", text)


def test_a_plan_says_the_prompt_it_was_given_and_counts_its_operations(folder, capsys, monkeypatch) -> None:
    options = ["--plan", "8", "--max_prompt_length", "512", "--beta", "0", "--gradient_checkpointing", "true"]
    lines = planned(folder, capsys, monkeypatch, "7B", *options)
    assert "512 tokens (max_prompt_length)" in lines[1]
    found = float(re.search(r"update: ([\d,.]+) TFLOP", "\n".join(lines))[1].replace(",", ""))
    # A rank has 8 prompts, 128 completions: 69,632 tokens through 6.53 G weights and 40 M of LoRA, forward, again, and
    # backward without the weights' gradients: 2 each. The head: 4 x 65,536 x 545 M. Attention: 4 Q Y for each of
    # 8 x 512^2 / 2 + 128 x 512 x 768 pairs, 4.5 times.
    linear = 2 * 69_632 * (3 * 6.526e9 + 4 * 40e6)
    head, attention = 4 * 65_536 * 545e6, 4.5 * 4 * 3584 * 28 * (8 * 512**2 / 2 + 128 * 512 * 768)
    assert found == pytest.approx((linear + head + attention) / 1e12, rel=0.01)


def test_a_copy_in_cpu_memory_counts_while_sampling_only(folder, capsys, monkeypatch) -> None:
    lines = planned(folder, capsys, monkeypatch, "7B", "--plan", "8", "--rollout_keep", "false")
    assert amounts(lines)["sampler"] == amounts(lines)["rollout slots"] == 0
    assert "14.30 GiB while sampling" in "\n".join(lines)


@pytest.mark.parametrize(("model", "options", "expected"), [
    ("72B", ["--plan", "64"], "plan=64 leaves no room: .* nearest valid value: rollout_weights=nf4"),
    ("0.5B", ["--plan", "3"], "prompts_per_step=64 must be a multiple of the 3 ranks; nearest valid value: 63"),
    ("0.5B", ["--plan", "0"], r"plan=0 must lie in \[1, inf\); nearest valid value: 1"),
    ("0.5B", ["--plan", "eight"], "plan='eight' must be a whole number.*"),
    ("0.5B", ["--plan", "1", "--gradient_checkpointing", "maybe"],
     "gradient_checkpointing='maybe' must be one of auto, true, false$"),
    ("0.5B", ["--plan", "1", "--gradient_checkpointing", "false", "--max_completion_length", "30000", "--rollout_slots",
              "1"], "gradient_checkpointing='false' and max_completion_length=30000 .* nearest valid value: true"),
])
def test_a_plan_that_is_none_is_one_line(folder, capsys, monkeypatch, model, options, expected) -> None:
    monkeypatch.setattr(plan, "gpu_bytes", lambda: None)
    argv = ["--model_name_or_path", str(folder / model), "--prompts_per_step", "64", "--micro_batch_tokens", "none"]
    assert train.main([*argv, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: {expected}", line), line


@pytest.mark.parametrize("value", ["auto", "true", "false", "True", "False"])
def test_checkpointing_is_on_off_or_left_to_memory_in_a_recipe_and_on_the_command_line(value, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(f"gradient_checkpointing: {value}")
    recipe = ["--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path / "out")]
    assert load(recipe).gradient_checkpointing == value.lower()
    (tmp_path / "a.yaml").write_text("seed: 1")
    assert load(recipe).gradient_checkpointing == "auto"
    assert load([*recipe, "--gradient_checkpointing", value]).gradient_checkpointing == value.lower()
    assert load([*recipe, "--gradient_checkpointing"]).gradient_checkpointing == "true"


def test_the_length_is_left_to_memory_unless_given(tmp_path) -> None:
    recipe = ["--config", str(_recipe(tmp_path)), "--output_dir", str(tmp_path / "out")]
    assert load(recipe).micro_batch_tokens is None
    assert load([*recipe, "--micro_batch_tokens", "4096"]).micro_batch_tokens == 4096
    (tmp_path / "a.yaml").write_text("micro_batch_tokens: none")
    assert load(recipe).micro_batch_tokens is None


def test_a_setting_of_checkpointing_that_is_off_is_named() -> None:
    argv = ["--plan", "1", "--gradient_checkpointing", "false"]
    (note,) = load([*argv, "--gradient_checkpointing_kwargs", "{use_reentrant: true}"]).notes
    assert note == "gradient_checkpointing_kwargs={'use_reentrant': True} has no effect: gradient_checkpointing is off"


def test_a_plan_counts_its_own_ranks_and_may_name_a_folder_in_use(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text("kept")
    argv = ["--plan", "4", "--output_dir", str(tmp_path), "--num_generations", "8"]
    config = load([*argv, "--config", str(_recipe(tmp_path)), "--per_device_train_batch_size", "8"])
    assert (config.plan, config.prompts_per_step) == (4, 4)


def _recipe(folder: Path) -> Path:
    (folder / "a.yaml").write_text("seed: 1")
    return folder / "a.yaml"
