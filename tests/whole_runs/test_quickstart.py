"""docs/quickstart.ipynb: its cells run, and what it shows is what a run of them gave. 10 seconds.

To run it again after a change, with ipykernel and nbclient: jupyter execute --inplace docs/quickstart.ipynb
"""

import json
from pathlib import Path

from faults import Warm
from ranks import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
SILENT = ("import json", "%%capture")  # beginnings of cells that show nothing
SIZE = "max_steps=15, prompts_per_step=8, eval_examples=16"


def test_the_cells_run_and_do_what_the_text_says(warm: Warm, tmp_path: Path) -> None:
    ended = warm.run(str(NOTEBOOK), str(tmp_path), SIZE, "max_steps=1, prompts_per_step=1, eval_examples=1",
                     program="notebook_cells", num_ranks=1)
    assert ended.codes == [0], ended.out[0][-3000:] + ended.err[0][-3000:]
    said = ended.out[0]
    assert "Summary(steps=1, ranks=1, " in said
    assert "by hand  [1.4997, -0.4999, -0.4999, -0.4999]\nthe code [1.4997, -0.4999, -0.4999, -0.4999]" in said
    assert "Writing my_rewards.py" in said and "rewards/nearness" in said
    assert "Question: " in said and "right: " in said


def test_what_it_shows_is_of_one_run_of_all_cells_without_an_error() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    for cell in CELLS:
        shown = [output["output_type"] for output in cell["outputs"]]
        assert bool(shown) != "".join(cell["source"]).startswith(SILENT)
        assert set(shown) <= {"stream", "execute_result", "display_data"}
        assert [output["name"] for output in cell["outputs"] if output["output_type"] == "stream"] in ([], ["stdout"])
    assert "/home/" not in NOTEBOOK.read_text() and "/tmp/" not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 60_000  # with a picture
