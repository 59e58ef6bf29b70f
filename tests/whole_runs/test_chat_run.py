"""A whole run on conversations: a tiny model with a chat template, its held-out problems, eval.py. 15 seconds.

The template ends a turn with <end>, and the tokenizer's own end is <eos>: so it is with Qwen2.5's base models.
"""

import json
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, tiny_qwen2, tiny_tokenizer
from transformers import AutoTokenizer

import eval as evaluation_command
import grpo.evaluation.answers
import grpo.step
import train
from grpo.run.parts import Run

EOS, END = 1, 2
SYSTEM = "Answer in one word."
VARIABLES = {"enable_thinking": False}
CHAT = ["--answer_column", "reward_model.ground_truth", "--system_prompt", SYSTEM, "--chat_template", CHAT_TEMPLATE,
        "--chat_template_kwargs", json.dumps(VARIABLES), "--max_completion_length", "32"]
# A user's own, as written for TRL: it fails on anything but conversations.
REWARD = """
def vowels(prompts, completions, completion_ids, extra_info, **columns):
    assert all(not {1, 2} & {*ids[:-1]} and (len(ids) == 32 or ids[-1] in (1, 2)) for ids in completion_ids)
    for prompt, completion, extra in zip(prompts, completions, extra_info):
        assert [message["role"] for message in prompt] == ["system", "user"], prompt
        assert prompt[1]["content"].endswith(f"{extra['index']}?"), prompt
        assert completion[0].keys() == {"role", "content"} and completion[0]["role"] == "assistant", completion
        assert "<end>" not in completion[0]["content"] and "<eos>" not in completion[0]["content"], completion
    return [sum(letter in "aeiou" for letter in one[0]["content"]) / 9 for one in completions]
"""


def row(number: int) -> dict:
    """As verl writes it."""
    return {"data_source": "made up", "prompt": [{"role": "user", "content": f"What is 2 + {number}?"}],
            "reward_model": {"style": "rule", "ground_truth": str(2 + number)}, "extra_info": {"index": number}}


def messages(number: int) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, *row(number)["prompt"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_qwen2(num_hidden_layers=2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "rewards.py").write_text(REWARD)
    for name, numbers in (("train", range(20)), ("test", range(20, 24))):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row(number)) for number in numbers))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, begin) -> Run:
    return begin(
        "--model_name_or_path", str(folder / "model"), "--train_dataset_id_or_path", str(folder / "train.jsonl"),
        "--test_dataset_id_or_path", str(folder / "test.jsonl"), "--output_dir", str(folder / "out"), *CHAT,
        "--reward_funcs", f"{folder / 'rewards.py'}:vowels", "correctness", "--prompts_per_step", "4",
        "--num_generations", "4", "--max_steps", "5", "--learning_rate", "1e-3", "--load_in_4bit", "false",
        "--zero_stage", "0", "--save_strategy", "no")


@pytest.fixture(scope="module")
def sampled(run: Run) -> dict[str, list]:
    """The rollouts of the training and of the evaluation, from a run to its end."""
    rollouts: dict[str, list] = {"step": [], "answers": []}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in (("step", grpo.step), ("answers", grpo.evaluation.answers)):
            def watched(*args, _generate=module.generate, _kept=rollouts[name], **options):
                _kept.append(_generate(*args, **options))
                return _kept[-1]
            patch.setattr(module, "generate", watched)
        assert train.follow(run)
    return rollouts


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_sampled_prompts_are_those_of_the_chat_template_token_for_token(folder: Path, sampled: dict) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def expected(numbers: range) -> list[list[int]]:
        return [tokenizer.apply_chat_template(
            messages(number), chat_template=CHAT_TEMPLATE, add_generation_prompt=True, **VARIABLES)["input_ids"]
            for number in numbers]

    trained, tested = expected(range(20)), expected(range(20, 24))
    assert len(sampled["step"]) == 5 and all(len(rollout.prompt_ids) == 4 for rollout in sampled["step"])
    assert all(prompt in trained for rollout in sampled["step"] for prompt in rollout.prompt_ids)
    assert [rollout.prompt_ids for rollout in sampled["answers"]] == [tested] * 4  # greedy and not, before and after


def test_the_end_of_a_turn_ends_a_completion_and_is_no_part_of_its_text(run: Run, sampled: dict) -> None:
    assert run.stop_token_ids == {EOS, END} and run.config.stop_strings == []
    ended = []
    for rollout in sampled["step"]:
        for token_T, length, truncated in zip(rollout.token_NT, rollout.length_N, rollout.truncated_N):
            ended.append(int(token_T[length - 1]))
            assert truncated == (ended[-1] not in run.stop_token_ids)
            assert not set(token_T[: length - 1].tolist()) & run.stop_token_ids
    assert END in ended and ended.count(END) < len(ended)


def test_the_run_learns_from_rewards_that_read_messages(folder: Path, sampled: dict) -> None:
    records = lines(folder / "out" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(5))
    assert all(record["reward_failures"] == 0 and record["grad_norm"] > 0 for record in records)
    assert records[0]["kl"] == 0 < records[-1]["kl"]


def test_a_reader_sees_what_the_user_said(folder: Path, sampled: dict) -> None:
    asked = {f"What is 2 + {number}?" for number in range(20)}
    completions = lines(folder / "out" / "completions.jsonl")
    assert len(completions) == 5 * 16 and {one["question"] for one in completions} <= asked
    answers = lines(folder / "out" / "evaluation" / "greedy_after.jsonl")
    assert [(one["question"], one["final_answer"]) for one in answers] == [
        (f"What is 2 + {number}?", str(2 + number)) for number in range(20, 24)]


def test_the_start_says_what_becomes_of_a_prompt_and_what_ends_a_completion(run: Run) -> None:
    assert ("prompts    messages, through the chat template; a completion ends with <eos> or <end>"
            in run.announcement)


def test_the_evaluation_command_answers_as_the_run_does(
    folder: Path, sampled: dict, capsys: pytest.CaptureFixture
) -> None:
    command = ["--model", str(folder / "model"), "--adapter", str(folder / "out" / "adapter"), "--data",
               str(folder / "test.jsonl"), "--output", str(folder / "eval"), *CHAT]
    assert evaluation_command.main(command) == 0
    assert "messages, through the chat template; a completion ends with <eos> or <end>" in capsys.readouterr().err
    assert lines(folder / "eval" / "answers_adapter_0_shots.jsonl") == lines(
        folder / "out" / "evaluation" / "greedy_after.jsonl")
