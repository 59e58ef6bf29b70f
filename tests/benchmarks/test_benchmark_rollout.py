"""benchmarks.rollout at a tiny size: every engine does the work it is timed for, and the page says what was measured.

10 seconds.
"""

import functools
import json
import math

import pytest
import torch
from tiny_models import tiny_qwen2, tiny_tokenizer

from benchmarks.record import number
from benchmarks.rollout import worker
from benchmarks.rollout.bench import Bench, Plan, main
from benchmarks.rollout.page import engine_table, markdown, real_table
from benchmarks.rollout.peers import ENGINES, Case, Engine, Sampled
from benchmarks.rollout.worker import Memory, check, measure, run

MIB = 2**20
PLAN = Plan(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=512, num_shots=1, num_generations=2, peers=("dynamic cache", "continuous batching"), peer_prompts=(2,),
    peer_tokens=3, refill_prompts=4, refill_batch=2, refill_tokens=12, stop_probability=1 / 6,
    growth_shots=(0, 1), growth_generations=(1, 2), growth_prompts=2, growth_tokens=3, repeats=2, real_shots=(0,),
    real_rows=(1, 2), real_tokens=3,
    wide_hidden_size=64, wide_intermediate_size=128, wide_num_attention_heads=2, wide_num_hidden_layers=1)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20], [5, 6, 7, 30, 31, 32, 33, 34, 35]]
CASE = Case(PROMPTS, [0, 1, 2], num_generations=2, max_new_tokens=5, stop_ids=[], temperature=0)


def in_this_process(bench, engine, cases, model="small", repeats=1):
    """What `Bench.measure` does, without the seconds that a new process needs to begin."""
    job, result = bench.folder / "job.json", bench.folder / "result.json"
    job.write_text(json.dumps({
        "folder": str(bench.folder / model), "engine": engine, "cases": cases, "repeats": repeats, "enough_s": 1,
        "threads": 1}))
    worker.main(str(job), str(result))
    return json.loads(result.read_text())


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
    """(folder, the JSON read back, the Markdown) of one run on the CPU."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(Bench, "measure", in_this_process)
        main(["--data", data, "--output_dir", str(folder)], PLAN)
    return folder, json.loads((folder / "rollout.json").read_text()), (folder / "rollout.md").read_text()


def tables(result):
    """The lists of rows that the page shows as tables of engines."""
    parts = result["parts"]
    return [*(table["rows"] for table in parts["peers"]["tables"]), parts["peers"]["forms"], parts["refill"]["rows"]]


def test_every_engine_has_its_numbers(written):
    result = written[1]
    assert [row["engine"] for row in tables(result)[0]] == ["ours", *PLAN.peers]
    for row in [row for rows in tables(result) for row in rows] + result["parts"]["growth"]["rows"]:
        assert row["why"] is None, row
        assert math.isfinite(row["tokens_per_s"]) and row["tokens_per_s"] > 0
        assert row["occupancy"] is None or 0 < row["occupancy"] <= 1
    assert [row["why"] for row in result["parts"]["growth"]["small_rows"]] == [None] * 4
    assert [len(row["seconds"]) for row in result["parts"]["growth"]["rows"]] == [2] * 4
    assert all(row["tokens"] == 2 * 2 * 3 for row in tables(result)[0])


def test_refilling_changes_no_completion_and_wastes_fewer_slots(written):
    refilled, batched, *_ = tables(written[1])[-1]
    assert refilled["digest"] == batched["digest"] and refilled["tokens"] == batched["tokens"]
    assert refilled["occupancy"] > batched["occupancy"]


def test_page_says_what_the_json_says(written):
    folder, result, page = written
    assert markdown(result) == page and (folder / "rollout.png").stat().st_size > 1000
    assert "GPU: not measured" in page and "`python -m benchmarks.rollout --data FOLDER --threads 1`" in page
    for rows in tables(result):
        lines = engine_table(rows)
        assert "\n".join(lines) in page
        peers = [row for row in rows if not row["engine"].startswith("ours")]
        fastest = [max(peers, key=lambda row: row["tokens_per_s"])] if peers else []
        for line, row in zip(lines[2:], rows, strict=True):
            assert line.startswith(f"| **{row['engine']}** |" if row in fastest else f"| {row['engine']} |")
            assert f"| {number(row['tokens_per_s'])} | {number(row['peak_bytes'] / MIB)} |" in line


def test_one_part_anew_keeps_the_others(data, written, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "measure", in_this_process)
    (tmp_path / "rollout.json").write_text(json.dumps(written[1]))
    main(["--data", data, "--output_dir", str(tmp_path), "--parts", "growth"], PLAN)
    parts = json.loads((tmp_path / "rollout.json").read_text())["parts"]
    assert {name: parts[name] == part for name, part in written[1]["parts"].items()} == {
        "peers": True, "refill": True, "growth": False}
    assert (tmp_path / "rollout.md").read_text().count("--parts growth") == 1


def test_a_step_of_a_real_model_is_compared_by_its_rows(data, written, tmp_path, monkeypatch, capsys):
    tiny_qwen2(num_hidden_layers=1).save_pretrained(tmp_path / "mine")
    tiny_tokenizer().save_pretrained(tmp_path / "mine")
    monkeypatch.setattr(Bench, "measure", in_this_process)
    (tmp_path / "rollout.json").write_text((written[0] / "rollout.json").read_text())
    options = ["--data", data, "--output_dir", str(tmp_path), "--parts", "real"]
    main([*options, "--model", str(tmp_path / "mine")], PLAN)
    part = json.loads((tmp_path / "rollout.json").read_text())["parts"]["real"]
    assert [row["rows"] for row in part["rows"]] == [1, 2] and part["name"] == "mine"
    for row in part["rows"]:
        for one in (row["ours"], row["peer"]):
            best = min(whole - read for whole, read in zip(one["seconds"], one["prefills"], strict=True))
            assert one["tokens"] == 3 * row["rows"] and one["step_s"] == best / 3 > 0
    page = (tmp_path / "rollout.md").read_text()
    assert "\n".join(real_table(part["rows"])) in page and "mine: hidden size 64, 1 layers, vocabulary 320" in page
    with pytest.raises(SystemExit):
        main(options, PLAN)
    assert "--parts real: needs --model FOLDER" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with wide weights, so that a wrong mask or position changes the most likely token."""
    folder = tmp_path_factory.mktemp("model")
    tiny_qwen2(pad_token_id=0, eos_token_id=None, bos_token_id=None).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def greedy(folder):
    engine = ENGINES["ours"]
    return engine.run(engine.load(folder, "cpu"), CASE).tokens


@pytest.mark.parametrize("name, at_once", [
    ("dynamic cache", None), ("dynamic cache, prompts read once", None), ("static cache", None),
    ("continuous batching", 2), ("ours", 2)])
def test_every_engine_continues_with_the_same_most_likely_tokens(folder, greedy, name, at_once):
    """All but the compiled one, which takes seconds of a C++ compiler."""
    engine, case = ENGINES[name], CASE._replace(at_once=at_once)
    loaded = engine.load(folder, "cpu")
    assert run(engine, loaded, case, batch=None).tokens == greedy
    stopping = case._replace(stop_ids=[greedy[0][2], greedy[2][3]])
    cut = run(engine, loaded, stopping, batch=2)
    check(cut, stopping)
    assert min(map(len, cut.tokens)) < 5 and all(row == full[: len(row)] for row, full in zip(cut.tokens, greedy))
    assert len({row[0] for row in greedy}) > 1, "the prompts should tell"


def test_lora_merged_and_beside_agree_and_are_not_nothing(folder, greedy):
    found = []
    for name in ("ours, LoRA merged", "ours, LoRA beside"):
        engine = ENGINES[name]
        found.append(engine.run(engine.load(folder, "cpu"), CASE).tokens)
    assert found[0] == found[1] != greedy


@pytest.mark.parametrize("tokens, says", [
    ([[7] * 4], "gave 1 rows instead of 2"),
    ([[7] * 4, [7] * 3], "row of 3 tokens that neither ended nor was cut"),
    ([[7] * 4, [7] * 5], "row of 5 tokens"),
    ([[7] * 4, []], "row of 0 tokens"),
    ([[7] * 4, [7, 1, 7, 7]], "went on after a stop token"),
])
def test_less_work_than_asked_is_no_result(tokens, says):
    case = CASE._replace(prompts=[[5]], prompt_index=[0], max_new_tokens=4, stop_ids=[1])
    check(Sampled([[7] * 4, [7, 1]], []), case)
    with pytest.raises(RuntimeError, match=says):
        check(Sampled(tokens, []), case)


def test_peak_memory_is_what_a_run_adds_whether_it_is_kept_or_not():
    memory = Memory("cpu")
    ones = torch.ones(16 * MIB)
    del ones
    assert 60 * MIB < memory.peak() < 80 * MIB
    memory.restart()
    assert memory.peak() < 20 * MIB


def test_as_many_runs_as_are_worth_it():
    calls = []

    def continue_(loaded, case):
        calls.append(case)
        return Sampled([[7] * case.max_new_tokens] * (len(case.prompts) * case.num_generations), [])

    engine = Engine("", lambda folder, device: None, continue_)
    timed = functools.partial(measure, engine, None, CASE, batch=None, device="cpu")
    assert len(timed(repeats=3, enough_s=60)["seconds"]) == 3 and len(calls) == 4
    assert len(timed(repeats=3, enough_s=1e-9)["seconds"]) == 1
    row = measure(engine._replace(compiles=True), None, CASE, batch=None, repeats=1, enough_s=1, device="cpu")
    assert row["first_s"] > 0 and calls[-3:] == [calls[0], CASE, CASE]


def test_an_engine_runs_in_its_own_process_and_one_that_fails_has_a_reason(data, tmp_path):
    bench = Bench(tmp_path, data, PLAN, threads=1)
    good = bench.case(2, 2, 3)
    first, second, third = bench.measure("dynamic cache", [good, good | {"prompts": [[]]}, None])
    assert first["why"] is None and first["tokens"] == 12
    assert second["why"].startswith("raises ") and "seconds" not in second
    assert third == {"why": "its process ends with exit code 1"}


def test_ready_prompts_are_refused(tmp_path, capsys):
    rows = [{"prompt": f"{n} + {n} =", "answer": str(2 * n)} for n in range(20)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as exit_:
        main(["--data", str(tmp_path), "--output_dir", str(tmp_path / "out")], PLAN)
    assert exit_.value.code == 2 and "has ready prompts" in capsys.readouterr().err.splitlines()[-1]
