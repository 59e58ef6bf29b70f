"""Runs the cells of a notebook in IPython, in the working folder FOLDER; tests/support/warm.py starts it."""

import json
import os
from pathlib import Path


def main(argv: list[str]) -> int:
    """NOTEBOOK FOLDER OLD NEW: OLD, which stands once in the cells, becomes NEW."""
    notebook, folder, old, new = argv
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # no launcher starts a notebook
    os.environ["IPYTHONDIR"] = f"{folder}/ipython"
    from IPython.core.interactiveshell import InteractiveShell  # here: it reads IPYTHONDIR

    cells = [cell for cell in json.loads(Path(notebook).read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum(source.count(old) for source in sources) == 1, old
    os.chdir(folder)
    shell = InteractiveShell.instance()
    for source in sources:
        shell.run_cell(source.replace(old, new), store_history=True).raise_error()
    return 0
