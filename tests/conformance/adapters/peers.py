"""Where the peers' packages are: a folder of their own, so that nothing is installed beside the project's.

    pip install --no-deps --target .peers -r tests/conformance/adapters/requirements.txt

Their adapters import this first.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

COMMAND = "pip install --no-deps --target .peers -r tests/conformance/adapters/requirements.txt"
ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".peers"

if not FOLDER.is_dir():
    raise ImportError(f"there is no folder .peers: {COMMAND}")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # torch.compile changes speed, not results
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))  # last: the project's own packages come first


def versioned(package: str) -> str:
    """A package's name and version."""
    return f"{package} {importlib.metadata.version(package)}"
