"""What a process of ours imports, and how it gets its memory. 10 seconds on a CPU, most of it imports."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import importlib.util
import resource
import sys
import torch
import grpo.distributed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = faults()
torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
print(faults() - before, "mlflow" in sys.modules, importlib.util.find_spec("mlflow") is not None)
"""


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the program prints: page faults, whether MLflow is imported, whether it can be."""
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here")
def test_a_large_tensor_comes_in_huge_pages(said: list[str]) -> None:
    """64 MiB are 16,384 pages of 4 KiB and 32 of 2 MiB; some of the system's may be in pieces."""
    assert int(said[0]) < 8_000, said


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_is_imported_by_who_reports_to_it_alone(said: list[str]) -> None:
    assert said[1:] == ["False", "True"]
