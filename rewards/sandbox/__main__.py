"""python -m rewards.sandbox --check: which layers hold on this machine, and what the attacks reach."""

import argparse
import sys
import time

from rewards.sandbox.attacks import every, reached
from rewards.sandbox.layers import opened, seen
from rewards.sandbox.program import Limits


def main(argv: list[str]) -> int:
    """Print what holds; 0 if everything does, 1 if an attack reached something, 2 if the sandbox does not start."""
    parser = argparse.ArgumentParser(prog="python -m rewards.sandbox", description=__doc__.partition(": ")[2])
    parser.add_argument("--check", action="store_true", required=True, help="Look at the layers and run the attacks.")
    parser.parse_args(argv)
    try:
        box = opened("full")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for layer, holds in seen(box).items():
        print(f"{layer:12} {'holds' if holds else 'not there'}")
    print(f"cgroup       {'holds' if box.groups else 'not there: this user cannot make one'}")
    start, lost, count = time.monotonic(), 0, 0
    for room, attack in every():
        count += 1
        if found := reached(box, attack, Limits(cpu_s=1, wall_s=1)):
            lost += 1
            print(f"reached      {room}: {attack.name}: {found}")
    box.close()
    print(f"{count} attacks, {lost} reached something, {time.monotonic() - start:.0f} s")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
