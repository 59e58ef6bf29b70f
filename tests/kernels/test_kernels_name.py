"""Our `kernels` beside Hugging Face's package of that name, for which a stand-in distribution is written to a folder.

Its version lies in the range the installed transformers accepts, so transformers imports it as it would theirs. One
subprocess with that folder on its path builds a tiny Qwen2 there: 10 seconds on one core.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

from kernels import huggingface

ROOT = Path(__file__).parents[2]
NAMES = """CUDAProperties Device FuncRepository KernelizeFallback LayerRepository LocalFuncRepository
LocalLayerRepository LockedFuncRepository LockedLayerRepository Mode ROCMProperties get_kernel kernelize
register_kernel_mapping replace_kernel_forward_from_hub use_kernel_mapping""".split()

# As in theirs: submodules reached by relative and by absolute imports, decorators that leave a class as it is.
INIT = "from .layer import *\nfrom kernels.layer import get_kernel\n__version__ = 'theirs'\n"
LAYER = "\n".join(f"class {name}:\n    def __init__(self, *args, **options): pass" for name in NAMES) + """
def use_kernel_forward_from_hub(name): return lambda cls: cls
use_kernel_func_from_hub = use_kernel_forward_from_hub
def use_kernelized_func(*names): return lambda cls: cls
"""

SCRIPT = """
import kernels
from kernels import fused_logprob, get_kernel, Mode
from kernels.layer import Mode as layer_mode
import kernels.layer
assert Mode is layer_mode is kernels.layer.Mode and kernels.__version__ == "theirs"
import torch, transformers
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available(), "the stand-in does not reach transformers, so this test shows nothing"
config = transformers.Qwen2Config(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)
model = transformers.Qwen2ForCausalLM(config)
token = torch.arange(6)
output = model(token[None], output_hidden_states=True)
ours = fused_logprob(output.hidden_states[-1][0], model.lm_head.weight, token).logprob_L
torch.testing.assert_close(ours, output.logits[0].log_softmax(-1)[token, token], rtol=0, atol=1e-6)
print("both work")
"""


def distribution(folder: Path, *, init: str) -> Path:
    """Write the stand-in as pip would install it."""
    package, info = folder / "kernels", folder / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(init)
    (package / "layer.py").write_text(LAYER)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    return package


def test_ours_and_theirs_work_in_one_process_and_transformers_builds_qwen2(tmp_path):
    distribution(tmp_path, init=INIT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and "both work" in run.stdout, run.stderr


def test_without_theirs_a_missing_name_is_an_import_error():
    if "kernels" in {one.name for one in importlib.metadata.distributions()}:
        pytest.skip("Hugging Face's kernels is installed here, so the name exists")
    with pytest.raises(ImportError, match="cannot import name 'get_kernel'"):
        from kernels import get_kernel  # noqa: F401


def test_an_installation_of_theirs_that_does_not_import_says_so_each_time(tmp_path):
    theirs = distribution(tmp_path, init="raise ImportError('no sigstore')")
    for _ in range(2):
        with pytest.raises(ImportError, match="no sigstore"):
            huggingface.attribute("get_kernel", folders=[str(ROOT / "kernels"), str(theirs)])
    assert huggingface.MODULE not in sys.modules


def test_our_own_folder_under_another_name_is_not_theirs(tmp_path):
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    with pytest.raises(AttributeError, match="is not installed"):
        huggingface.attribute("get_kernel", folders=[str(ROOT / "kernels"), str(tmp_path / "kernels")])
