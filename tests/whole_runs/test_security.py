"""Files from elsewhere and texts of a model are data: nothing of them is run, and a run writes to its folder alone.

20 seconds, most of it one run in a home of its own, which SIGTERM stops.
"""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from fault_runs import lines
from faults import torchrun
from peft import LoraConfig, get_peft_model
from refusals import refused, save_small_run, small_run, snapshot
from tiny_models import tiny_qwen2

import eval as evaluation_command
import train
from grpo.config import Config
from grpo.evaluation.answers import Answer, answers_path, load_answers, save_answers
from grpo.options.refusal import spelled_out
from grpo.report import page
from grpo.report.log import Log
from grpo.saving.sealed_folder import damage

ROOT = Path(__file__).parents[2]
HOSTILE = "</pre><script>alert(\"'\")</script>\0\x1b[2J\x9b31m\u202e\u2028\ud800 <b>#### 1"
UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ud800-\udfff]")
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth")


class Hostile:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security")
    save_small_run(folder)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_qwen2(num_hidden_layers=1), lora).save_pretrained(folder / "adapter")
    return folder


def plant(folder: Path, marker: Path) -> None:
    for name in PICKLES:
        torch.save(Hostile(marker), folder / name)


def test_a_hostile_pickle_in_a_model_or_adapter_folder_is_never_opened(folder, tmp_path, capsys) -> None:
    torch.save(Hostile(tmp_path / "live"), tmp_path / "live.bin")
    torch.load(tmp_path / "live.bin", weights_only=False)
    assert (tmp_path / "live").is_dir(), "the pickle does what it says"
    marker = tmp_path / "ran"
    for name, option, file in (("model", "model_name_or_path", "model.safetensors"),
                               ("adapter", "adapter_name_or_path", "adapter_model.safetensors")):
        copy = shutil.copytree(folder / name, tmp_path / name)
        (copy / file).unlink()
        plant(copy, marker)
        line = refused(train.main, small_run(folder, **{option: copy}), tmp_path, capsys)
        assert line.startswith(f"error: {option}=") and file in line
        argv = ["--model", str(folder / "model"), f"--{name}", str(copy), "--data", str(folder / "data.json")]
        assert file in refused(evaluation_command.main, [*argv, "--split", "train"], tmp_path, capsys)
    listed = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (tmp_path / "model" / "pytorch_model.bin.index.json").write_text(json.dumps(listed))
    refused(train.main, small_run(folder, model_name_or_path=tmp_path / "model"), tmp_path, capsys)
    assert not marker.exists()


def test_no_file_of_the_project_unpickles_what_it_did_not_write_itself() -> None:
    # The trainer hands rows to the process that scores them as a pickle; what comes back is JSON.
    own = ROOT / "rewards" / "workers"
    handed_over = {own / "pool.py": "pickle.dumps", own / "runner.py": "pickle.loads(request)"}
    sources = [path for part in ("*.py", "grpo/**/*.py", "data/**/*.py", "rewards/**/*.py", "kernels/**/*.py")
               for path in ROOT.glob(part)]
    assert len(sources) > 90
    for path in sources:
        found = re.findall(r"torch\.load\(|pickle\.\w+(?:\(request\))?|weights_only|allow_pickle", path.read_text())
        assert found == ([handed_over[path]] if path in handed_over else []), path


@pytest.mark.parametrize("file, settings", [
    ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}),
    ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}, "model_type": "evil"}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}, "tokenizer_class": "C"}),
])
def test_code_that_comes_with_a_model_is_refused_and_not_run(folder, tmp_path, capsys, file, settings) -> None:
    model = shutil.copytree(folder / "model", tmp_path / "model")
    (model / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass C: pass\n")
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | settings))
    for command, argv in (
        (train.main, small_run(folder, model_name_or_path=model)),
        (evaluation_command.main, ["--model", str(model), "--data", str(folder / "data.json"), "--split", "train"]),
    ):
        line = refused(command, argv, tmp_path, capsys)
        assert re.match(r"error: (model|tokenizer)_name_or_path=", line) and "code" in line
    assert not (tmp_path / "ran").exists()


def test_a_models_text_stays_text_on_every_page_and_in_every_file(tmp_path) -> None:
    answer = Answer(index=0, question=HOSTILE, final_answer=HOSTILE, completion=HOSTILE, strict=False, lenient=True,
                    format=False, truncated=False)
    for when in ("before", "after"):
        save_answers([answer], answers_path(tmp_path, "greedy", when))
        assert load_answers(answers_path(tmp_path, "greedy", when)) == [answer]
    log = Log(tmp_path, report_to=[], total_steps=1, first_step=0, settings=asdict(Config()))
    log.write_completions(0, {"question": [HOSTILE], "completion": [HOSTILE], "reward": [0.0]})
    log.close()
    (row,) = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_bytes().split(b"\n")[:-1]]
    assert row["completion"] == row["question"] == HOSTILE
    config = asdict(Config()) | {
        "model_name_or_path": "<b>", "train_dataset_id_or_path": "<script>", "reward_funcs": [HOSTILE]}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    settings = evaluation_command.Settings(model="<script>", data="</table><script>", output=str(tmp_path))
    answers = {("model", 0): [answer]}
    evaluation_command.write(settings, answers, evaluation_command.records_of(answers), evaluation_command.provenance())
    for path in (page.write_report(tmp_path), tmp_path / "eval.html"):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text and "<b>" not in text and "&lt;script&gt;" in text
        assert text.count("<pre>") == text.count("</pre>")
        assert not UNSEEN.search(text)
    assert r"\x00\x1b[2J\x9b31m\u202e\u2028\ud800" in (tmp_path / "report.html").read_text()


def test_what_a_terminal_would_act_on_is_spelled_out(folder, tmp_path, capsys) -> None:
    assert spelled_out("Grüße, 数 – \u3000ok\x1b]0;\a\r\n\ud800") == "Grüße, 数 – \u3000ok" + r"\x1b]0;\x07\r\n\ud800"
    assert spelled_out("a\n\tb\0", keep="\n\t") == "a\n\tb" + r"\x00"
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({HOSTILE: 1}) + "\n")
    line = refused(train.main, small_run(folder, train_dataset_id_or_path=data), tmp_path, capsys)
    assert r"\x1b[2J" in line and not UNSEEN.search(line)


class Stopped(NamedTuple):
    """A run under torchrun, in a home of its own and without a compiler, that was stopped by SIGTERM."""

    place: Path  # everything that it may see
    ranks: list[psutil.Process]
    written: list[str]  # files and folders that are new or another, from the place


@pytest.fixture(scope="module")
def stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    place = tmp_path_factory.mktemp("stopped")
    for name in ("home", "work", "tmp"):
        (place / name).mkdir()
    for name in ("model", "adapter"):
        plant(shutil.copytree(folder / name, place / name), place / "ran")
    shutil.copy(folder / "data.json", place)
    homes = {name: value for name, value in os.environ.items() if not re.match("HF_|XDG_|TRITON_|TORCH|MPL", name)}
    environment = {**homes, "HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "HF_HUB_OFFLINE": "1",
                   "PYTHONDONTWRITEBYTECODE": "1", "PATH": str(place / "empty"), "CC": "", "CXX": "",
                   "TORCH_EXTENSIONS_DIR": str(place / "extensions")}
    before = snapshot(place)
    up = Path("..", "work", "..")
    changed = {"model_name_or_path": up / "model", "adapter_name_or_path": up / "adapter", "eval_examples": 2,
               "train_dataset_id_or_path": up / "data.json", "test_dataset_id_or_path": up / "data.json",
               "output_dir": "run", "save_strategy": "no", "max_steps": 1000}
    process, ranks = torchrun(place / "work" / "run", *small_run(place, **changed), num_ranks=1, cwd=place / "work",
                              env=environment)
    process.terminate()
    process.communicate()
    after = snapshot(place)
    return Stopped(place, ranks, sorted(
        path.relative_to(place).as_posix() for path in after
        if before.get(path) != after[path] and not (path in before and path.is_dir())))


def test_a_run_writes_to_its_folder_alone_and_opens_no_pickle(stopped: Stopped) -> None:
    assert not (stopped.place / "ran").exists()
    assert "work/run/report.html" in stopped.written
    # torch's compiler makes a folder when it is imported, Triton keeps kernels, and torchrun keeps its ranks' errors.
    others = r"home/\.triton.*|tmp/torch(inductor|elastic)_.*"
    assert [path for path in stopped.written if not re.fullmatch(rf"work/run(/.*)?|{others}", path)] == []


def test_sigterm_to_torchrun_saves_before_it_ends_and_without_a_compiler_none_is_needed(stopped: Stopped) -> None:
    assert not any(rank.is_running() for rank in stopped.ranks)
    run = stopped.place / "work" / "run"
    (saved,) = (run / "checkpoints").iterdir()
    assert not damage(saved) and saved.name == f"step-{len(lines(run / 'metrics.jsonl'))}"
