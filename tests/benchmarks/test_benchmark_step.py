"""benchmarks.step at a tiny size: everyone does the work that is timed, and the page says what was measured.

35 seconds: whole steps start a process for each trainer. TRL's row is skipped where TRL is not installed.
"""

import importlib.util
import json
import math
import sys

import pytest
import torch

from benchmarks.record import number
from benchmarks.step import worker
from benchmarks.step.bench import LEAN, PEERS, Bench, Plan, ask_peer, main
from benchmarks.step.page import growth_table, markdown, step_table, update_table
from benchmarks.step.peers import TRAINERS, Case, Step, Trainer
from benchmarks.step.update import UPDATES, arithmetic, draw, load, micro_batches
from benchmarks.step.worker import check, measure_steps

MIB = 2**20
PLAN = Plan(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=512, step_cases=((1, 4),), step_tokens=6, num_steps=3, ours=("ours",), peers=(), peers_of_others=(),
    update_cases=((1, 4),), growth_shots=(0, 1), growth_generations=(2, 3), growth_tokens=(3, 5, 7), base_case=(1, 2),
    repeats=2, enough_s=5)
CASE = Case("", "", num_prompts=2, num_generations=2, max_completion_length=4, num_steps=3, output_dir="")
STEP = Step(1.0, {"update_s": 0.5}, [5, 5, 7, 7], [4, 4, 4, 4], [0.0, 1.0, 0.5, 0.0])


def in_this_process(self, kind, engine, cases):
    """What `Bench.measure` does, without the seconds that a new process needs to begin; whole steps do need one."""
    if kind == "steps":
        return in_its_own_process(self, kind, engine, cases)
    job, result = self.folder / "job.json", self.folder / "result.json"
    job.write_text(json.dumps({
        "kind": kind, "engine": engine, "model": str(self.folder / "model"), "cases": cases, "repeats": 2,
        "enough_s": 1, "threads": 1}))
    worker.main(str(job), str(result))
    return json.loads(result.read_text())


in_its_own_process = Bench.measure


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small file of raw rows."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"question": f"What is {n} times {n + 3}?", "answer": f"It is {n * (n + 3)}.\n#### {n * (n + 3)}"}
            for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """(folder, the JSON read back, the Markdown) of one run."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "measure", in_this_process)
        main(["--data", data, "--output_dir", str(folder)], PLAN)
    return folder, json.loads((folder / "step.json").read_text()), (folder / "step.md").read_text()


def test_our_steps_do_the_work_they_are_timed_for(written):
    (table,) = written[1]["parts"]["steps"]["tables"]
    (row,) = table["rows"]
    assert row["why"] is None, row
    assert len(row["seconds"]) == PLAN.num_steps - 1 and row["tokens"] == 2 * 8 * 6 and row["early"] == 0
    assert set(row["parts"]) == {"sync_s", "rollout_s", "reference_s", "update_s"}
    assert sum(row["parts"].values()) == pytest.approx(sum(row["seconds"]) / 2, rel=0.3)
    assert row["grad_norm"] > 0 and row["kl"] > 0
    assert row["total_bytes"] == row["held_bytes"] + row["peak_bytes"] and row["held_bytes"] > row["libraries_bytes"]


def test_packed_and_padded_updates_have_the_same_gradients(written):
    (table,) = written[1]["parts"]["update"]["tables"]
    assert [row["engine"] for row in table["rows"]] == list(UPDATES)
    for row in table["rows"]:
        assert row["why"] is None and row["difference"] < 1e-4, row
        assert row["packed_tokens"] < row["padded_tokens"] and math.isfinite(min(row["seconds"]))
    assert [row["difference"] > 0 for row in table["rows"]] == [False, True, True]


def test_growth_names_its_arithmetic(written):
    rows = written[1]["parts"]["growth"]["rows"]
    sizes = [(row["shots"], row["generations"], row["length"]) for row in rows]
    assert sizes == [(0, 2, 5), (0, 3, 5), (1, 2, 5), (1, 3, 5), (1, 2, 3), (1, 2, 7)]
    for row in rows:
        tokens = row["prompt_tokens"]
        own = row["packed_tokens"] - tokens["shared"] - 2 * row["generations"] * row["length"]
        assert row["why"] is None and own == tokens["min"] + tokens["max"] - 2 * tokens["shared"]
        assert sum(row["parts"].values()) == pytest.approx(min(row["seconds"]), rel=0.2)


def test_arithmetic_by_enumeration(data, tmp_path):
    bench = Bench(tmp_path, data, PLAN, threads=1, peer_python=sys.executable)
    model = load(str(tmp_path / "model"))
    work = draw(bench.ids[1], 3, 5, model.config.vocab_size)
    (batch,) = micro_batches(work.rollout, 2**20)
    segment, parent, place = batch.segment_L, batch.parent_L, torch.arange(len(batch.token_L))
    ancestor = (segment[:, None] == segment) | (parent[:, None] == segment) | (segment == 0)
    found = arithmetic(model, work)
    assert found["attention_pairs"] == int((ancestor & (place[:, None] >= place)).sum())
    hidden, inner, both = 32, 64, 16  # sizes of the model; `both` is what the one key/value head has
    base = 2 * hidden * hidden + 2 * hidden * both + 3 * hidden * inner
    lora = 16 * (2 * 2 * hidden + 2 * (hidden + both) + 3 * (hidden + inner))
    words = model.config.vocab_size
    assert found["linear_flops"] == 2 * (2 * (base + lora) * len(place) + hidden * words * 6 * 5)
    assert found["attention_flops"] == 4 * hidden * 2 * found["attention_pairs"]


def test_page_says_what_the_json_says(written):
    folder, result, page = written
    assert markdown(result) == page and (folder / "step.png").stat().st_size > 1000
    assert "GPU: not measured" in page and "`python -m benchmarks.step --data FOLDER --threads 1`" in page
    parts = result["parts"]
    for lines in (
        step_table(parts["steps"]["tables"][0]["rows"]), update_table(parts["update"]["tables"][0]["rows"]),
        growth_table(parts["growth"]["rows"])
    ):
        assert "\n".join(lines) in page
    for line, row in zip(growth_table(parts["growth"]["rows"])[2:], parts["growth"]["rows"], strict=True):
        assert line.endswith(f"| {number(min(row['seconds']))} | {number(row['peak_bytes'] / MIB)} |")


def test_tables_name_the_fastest_and_the_smallest_peer():
    def row(engine: str, seconds: float, peak: int) -> dict:
        return {"engine": engine, "why": None, "seconds": [seconds, seconds, 9 * seconds], "parts": {}, "early": 0,
                "total_bytes": 2 * peak, "held_bytes": peak, "peak_bytes": peak}

    rows = [row("ours", 2.0, 10 * MIB), row("TRL", 8.0, 90 * MIB), row("TRL, few", 9.0, 30 * MIB),
            {"engine": "TRL, Liger", "why": "raises RuntimeError"}]
    ours, fastest, smallest, failed = step_table(rows)[2:]
    assert ours.startswith("| ours | 2 | 18 | 1 |")
    assert fastest.startswith("| TRL | **8** | 72 | **4** |") and "| 90 | 9 | 0 |" in fastest
    assert smallest.startswith("| TRL, few | 9 | 81 | 4.5 |") and "| **30** | **3** | 0 |" in smallest
    assert failed.startswith("| TRL, Liger | raises RuntimeError |") and failed.count("|") == ours.count("|")


def test_one_part_anew_keeps_the_others(data, written, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "measure", in_this_process)
    (tmp_path / "step.json").write_text(json.dumps(written[1]))
    main(["--data", data, "--output_dir", str(tmp_path), "--parts", "growth"], PLAN)
    parts = json.loads((tmp_path / "step.json").read_text())["parts"]
    assert {name: parts[name] == part for name, part in written[1]["parts"].items()} == {
        "steps": True, "update": True, "growth": False}
    assert (tmp_path / "step.md").read_text().count("--parts growth") == 1


@pytest.mark.parametrize("change, says", [
    ({"lengths": [4, 4, 4]}, "3 rows instead of 4"),
    ({"prompt_lengths": [5, 5, 7, 8]}, "read prompts of"),
    ({"lengths": [4, 4, 4, 2]}, "sampled 14 tokens instead of 16"),
    ({"lengths": [4, 4, 3, 5]}, "sampled 16 tokens instead of 16"),
    ({"rewards": [0.0, 1.0, 0.5, 0.5]}, "equal rewards"),
])
def test_less_work_than_asked_is_no_result(change, says):
    check(STEP, CASE, [5, 7])
    with pytest.raises(RuntimeError, match=says):
        check(STEP._replace(**change), CASE, [5, 7])


@pytest.mark.parametrize("num_steps, last, says", [
    (3, {"grad_norm": 0.0, "kl": 0.1}, "did not move"), (3, {"grad_norm": 1.0, "kl": 0.0}, "did not move"),
    (2, {"grad_norm": 1.0, "kl": 0.1}, "2 steps instead of 3")])
def test_a_trainer_that_does_not_train_is_no_result(num_steps, last, says):
    def run(case, observe):
        for _ in range(num_steps):
            observe(STEP)
        return last

    with pytest.raises(RuntimeError, match=says):
        measure_steps(Trainer("", lambda: None, run), CASE, [5, 7])


def test_a_step_is_charged_with_its_own_memory_and_not_with_the_first_steps():
    def run(case, observe):
        for size in (64, 16, 16):
            torch.ones(size * MIB // 4).sum()
            observe(STEP)
        return {"grad_norm": 1.0, "kl": 0.1}

    row = measure_steps(Trainer("", lambda: None, run), CASE, [5, 7])
    assert 15 * MIB < row["peak_bytes"] < 24 * MIB and len(row["seconds"]) == 2


def test_without_trl_nothing_is_measured(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "__init__", None)
    for python in ("/nowhere/python", sys.executable):
        if ask_peer(python) is not None:
            continue
        with pytest.raises(SystemExit) as exit_:
            main(["--data", data, "--output_dir", str(tmp_path / "out"), "--peer-python", python])
        assert exit_.value.code == 2 and "cannot import TRL" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def test_ready_prompts_are_refused(tmp_path, capsys):
    rows = [{"prompt": f"{n} + {n} =", "answer": str(2 * n)} for n in range(20)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as exit_:
        main(["--data", str(tmp_path), "--output_dir", str(tmp_path / "out")], PLAN)
    assert exit_.value.code == 2 and "has ready prompts" in capsys.readouterr().err.splitlines()[-1]


def test_every_peer_is_asked_once_and_the_leanest_in_every_case():
    assert len(LEAN) == 1 and "checkpointed" in LEAN[0] and set(LEAN) < set(PEERS) < set(TRAINERS)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed here")
def test_trl_does_the_same_work(data, tmp_path):
    bench = Bench(tmp_path, data, PLAN, threads=1, peer_python=sys.executable)
    for engine in PEERS:
        if "Liger" in engine:  # it needs a GPU
            continue
        (row,) = bench.measure("steps", engine, [bench.step_case(1, 4)])
        assert row["why"] is None and row["tokens"] == 2 * 8 * 6 and row["early"] == 0, row
        assert row["grad_norm"] > 0 and row["kl"] > 0 and set(row["parts"]) == {"rollout_s", "reference_s", "update_s"}
