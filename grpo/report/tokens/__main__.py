"""Draw the tokens of a step: `python -m grpo.report.tokens OUTPUT_DIR --step N` writes a page and prints its path."""

import argparse
import sys
from pathlib import Path

from grpo.options.refusal import refuse
from grpo.report.tokens.page import kept_steps, write_page


def main(argv: list[str]) -> Path:
    """Write the page.

    Raises:
        ValueError: the folder is no run's, it kept no tokens, or none of this step.
    """
    parser = argparse.ArgumentParser(prog="python -m grpo.report.tokens", description="The tokens of a step as a page.")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="folder of a run with keep_tokens")
    parser.add_argument("--step", type=int, help="default: the last step that was kept")
    given = parser.parse_args(argv)
    if not (given.output_dir / "config.yaml").is_file():
        refuse("OUTPUT_DIR", str(given.output_dir), "must be the folder of a run", "outputs/toy")
    steps = kept_steps(given.output_dir)
    if not steps:
        refuse("OUTPUT_DIR", str(given.output_dir), "has no tokens: the run kept none", "a run with --keep_tokens 1")
    if given.step is not None and given.step not in steps:
        refuse("--step", given.step, f"must be a step whose tokens are kept, {steps[0]} to {steps[-1]}",
               min(steps, key=lambda step: abs(step - given.step)))
    return write_page(given.output_dir, steps[-1] if given.step is None else given.step)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
