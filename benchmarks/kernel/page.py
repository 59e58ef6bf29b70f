"""The page of `benchmarks.kernel`: every number on it is one of kernel.json's."""

import math

from benchmarks.kernel.tasks import TASKS
from benchmarks.record import number

COMMAND = "python -m benchmarks.kernel"
ERRORS = {"logprob_L": "log-prob", "entropy_L": "entropy", "kl_L": "KL", "hidden_LH": "dh", "weight_VH": "dW"}
NO_GPU = f"""**GPU: not measured.** `{COMMAND}` on a machine with one measures it. Below, a peer that has PyTorch code
besides its GPU kernels runs that code: its times say nothing about the kernels.
"""
NOTES = """Every provider gets the same tensors. A call is one sample; the order of the providers is drawn anew in each
round, and all rounds are done twice: noise is by how much the second median of a provider differs from its first. ms is
the median of both; MiB the peak that a call adds to the inputs, results included; on a CPU, what lives only inside one
PyTorch operation is not in it. TF/s counts the operations a task needs, not those a provider does. Errors are against
float64 on at most {checked_rows} rows: of outputs the largest absolute one in nats, of gradients its norm relative to
the gradient's (dW whole). "none": the provider does not compute this output, which saves it work.

The providers:
"""


def table(name: str, rows: list[dict]) -> list[str]:
    """The rows of one task, in Markdown."""
    errors = [key for key in TASKS[name].errors() if any(key in row.get("errors", {}) for row in rows)]
    heads = ["provider", "ms", "25-75 %", "noise %", "ms / ours", "MiB", "MiB / ours", "TF/s"]
    heads += [f"{ERRORS[key]} error" for key in errors]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["why"]] + [""] * (len(heads) - 2)
        if row["why"] is None:
            cells = [number(row["ms"]), f"{number(row['ms_q25'])}-{number(row['ms_q75'])}"]
            cells += [f"{100 * row['noise']:.1f}", number(row.get("ms_ratio", math.nan))]
            cells += [number(row["peak_bytes"] / 2**20), number(row.get("bytes_ratio", math.nan))]
            cells.append(number(row["tflops"]))
            cells += [f"{row['errors'][key]:.1e}" if key in row["errors"] else "none" for key in errors]
        lines.append(f"| {row['provider']} | {' | '.join(cells)} |")
    return lines


def markdown(result: dict) -> str:
    """The result as a page; every number in it is one of the result's."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = ["# The fused log-prob beside its peers\n", f"`{result['command']}`, commit {result['commit']}."]
    lines.append(f"{result['machine']}; Python {result['python']}, {versions}.\n")
    if result["device"] == "cpu":
        lines.append(NO_GPU)
    lines.append(NOTES.format(checked_rows=result["checked_rows"]))
    lines += [f"- {name}: {says}" for name, says in result["providers"].items()]
    for case in result["cases"]:
        lines.append(f"\n## L = {case['tokens']:,}, H = {case['hidden']:,}, V = {case['vocab']:,}, {case['dtype']}")
        for name, rows in case["tasks"].items():
            task = result["tasks"][name]
            lines += [f"\n**{name}**: {task['says']}; {2 * task['gemms']} LHV operations.\n", *table(name, rows)]
    return "\n".join(lines) + "\n"
