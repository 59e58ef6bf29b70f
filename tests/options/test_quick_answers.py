"""What needs no model is answered without the libraries that take seconds to import. 5 seconds of small processes.

Those of a run are imported once, in this process, to read model configs in both ways.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ranks import ROOT

from grpo.loading import model_config
from grpo.memory import plan
from grpo.run.command import load

HEAVY = ("bitsandbytes", "datasets", "deepspeed", "matplotlib", "numpy", "peft", "torch", "transformers")
# Runs a script as `python script.py ...` does, and then says its exit code and which of these modules are there.
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print("ended", ended.code, *sorted(name for name in {heavy} if name in sys.modules))
""".format(heavy=HEAVY)
LLAMA, QWEN2, QWEN3 = (
    {"model_type": kind, "tie_word_embeddings": False, "hidden_size": 3584, "intermediate_size": 18944,
     "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    for kind in ("llama", "qwen2", "qwen3"))


def written(folder: Path, settings: dict) -> str:
    """A folder of a model with this config and no weights."""
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def answer(*words: str) -> tuple[str, str, str]:
    """Exit code and heavy modules of a command, its output, and its errors."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    output, _, ended = done.stdout.rpartition("ended ")
    return ended.strip(), output, done.stderr


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_answered_without_a_library_that_takes_seconds(script: str) -> None:
    ended, output, _ = answer(script, "--help")
    assert ended == "0" and "--num_shots" in output


@pytest.mark.parametrize(("words", "line"), [
    (["train.py", "--wandb", "x"], "error: unknown option --wandb; see --help"),
    (["train.py", "--optim", "lomo", "--top_p", "0.9"],
     "error: optim='lomo' is not offered: the optimizer is AdamW; nearest valid value: adamw_torch\n"
     "error: top_p=0.9 is not offered: truncated sampling biases the ratio (eval.py has top_p); "
     "nearest valid value: 1"),
    (["train.py", "--config", "nofile.yaml"],
     "error: config='nofile.yaml' must be a recipe file; nearest valid value: recipes/toy.yaml"),
    (["train.py", "--beta", "-1"], "error: beta=-1.0 must lie in [0, inf); nearest valid value: 0"),
    (["train.py", "--output_dir", "eval.py"],
     "error: output_dir='eval.py' is a file; nearest valid value: eval.py-2"),
    (["eval.py", "--optim", "x"], "error: unknown option --optim; see --help"),
    (["eval.py", "--num_shots", "9"], "error: num_shots=9 must lie in [0, 8]; nearest valid value: 8"),
])
def test_a_mistake_is_a_line_and_code_2_without_them(words: list[str], line: str) -> None:
    assert answer(*words) == ("2", "", line + "\n")


def test_a_plan_from_a_local_config_needs_none_of_them(tmp_path: Path) -> None:
    ended, output, _ = answer("train.py", "--plan", "8", "--config", "recipes/qwen2.5-7b-gsm8k.yaml",
                              "--model_name_or_path", written(tmp_path, QWEN2))
    assert ended == "0"
    assert "80,740,352 parameters in bfloat16" in output  # LoRA of rank 32 on 28 layers


def test_a_plan_that_does_not_fit_is_refused_without_them(tmp_path: Path) -> None:
    ended, _, errors = answer("train.py", "--plan", "8", "--model_name_or_path",
                              written(tmp_path, QWEN2 | {"hidden_size": 2 * 28 * 50}))
    assert ended == "2"
    assert errors.startswith("error: load_in_4bit=True needs a hidden_size that is a multiple of 64")


def test_the_loss_and_the_advantage_import_no_reader_of_options() -> None:
    """argparse is not looked for: torch imports it."""
    code = "import sys, grpo.loss, grpo.advantage; print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                                 check=True).stdout.split())
    assert "torch" in modules
    assert not modules & {"yaml", "transformers", "deepspeed", "bitsandbytes", "peft", "matplotlib", "datasets"}
    ours = {name for name in modules if name.startswith("grpo.options.")}
    assert ours == {"grpo.options.refusal"}


def page_of(folder: str) -> list[str] | str:
    """What --plan prints, or its one line of refusal."""
    try:
        return plan.page(load(["--plan", "8", "--prompts_per_step", "64", "--micro_batch_tokens", "none",
                               "--model_name_or_path", folder]))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("settings", [
    QWEN2,
    QWEN2 | {"tie_word_embeddings": True, "sliding_window": 32768, "max_window_layers": 21, "rope_theta": 1e6},
    QWEN2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": ["full_attention"] * 28},
    QWEN2 | {"head_dim": 64},
    QWEN2 | {"hidden_size": 2800},
    QWEN3 | {"head_dim": 128, "attention_bias": False},
    QWEN3 | {"head_dim": 64, "attention_bias": True, "num_attention_heads": 32},
    LLAMA | {"attention_bias": True, "mlp_bias": True, "pretraining_tp": 1},
    LLAMA | {"hidden_act": "silu", "use_cache": True},
], ids=lambda settings: settings["model_type"])
def test_a_plain_config_gives_the_plan_that_transformers_gives(settings: dict, tmp_path: Path, monkeypatch) -> None:
    folder = written(tmp_path, settings)
    with monkeypatch.context() as patched:
        patched.setattr(model_config, "read_config", None)
        quick = page_of(folder)
    monkeypatch.setattr(model_config, "_plain", lambda path: None)
    assert page_of(folder) == quick


@pytest.mark.parametrize("settings", [
    QWEN2 | {"auto_map": {"AutoConfig": "own.Config"}},  # code of its own
    QWEN2 | {"hidden_act": "gelu"},
    QWEN2 | {"use_sliding_window": True},
    QWEN2 | {"layer_types": ["sliding_attention"] * 28},
    QWEN2 | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    QWEN2 | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
    QWEN2 | {"model_type": "gpt2"},
    QWEN2 | {"num_hidden_layers": "28"},
    QWEN2 | {"num_hidden_layers": 28.0},
    QWEN2 | {"num_key_value_heads": True},
    QWEN2 | {"vocab_size": 0},
    QWEN2 | {"dtype": "int9"},
    QWEN2 | {"architectures": [1]},
    QWEN2 | {"text_config": {}},  # a setting that it does not know
    LLAMA | {"num_attention_heads": 30},
    LLAMA | {"num_attention_heads": 512},  # heads of 7 numbers
    QWEN3,  # leaves head_dim to transformers
    *({name: value for name, value in QWEN2.items() if name != missing} for missing in QWEN2),
    [],
])
def test_any_other_config_is_left_to_transformers(settings: dict, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(model_config, "read_config", lambda name, **options: asked.append((name, options)))
    folder = written(tmp_path, settings)
    model_config.read_sizes(folder, load_in_4bit=True, revision="main")
    assert asked == [(folder, {"load_in_4bit": True, "revision": "main"})]


def test_a_hub_name_and_a_broken_file_are_left_to_transformers(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(model_config, "read_config", lambda name, **options: asked.append(name))
    (tmp_path / "config.json").write_text("{")
    for name in ("Qwen/Qwen2.5-7B", str(tmp_path)):
        model_config.read_sizes(name, load_in_4bit=True)
    assert asked == ["Qwen/Qwen2.5-7B", str(tmp_path)]


@pytest.mark.parametrize(("failing", "expected"), [
    ("", 150_000), ("cuInit", None), ("cuDeviceGet", None), ("cuDeviceTotalMem_v2", None),
])
def test_the_memory_of_the_first_gpu_is_what_its_driver_says(failing: str, expected: int | None, monkeypatch) -> None:
    def total(size, device) -> int:
        size._obj.value = 150_000
        return 0

    calls = {"cuInit": lambda flags: 0, "cuDeviceGet": lambda device, number: 0, "cuDeviceTotalMem_v2": total}
    driver = SimpleNamespace(**calls | ({failing: lambda *arguments: 100} if failing else {}))
    monkeypatch.setattr(plan.ctypes, "CDLL", lambda name: driver)
    assert plan.gpu_bytes() == expected


def test_without_a_driver_there_is_no_gpu(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(plan.ctypes, "CDLL", missing)
    assert plan.gpu_bytes() is None
