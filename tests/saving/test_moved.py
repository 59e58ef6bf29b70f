"""A run goes on where its folder, its model or its data lie elsewhere, and not where they are others. 9 seconds."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from fault_runs import lines, numbers, texts
from refusals import refused, save_small_run, small_run
from safetensors.torch import load_file, save_file
from tiny_models import CHAT_TEMPLATE, tiny_qwen2, tiny_tokenizer

import train
from data import load_examples
from data.example import Example
from grpo.config import Config
from grpo.loading.fingerprint import fingerprint
from grpo.options.surroundings import READ
from grpo.run.command import load
from grpo.saving import content, continuation

pytestmark = pytest.mark.usefixtures("one_pool")

TENSOR = "model.layers.0.mlp.up_proj.weight"
SOURCES = {"data": {"num_examples": 1, "sha256": "of prompts"}, "adapter": None,
           "content": {name: f"of {name}" for name in continuation.WHAT}}
EXAMPLE = Example(question="2 + 2", answer="", final_answer="4", prompt="2 + 2 =", columns={"level": 1})


def edited(file: str, **changed: object) -> Callable[[Path], None]:
    """Some settings of a JSON file are others."""
    def edit(model: Path) -> None:
        (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | changed))
    return edit


def moved(share: float) -> Callable[[Path], None]:
    """A part of one matrix's numbers, at random places, is others."""
    def edit(model: Path) -> None:
        held = load_file(model / "model.safetensors")
        where = torch.rand(held[TENSOR].shape, generator=torch.Generator().manual_seed(0)) < share
        held[TENSOR] = torch.where(where, held[TENSOR] + 1e-3, held[TENSOR])
        save_file(held, model / "model.safetensors", metadata={"format": "pt"})
    return edit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moved") / "model"
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("edit", [
    moved(0.001), edited("config.json", rms_norm_eps=1e-5), edited("generation_config.json", eos_token_id=2),
    lambda model: (model / "generation_config.json").unlink(),
], ids=["one weight in a thousand", "a setting", "another end", "no end"])
def test_another_model_has_another_fingerprint(model: Path, tmp_path: Path, edit: Callable[[Path], None]) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    assert fingerprint(str(other), revision="main") == fingerprint(str(model), revision="main")
    edit(other)
    assert fingerprint(str(other), revision="main") != fingerprint(str(model), revision="main")


def test_a_model_written_again_in_several_files_by_another_version_has_the_same_fingerprint(
    model: Path, tmp_path: Path
) -> None:
    tiny_qwen2(num_hidden_layers=1).save_pretrained(tmp_path, max_shard_size="50KB")
    edited("config.json", transformers_version="9.0", _name_or_path="elsewhere")(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert fingerprint(str(tmp_path), revision="main") == fingerprint(str(model), revision="main")


def test_a_hub_that_does_not_answer_is_no_hub_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.loading.fingerprint.is_offline_mode", lambda: False)  # though nothing can be fetched
    with pytest.raises(ValueError, match="model_name_or_path='somebody/model' cannot be loaded"):
        fingerprint("somebody/model", revision="main")


@pytest.mark.parametrize("changed", [
    {"final_answer": "5"}, {"prompt": "2 + 3 ="}, {"columns": {"level": 2}}, {"columns": {}}], ids=str)
def test_rows_with_another_prompt_answer_or_column_have_another_fingerprint(changed: dict) -> None:
    assert content.of_examples([EXAMPLE]) != content.of_examples([replace(EXAMPLE, **changed)])


def test_the_same_rows_in_another_file_have_the_same_fingerprint(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} + 1 =", "final_answer": str(number + 1), "level": number} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps([dict(reversed(row.items())) for row in rows], indent=2))
    found = [content.of_examples(load_examples(str(tmp_path / name), "train", num_shots=0, seed=0))
             for name in ("a.jsonl", "b.json")]
    assert found[0] == found[1]
    examples = load_examples(str(tmp_path / "a.jsonl"), "train", num_shots=0, seed=0)
    assert content.of_examples(examples[::-1]) != found[0], "their order decides what a step gets"


def test_what_only_tables_have_counts_and_a_place_in_memory_does_not() -> None:
    def of(value: object) -> str:
        return content.of_examples([replace(EXAMPLE, columns={"extra": value})])

    assert of(date(2024, 1, 1)) != of(date(2024, 1, 2)) and of(b"a") != of(b"b")
    assert of(object()) == of(object())


def test_another_tokenizer_has_another_fingerprint() -> None:
    tokenizer, other, chat = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    other.add_tokens(["<more>"])
    chat.chat_template = CHAT_TEMPLATE
    found = [content.of_tokenizer(one, [[5, 6], [7]]) for one in (tokenizer, other, chat, tiny_tokenizer())]
    assert len(set(found)) == 3 and found[0] == found[3]
    assert content.of_tokenizer(tokenizer, [[5], [6, 7]]) != found[0], "prompts that became other tokens"


def resume(name: str, now: str, *, changed: bool = False, old: bool = False) -> None:
    """Go on with another value of an option, and perhaps with what has other content; `old` checkpoints tell none."""
    read = SOURCES | {"content": SOURCES["content"] | ({name: "of another"} if changed else {})}
    then = continuation.facts(Config(), SOURCES, 3)
    if old:
        del then["content"]
    continuation.check(Path("step-3"), then, replace(Config(), **{name: now}), read)


@pytest.mark.parametrize("name", continuation.WHAT)
def test_a_path_may_change_and_what_it_holds_may_not(name: str) -> None:
    own = getattr(Config(), name)
    part = continuation.INSTEAD.get(name, name)  # where a tokenizer and held-out problems come from without a path
    was, told = (own, name) if own is not None else (getattr(Config(), part), part)
    resume(name, "elsewhere")
    for now, words in (("elsewhere", f"{name}='elsewhere'"), (own, f"{told}={was!r}")):
        with pytest.raises(ValueError) as error:
            resume(name, now, changed=True)
        assert str(error.value) == (
            f"resume=True with another {continuation.WHAT[name]} than step-3: what {words} holds is not what the run "
            f"read from {was!r}; nearest valid value: the {continuation.WHAT[name]} of then")


@pytest.mark.parametrize(("name", "now"), [("model_revision", "abc"), ("dataset_config", "main")])
def test_a_part_of_a_name_may_change_where_what_it_held_is_known(name: str, now: str) -> None:
    resume(name, now)
    with pytest.raises(ValueError, match=f"another recipe than step-3: {name} "):
        resume(name, now, old=True)


@pytest.mark.parametrize("name", continuation.WHAT)
def test_of_an_older_checkpoint_only_the_path_is_known(name: str) -> None:
    was = getattr(Config(), name)
    resume(name, was, old=True)
    with pytest.raises(ValueError, match=f"resume=True with {name}='elsewhere': step-3 was written by a version that "):
        resume(name, "elsewhere", old=True)


def test_a_start_adapter_may_lie_elsewhere() -> None:
    read = SOURCES | {"adapter": "of its files"}
    then = continuation.facts(replace(Config(), adapter_name_or_path="a"), read, 3)
    continuation.check(Path("step-3"), then, replace(Config(), adapter_name_or_path="b"), read)
    with pytest.raises(ValueError, match="another adapter than step-3"):
        continuation.check(Path("step-3"), then, Config(), SOURCES)


def test_every_path_is_compared_by_what_it_holds() -> None:
    held_out = [replace(EXAMPLE, final_answer="5")]
    read = continuation.sources(Config(), [EXAMPLE], held_out, tiny_tokenizer(), [[5, 6]], "of its files")
    assert read["content"] == {
        "model_name_or_path": "of its files",
        "tokenizer_name_or_path": content.of_tokenizer(tiny_tokenizer(), [[5, 6]]),
        "train_dataset_id_or_path": content.of_examples([EXAMPLE]),
        "test_dataset_id_or_path": content.of_examples(held_out)}
    assert {*READ} == {*continuation.WHAT, "adapter_name_or_path"} == {*read["content"], "adapter_name_or_path"}


def run(folder: Path, **changed: object) -> list[str]:
    """Three steps, saved after each, and evaluated after every third."""
    held = {"test_dataset_id_or_path": folder / "data.json", "eval_examples": 2, "num_generations_eval": 0,
            "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    return small_run(folder, **{"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "load_in_4bit": False,
                                "lr_scheduler_type": "constant", "learning_rate": 1e-2, "torch_dtype": "float32",
                                **held, **changed})


def test_a_run_copied_to_another_machine_with_its_model_and_data_is_the_run_that_stayed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    save_small_run(here)
    reward = tmp_path / "reward.py"
    reward.write_text("def nothing(completions, **_): return [0.0] * len(completions)\n")
    assert train.main(run(here, reward_funcs=["format", "correctness", f"{reward}:nothing"])) == 0
    shutil.copytree(here / "out", there / "run")
    shutil.copytree(here / "model", there / "weights")
    shutil.copy(here / "data.json", there / "rows.json")
    for step in (2, 3):
        shutil.rmtree(there / "run" / "checkpoints" / f"step-{step}")
    shutil.move(here, tmp_path / "gone")
    paths = ["--model_name_or_path", str(there / "weights"), "--train_dataset_id_or_path", str(there / "rows.json"),
             "--test_dataset_id_or_path", str(there / "rows.json")]
    command = ["--config", str(there / "run" / "config.yaml"), "--resume", *paths]

    rows = (there / "rows.json").read_text()
    (there / "rows.json").write_text(rows.replace('"final_answer": "1"', '"final_answer": "2"', 1))
    said = refused(train.main, command, there / "weights", capsys)
    assert "another training dataset than" in said and "step-1" in said
    (there / "rows.json").write_text(rows)
    moved(1.0)(there / "weights")
    assert "another model than" in refused(train.main, command, there / "weights", capsys)
    shutil.copy(tmp_path / "gone" / "model" / "model.safetensors", there / "weights")

    with reward.open("a") as file:
        file.write("# another file\n")
    assert train.main(command) == 0
    said = capsys.readouterr().out
    assert f"{reward} is not the file it was: from here on rewards are those of the new one" in said
    assert f"output_dir={there / 'run'}: the run's {there / 'run' / 'config.yaml'} lies there, and says {here}" in said
    whole, moved_on = tmp_path / "gone" / "out", there / "run"
    assert numbers(whole) == numbers(moved_on) and texts(whole) == texts(moved_on)
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-3/state.safetensors"):
        assert (whole / name).read_bytes() == (moved_on / name).read_bytes()
    assert not here.exists()

    # Two steps more, which a constant rate allows; nothing was right, so the best step is the one that was the last.
    assert train.main([*command, "--max_steps", "5"]) == 0
    assert [row["step"] for row in lines(moved_on / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in lines(moved_on / "evaluation" / "metrics.jsonl")] == [0, 3, 5]
    summary = json.loads((moved_on / "summary.json").read_text())
    assert (summary["steps"], summary["exported_step"]) == (5, 3)


def test_a_config_of_a_run_that_is_not_resumed_or_has_a_folder_given_says_where_it_writes(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-1").mkdir(parents=True)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    file = tmp_path / "run" / "config.yaml"
    Config(output_dir=str(tmp_path / "gone")).save(file)
    given = ["--config", str(file)]
    assert load(given).output_dir == str(tmp_path / "gone")
    assert load([*given, "--resume"]).output_dir == str(tmp_path / "run")
    assert load([*given, "--resume", "--output_dir", str(tmp_path / "other")]).output_dir == str(tmp_path / "other")
    mine = tmp_path / "other" / "mine.yaml"  # a recipe of any other name is nobody's run
    shutil.copy(file, mine)
    with pytest.raises(ValueError, match="needs a checkpoint, and output_dir=.*gone' holds none"):
        load(["--config", str(mine), "--resume"])
