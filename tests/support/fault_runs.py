"""The small run that accidents are planted into, and what it writes, read back."""

import json
from pathlib import Path

from tests.support.tiny_models import tiny_qwen2, tiny_tokenizer

REWARD = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]

def vocal(completions, **columns):
    return [float(share > 0.15) for share in vowels(completions)]
"""
TIMES = {"step_s", "rollout_s", "reward_s", "advantage_s", "sync_s", "reference_s", "update_s", "warmup_s",
         "tokens_per_s", "rollout_tokens_per_s", "prefill_share", "peak_memory_bytes"}


def prepare(folder: Path, num_problems: int = 7) -> None:
    """A model, problems and a reward file."""
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question: Tom has {i} apples.\nSolution:", "final_answer": str(i)}
            for i in range(num_problems)]
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "my_rewards.py").write_text(REWARD)


def options(folder: Path, output: str, **changed: object) -> list[str]:
    """The command line of a run of four steps with two prompts of two completions each, saved after every step."""
    chosen = {
        "model_name_or_path": folder / "model", "train_dataset_id_or_path": folder / "data.json",
        "reward_funcs": f"{folder / 'my_rewards.py'}:vowels", "output_dir": folder / output, "torch_dtype": "float32",
        "load_in_4bit": False, "lora_r": 4, "lora_target_modules": "q_proj down_proj", "prompts_per_step": 2,
        "num_generations": 2, "max_completion_length": 8,
        "micro_batch_tokens": 64, "gradient_checkpointing": False,
        "zero_stage": 2,  # 3 gathers each weight for each module, which takes as long as all the rest
        "max_steps": 4, "eval_examples": 0, "save_steps": 1,
        "learning_rate": 1e-3, "beta": 0.1, **changed,
    }
    return [word for name, value in chosen.items() for word in (f"--{name}", *str(value).split())]


def lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(output: Path) -> list[tuple]:
    """What the run sampled."""
    return [(row["step"], row["completion"]) for row in lines(output / "completions.jsonl")]


def numbers(output: Path) -> list[dict]:
    """What the run measured, but for times and memory."""
    rows = lines(output / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
