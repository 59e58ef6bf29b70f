"""What other launchers than torchrun add to the command. A second."""

from pathlib import Path

import pytest

from grpo.run.command import load


def test_the_local_rank_that_deepspeed_gives_each_rank_is_taken_and_rank_0_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for rank in (0, 1):
        config = load([f"--local_rank={rank}", "--max_steps", "2"])
        assert config.max_steps == 2
        assert any("local_rank" in note for note in config.notes) is (rank > 0)
    assert not any("local_rank" in note for note in load(["--local_rank", "-1"]).notes)
