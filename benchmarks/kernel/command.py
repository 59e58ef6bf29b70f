"""Time, memory and error of `kernels.fused_logprob` and of its peers: `python -m benchmarks.kernel`.

Writes benchmarks/results/kernel.json and kernel.md. Needs no peer; one that is not installed gets a row that says so:

    pip install --no-deps trl==1.16.0 liger-kernel cut-cross-entropy

`--compile` and `--tune` do something else instead: see compiled.py and tune.py.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.kernel import tune
from benchmarks.kernel.bench import compare_all
from benchmarks.record import RESULTS


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description="Compare kernels.fused_logprob with its peers.")
    parser.add_argument("--tokens", type=int, nargs="+", help="numbers of tokens")
    parser.add_argument("--hidden", type=int, nargs="+", help="hidden sizes")
    parser.add_argument("--vocab", type=int, nargs="+", help="vocabulary sizes, one for each hidden size")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16; on a CPU both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--compile", action="store_true", default=None, help="report registers and spills; no GPU")
    instead.add_argument("--tune", action="store_true", default=None, help="choose tiles for this GPU")
    options = parser.parse_args(arguments)
    if len(options.hidden or [0]) != len(options.vocab or [0]):
        parser.error("--vocab needs one size for each of --hidden")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        from benchmarks.kernel import compiled  # imports Triton

        compiled.main(options.output)
    elif options.tune:
        tune.main(options, device)
    else:
        compare_all(options, device)
