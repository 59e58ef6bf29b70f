"""What the compiler makes of the Triton kernels, for GPUs that need not be there.

`python -m benchmarks.kernel --compile` writes benchmarks/results/compiled.json and compiled.md, and fails if a kernel
needs more shared memory than its card has.
"""

import itertools
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernel.tune import SPECIALISED
from benchmarks.record import RESULTS, commit
from kernels.gpu import backward, forward
from kernels.gpu.tiles import FOLD, Tile, tile_of

# KiB of shared memory that one program may have: the CUDA programming guide's table of compute capabilities; AMD's LDS.
SHARED_KIB = {"sm_80": 163, "sm_90": 227, "sm_120": 99, "gfx942": 64}
CARDS = {"sm_80": "A100", "sm_90": "H100, H200", "sm_120": "RTX 50", "gfx942": "MI300"}
HIDDEN_SIZES = (896, 3584)
TOKENS = (16_384, 64)  # a full batch, and so few that another tile may run
FLAGS = {"REF": False, "GIVEN": False, "UPCAST": False}
SWEEP = FLAGS | {"ONLINE": False, "EMIT": False, "TILED": False}
KERNELS = {
    "sweep (no gradient)": (forward.sweep, SWEEP),
    "sweep (running maximum)": (forward.sweep, SWEEP | {"ONLINE": True}),
    "sweep (stores E)": (forward.sweep, SWEEP | {"EMIT": True, "TILED": True}),
    "sweep (exact KL)": (forward.sweep, SWEEP | {"REF": True}),
    "slope": (backward.slope, FLAGS),
    "slope (exact KL)": (backward.slope, FLAGS | {"REF": True}),
    "sweep (hybrid)": (forward.sweep, SWEEP | {"GIVEN": True}),
    "sweep (hybrid, stores E)": (forward.sweep, SWEEP | {"GIVEN": True, "EMIT": True}),
    "slope (hybrid)": (backward.slope, FLAGS | {"GIVEN": True}),
    "target": (forward.target, {"INNER": 1024}),
    "merge": (forward.merge, {"ROWS": 128, "FINAL": True, "REF": False}),
    "stash": (backward.stash, {"ROWS": 16, "COLUMNS": 128}),
}
HALF = ("hidden", "weight", "ref_hidden", "ref_weight", "emitted", "grad", "stashed")
SINGLE = ("shift", "ref_shift", "stats", "coefficients", "merged", "logit", "sums", "mean")
TYPES = {**dict.fromkeys(HALF, "*bf16"), **dict.fromkeys(SINGLE, "*fp32"), "token": "*i64", "scale": "fp32"}
# Integers that Triton compiles another kernel for where they are multiples of 16: those that follow from the number of
# tokens may be, some never are; all others always are, for vocabularies that are.
OF_TOKENS = ("num_rows", "stride_stat", "stride_span", "stride_part", "stride_merged_stat", "stride_merged_part",
             "stride_coefficient")
NEVER = ("num_parts", "group")
HEADS = {"registers": "registers", "spilled_bytes": "spilled bytes", "shared_bytes": "shared KiB", "threads": "threads"}
VARIANTS = ("any", "aligned")  # numbers of tokens
NOTES = """No GPU takes part: these are the compiler's numbers, not times. bfloat16, a vocabulary that is a multiple
of 16. A tile is tokens x words, hidden units at a time; "desc." loads by tensor descriptors, "w.s." lets some warps
load while others multiply (no default, but what the tuning may choose). Registers and spilled bytes are of a thread.
Where a cell has two numbers, the first is for any number of tokens, the second for multiples of 16, which get a kernel
of their own. Where two hidden sizes share a row, they compile to the same numbers.

Spilled bytes are what does not fit into the registers, of which a thread of an NVIDIA card has at most 255: it is
written to memory and read back, mostly in the L1 cache. 0 is best. Some bytes outside the loop over the hidden units,
where they are touched once in a tile, hide behind its H / 64 products; hundreds, or any inside that loop, cost time.
The count does not say where they are. A kernel that needs more shared memory than its card has cannot start: this
command fails if there is one.
"""


def compile_kernel(
    name: str, tile: Tile | None, hidden_size: int, arch: str, *, aligned: bool = False
) -> dict[str, int]:
    """Registers per thread, bytes spilled per thread, bytes of shared memory and threads of a program.

    Args:
        name: a key of KERNELS.
        tile: its tile; None for a kernel without.
        hidden_size: H.
        arch: a key of SHARED_KIB.
        aligned: for numbers of tokens that are multiples of 16.
    """
    kernel, flags = KERNELS[name]
    values, options = {"H": hidden_size, **flags}, {}
    if tile is not None:
        values |= {"ROWS": tile.rows, "WORDS": tile.words, "INNER": tile.inner}
        values |= {"DESCRIPTORS": tile.descriptors, "WARP_SPECIALIZE": tile.warp_specialize}
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    types = TYPES | ({"hidden": "*fp32", "ref_hidden": "*fp32"} if flags.get("GIVEN") else {})
    ragged = NEVER if aligned else NEVER + OF_TOKENS
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        signature[parameter.name] = "constexpr" if parameter.is_constexpr else types.get(parameter.name, "i32")
        if parameter.is_constexpr:
            constants[(index,)] = values[parameter.name]
        elif signature[parameter.name] != "fp32" and parameter.name not in ragged:
            attributes[(index,)] = [["tt.divisibility", 16]]
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    binary = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)
    found = amdgcn(binary.asm["amdgcn"]) if amd else cubin(binary.asm["cubin"])
    threads = target.warp_size * binary.metadata.num_warps
    return found | {"shared_bytes": binary.metadata.shared, "threads": threads}


def cubin(binary: bytes) -> dict[str, int]:
    """Registers and spilled bytes per thread, by the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "spilled_bytes": stack}


def amdgcn(assembly: str) -> dict[str, int]:
    """The same of AMD's assembly, whose vector registers hold 4 bytes of each thread."""
    registers, spilled = (int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])
                          for name in ("vgpr_count", "vgpr_spill_count"))
    return {"registers": registers, "spilled_bytes": 4 * spilled}


def attempt(*arguments: Any, **options: Any) -> dict[str, Any]:
    """`compile_kernel` in a process of its own, silent and free to crash: what it found, or `why` nothing."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_silence) as pool:
        try:
            return pool.submit(compile_kernel, *arguments, **options).result()
        except BrokenProcessPool:
            return {"why": "does not compile: the compiler crashes"}
        except Exception as error:  # whatever the compiler raises is the result
            return {"why": f"does not compile: {type(error).__name__}"}


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def tiles_of(flags: dict[str, Any], hidden_size: int, arch: str) -> list[Tile | None]:
    """The tiles a kernel runs with by default; of one without, None."""
    if "GIVEN" not in flags:
        return [None]
    if flags["GIVEN"]:
        return [FOLD]
    arch = "hip" if arch.startswith("gfx") else arch
    tiles = (tile_of(arch, torch.bfloat16, hidden_size, tokens, two_sums=flags["REF"]) for tokens in TOKENS)
    return list(dict.fromkeys(tiles))


def compile_all() -> list[dict]:
    """A row for every card, kernel, tile and hidden size."""
    rows = []
    for arch, (name, (_, flags)), hidden_size in itertools.product(SHARED_KIB, KERNELS.items(), HIDDEN_SIZES):
        tiles = tiles_of(flags, hidden_size, arch)
        if arch == "sm_90" and flags.get("GIVEN") is False and SPECIALISED not in tiles:
            tiles.append(SPECIALISED)
        for tile in tiles:
            specialised = tile is not None and tile.warp_specialize  # the one kind that may fail; no default is
            run = attempt if specialised else compile_kernel
            found = {which: run(name, tile, hidden_size, arch, aligned=which == "aligned") for which in VARIANTS}
            rows.append({"arch": arch, "kernel": name, "H": hidden_size, "tile": tile and list(tile), **found})
            print(*rows[-1].values(), flush=True)
    return rows


def check(rows: list[dict]) -> None:
    """Refuse a kernel that needs more shared memory than its card has.

    Raises:
        SystemExit: with a line for each.
    """
    too_big = []
    for row, which in itertools.product(rows, VARIANTS):
        needed, limit = row[which].get("shared_bytes", 0), 1024 * SHARED_KIB[row["arch"]]
        if needed > limit:
            place = f"{row['kernel']} on {row['arch']} at H {row['H']}, tile {row['tile']}"
            too_big.append(f"{place}: needs {needed:,} bytes of shared memory, more than the {limit:,} there are")
    if too_big:
        sys.exit("\n".join(too_big))


def words(tile: list | None) -> str:
    """A tile for the reader."""
    if tile is None:
        return ""
    tile = Tile(*tile)
    loop = f"{tile.num_warps} warps, {tile.num_stages} stage" + "s" * (tile.num_stages > 1)
    loads = ", desc." * tile.descriptors + ", w.s." * tile.warp_specialize
    return f"{tile.rows} x {tile.words}, {tile.inner}; {loop}{loads}"


def cell(found: dict, field: str) -> str:
    """One number of one kernel; why there is none, in the first column only."""
    if "why" in found:
        return found["why"] if field == "registers" else ""
    return f"{found[field] / 1024:.1f}" if field == "shared_bytes" else str(found[field])


def table(rows: list[dict]) -> list[str]:
    """The rows of one card in Markdown, hidden sizes with the same numbers in one line."""
    sizes = {}
    for row in rows:
        found = [row[which] for which in VARIANTS]
        cells = [" / ".join(dict.fromkeys(cell(one, field) for one in found)) for field in HEADS]
        sizes.setdefault((row["kernel"], words(row["tile"]), *cells), []).append(row["H"])
    lines = [f"| kernel | H | tile | {' | '.join(HEADS.values())} |", "|---" * (3 + len(HEADS)) + "|"]
    for (kernel, *cells), hidden in sizes.items():
        lines.append(f"| {' | '.join(map(str, (kernel, ', '.join(map(str, hidden)), *cells)))} |")
    return lines


def markdown(result: dict) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = ["# What the kernels compile to\n", f"`{result['command']}`, commit {result['commit']}."]
    lines += [f"Python {result['python']}, {versions}.\n", NOTES]
    for arch, limit in result["shared_kib"].items():
        lines.append(f"## {arch} ({CARDS[arch]}), {limit} KiB of shared memory\n")
        lines += [*table([row for row in result["rows"] if row["arch"] == arch]), ""]
    return "\n".join(lines)


def main(output: Path = RESULTS) -> None:
    """Compile everything, and write both files.

    Args:
        output: folder of compiled.json and compiled.md.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 turns the compiler off: unset it")
    result = {
        "command": "python -m benchmarks.kernel --compile",
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "shared_kib": SHARED_KIB,
        "rows": compile_all(),
    }
    check(result["rows"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "compiled.json").write_text(json.dumps(result, indent=2) + "\n")
    (output / "compiled.md").write_text(markdown(result))
