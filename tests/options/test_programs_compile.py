"""Where a GPU is, the programs compile: the attention that stores no [L, L] scores is compiled. 10 seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

# Runs a program on a machine with or without a GPU, up to where it imports what would import the compiler.
RUN = """
import os, runpy, sys
import torch
torch.cuda.is_available = lambda: {gpu}

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("deepspeed", "peft", "transformers", "bitsandbytes"):
            print("compiles" if os.environ.get("TORCHDYNAMO_DISABLE") != "1" else "does not")
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Stop())
sys.path.insert(0, ".")
sys.argv = {argv}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PROGRAMS = {"train.py": [], "eval.py": ["--model", "data/tiny_qwen2"], "grpo/export/__main__.py": ["adapter"]}


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_compiles_where_there_is_a_gpu(program: str, gpu: bool, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "data/tiny_qwen2"}')
    (tmp_path / "adapter_model.safetensors").touch()
    options = [str(tmp_path) if word == "adapter" else word for word in PROGRAMS[program]]
    environment = {name: one for name, one in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run([sys.executable, "-c", RUN.format(gpu=gpu, argv=[program, *options])], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == ("compiles" if gpu else "does not"), done.stderr[-2000:]
