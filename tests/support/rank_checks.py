"""Checks that run inside ranks, one after the other in one start; each is a test, so that a failure has a name.

A module of checks has functions `check_*` without arguments. They run in a folder that the test has prepared.
"""

import gc
import importlib
import json
import os
import re
import sys
import traceback
from pathlib import Path

import torch.distributed as dist
from faults import Warm
from ranks import ROOT

from grpo import distributed
from grpo.distributed import gather_objects, rank


def names(module: str) -> list[str]:
    """The checks of a module, which is not imported."""
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    return re.findall(r"^def (check_\w+)\(\)", source, re.M)


def results(warm: Warm, folder: Path, module: str, *chosen: str, num_ranks: int = 2) -> dict[str, str]:
    """What each check of a module said: "ok", or the traceback of the rank it failed on."""
    ended = warm.run(module, str(folder), *(chosen or names(module)), num_ranks=num_ranks, program="rank_checks")
    assert ended.codes == [0] * num_ranks, ended.err[0][-3000:]
    return json.loads((folder / "results.json").read_text())


def main(argv: list[str]) -> int:
    """In each rank: run the named checks of a module."""
    module, folder, *chosen = argv
    os.chdir(folder)
    distributed.start(120)
    checks, said = importlib.import_module(module), {}
    for name in chosen:
        gc.freeze()  # DeepSpeed collects garbage for each engine: it need not look through what earlier ones left
        try:
            getattr(checks, name)()
            text = "ok"
        except Exception:
            text = traceback.format_exc()
            print(text, file=sys.stderr)  # also where the other rank is stuck now
        said[name] = next((one for one in gather_objects(text) if one != "ok"), "ok")
    if rank() == 0:
        Path("results.json").write_text(json.dumps(said))
    dist.barrier()
    return 0
