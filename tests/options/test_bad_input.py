"""A user's mistakes that need the data or the model to be seen: one line, exit code 2, nothing written. 15 seconds.

Mistakes in options alone are in test_config.py, those in datasets in test_data.py.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from faults import Warm
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_llama, tiny_qwen2, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import train
from grpo.health import last_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, an adapter, data and reward files to be wrong with."""
    folder = tmp_path_factory.mktemp("bad")
    models = {
        "model": tiny_qwen2(),
        "odd": tiny_qwen2(hidden_size=96),
        "short": tiny_qwen2(max_position_embeddings=40),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=2)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_llama(hidden_size=128), lora).save_pretrained(folder / "adapter")
    (folder / "empty").mkdir()
    (folder / "data.json").write_text(json.dumps([{"prompt": f"Question {i}?", "final_answer": "1"} for i in range(8)]))
    (folder / "bare.json").write_text(json.dumps([{"prompt": f"Question {i}?"} for i in range(8)]))
    (folder / "mine.py").write_text("def short(completions, **columns):\n    return [0.0]\n")
    return folder


def options(folder: Path, **changed: str) -> list[str]:
    chosen = {
        "model_name_or_path": "model", "train_dataset_id_or_path": "data.json", "output_dir": "out", **changed,
    }
    paths = {name: str(folder / value) for name, value in chosen.items() if name.endswith(("path", "dir"))}
    small = {"eval_examples": "0", "max_completion_length": "8", "prompts_per_step": "2", "num_generations": "2",
             "max_steps": "1"}
    return [word for name, value in {**small, **chosen, **paths}.items() for word in (f"--{name}", *value.split())]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"model_name_or_path": "empty"}, ["model_name_or_path", "empty", "config.json"]),
        ({"model_name_or_path": "odd"}, ["load_in_4bit=True", "hidden_size=96", "multiple of 64", "nearest"]),
        ({"model_name_or_path": "gpt2", "load_in_4bit": "false", "use_peft": "false"}, ["gpt2", "qwen2, qwen3, llama"]),
        ({"adapter_name_or_path": "adapter"}, ["adapter_name_or_path", "not for this model"]),
        ({"train_dataset_id_or_path": "bare.json"}, ["correctness", "final_answer"]),
        ({"rollout_slots": "1000000000"}, ["rollout_slots=1000000000", "half of the", "nearest valid value: "]),
        ({"model_name_or_path": "short", "max_completion_length": "36"}, ["max_completion_length=36", "40", "nearest"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture, changed: dict[str, str], expected: list[str]
) -> None:
    assert train.main(options(folder, **changed)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for part in expected:
        assert part in line, line
    assert not (folder / "out").exists()


def test_a_refusal_that_all_ranks_come_to_is_said_once(warm: Warm) -> None:
    """By rank 0; its end is what makes torchrun send SIGTERM to the others, which have waited for that."""
    pids = warm.begin("--beta", "-1", plant="patient()")
    warm.wait_for("error: ")
    os.kill(pids[1], signal.SIGTERM)
    ended = warm.end()
    (message,) = ended.messages()
    assert message.startswith("error: beta=-1") and ended.codes == [2, -signal.SIGTERM]


def test_a_refusal_of_another_rank_alone_is_said_by_it(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(last_words, "ALIKE_S", 0.0)
    assert train.main(["--config", "not/on/this/node.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: [rank 3] config='not/on/this/node.yaml'")


def test_a_reward_of_the_wrong_length_ends_both_ranks_with_one_line(warm: Warm, folder: Path) -> None:
    ended = warm.run(*options(folder), "--reward_funcs", f"{folder / 'mine.py'}:short")
    assert 0 not in ended.codes
    (line,) = ended.messages()
    assert line == ("error: [rank 0 step 0] reward function 'short' failed on 100.0% of the completions (returned 1 "
                    "values; must return a list of 2 numbers), more than max_reward_failures=0.5")
    written = "".join(ended.err)
    warnings = sorted(line for line in written.splitlines() if "warning: reward" in line)
    assert [line.partition("]")[0] for line in warnings] == ["[rank 0 step 0", "[rank 1 step 0"]
    assert "Traceback" not in written
