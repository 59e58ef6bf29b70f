"""A table in a terminal."""


def print_table(lines: list[tuple[str, ...]]) -> None:
    """Print rows of text with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
