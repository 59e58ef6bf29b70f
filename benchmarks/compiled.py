"""What the compiler makes of the Triton kernels, for GPUs that need not be there: registers, spills, shared memory.

`python -m benchmarks.compiled` writes benchmarks/results/compiled.json and compiled.md. Spills are traffic to memory in
the innermost loop; more shared memory than a card has means that the kernel cannot start.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.toy import RESULTS, ROOT
from kernels import slope, sweep
from kernels.tiles import Tile, tile_of

TARGETS = ("sm_80", "sm_90", "sm_120")
SHARED_KB = {"sm_80": 164, "sm_90": 227, "sm_120": 99}  # per program, CUDA programming guide, table of capabilities
HIDDEN_SIZES = (896, 3584)
FLAGS = {"REF": False, "REVERSE": False, "GIVEN": False, "UPCAST": False}
SWEEP = FLAGS | {"ONLINE": False, "EMIT": False, "TILED": False}
MODES = {
    "sweep (no gradient)": (sweep.sweep, SWEEP),
    "sweep (running maximum)": (sweep.sweep, SWEEP | {"ONLINE": True}),
    "sweep (stores E)": (sweep.sweep, SWEEP | {"EMIT": True, "TILED": True}),
    "sweep (exact KL)": (sweep.sweep, SWEEP | {"REF": True}),
    "slope": (slope.slope, FLAGS),
    "slope (exact KL)": (slope.slope, FLAGS | {"REF": True}),
}
POINTERS = {
    **dict.fromkeys(("hidden", "weight", "ref_hidden", "ref_weight", "emitted", "grad"), "*bf16"),
    **dict.fromkeys(("shift", "ref_shift", "stats", "coefficients"), "*fp32"),
    "token": "*i64",
    "scale": "fp32",
}


def compile_kernel(kernel: Any, flags: dict[str, Any], tile: Tile, hidden_size: int, arch: str) -> dict[str, int]:
    """Registers per thread, bytes spilled per thread, bytes of shared memory and threads of a program.

    Args:
        kernel: a jitted function.
        flags: its compile-time arguments but for those of the tile.
        tile: its tile.
        hidden_size: H.
        arch: "sm_90" and the like.
    """
    shape = {"H": hidden_size, "ROWS": tile.rows, "WORDS": tile.words, "INNER": tile.inner}
    constants = flags | shape | {"DESCRIPTORS": tile.descriptors, "WARP_SPECIALIZE": tile.warp_specialize}
    types = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else kind for name, kind in types.items()}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names)
               if types[name].startswith("*")}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", int(arch.split("_")[1]), 32), options=options)
    return ptxas(binary.asm["cubin"]) | {"shared_bytes": binary.metadata.shared, "threads": 32 * tile.num_warps}


def ptxas(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes per thread, by the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.search(r"REG:(\d+)", text)[1]), "stack_bytes": int(re.search(r"STACK:(\d+)", text)[1])}


def table(arch: str) -> list[dict]:
    """Every mode at every hidden size, with the tile that runs there."""
    rows = []
    for name, (kernel, flags) in MODES.items():
        for hidden_size in HIDDEN_SIZES:
            tile = tile_of(arch, torch.bfloat16, hidden_size, 16384, two_sums=flags["REF"])
            found = compile_kernel(kernel, flags, tile, hidden_size, arch)
            rows.append({"arch": arch, "kernel": name, "H": hidden_size, "tile": list(tile), **found})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    for arch in TARGETS:
        table(arch)
