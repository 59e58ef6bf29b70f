"""Which claims about GRPO hold for your code: `python -m tests.conformance FILE.py`. What FILE.py is: adapter.py."""

import argparse
import sys
from pathlib import Path

from tests.conformance import page
from tests.conformance.adapter import load
from tests.conformance.claim import FAILED, outcomes
from tests.conformance.claims import CLAIMS

COMMAND = "python -m tests.conformance"


def main(argv: list[str] | None = None) -> int:
    """Try all claims on one adapter and print them; 1 where one failed, 2 where the adapter cannot be used."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=f"Tries {len(CLAIMS)} claims about GRPO on the functions of an adapter.",
        epilog="What an adapter is: the docstring of tests/conformance/adapter.py.")
    parser.add_argument("adapter", metavar="FILE.py", help="the adapter; FILE.py:NAME for an object in it")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write one self-contained HTML page")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write tables in Markdown")
    options = parser.parse_args(argv)
    try:
        adapter = load(options.adapter)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = list(outcomes(adapter))
    print(page.terminal(adapter.name, found))
    texts = {options.html: page.html, options.markdown: lambda name, found: page.markdown({name: found})}
    for path, text in texts.items():
        if path is not None:
            path.write_text(text(adapter.name, found), encoding="utf-8")
            print(f"\nwritten: {path}")
    return int(any(one.status == FAILED for one in found))


if __name__ == "__main__":
    sys.exit(main())
