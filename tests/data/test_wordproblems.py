"""The generated problems against sums worked by hand and by eval(), and the shipped base model against its promises.

The model's accuracy is what the default run starts from: sampled well above zero, greedy well below one, and the sums
themselves nearly always right. About 20 s on one core.
"""

import random
import re
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from data import warmup, wordproblems
from data.example import Example
from data.wordproblems import TEMPLATES, Problem, solve
from rewards.math import correctness_reward

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data" / "tiny_qwen2"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SHIPPED)


def numbers_of(split: str, seed: int) -> set[tuple[str, ...]]:
    examples = wordproblems.load(split, num_examples=wordproblems.MAX_EXAMPLES, seed=seed)
    return {tuple(re.findall(r"\d+", example.question)) for example in examples}


def test_no_two_splits_share_the_numbers_of_a_problem_whatever_the_seeds():
    train, validation, test = numbers_of("train", 0), numbers_of("validation", 0), numbers_of("test", 1)
    assert not train & validation and not train & test and not validation & test
    assert not numbers_of("train", 5) & test


def test_a_problem_is_worked_from_left_to_right_and_a_slip_is_carried_on():
    problem = Problem(TEMPLATES[7], "Tom", (5, 9, 9, 6))
    assert problem.question == "Tom has 5 bags of 9 coins, found 9 and lost 6. How many coins now?"
    assert solve(problem) == ("5*9=45. 45+9=54. 54-6=48.", 48)
    assert solve(problem, slips=[0, -1, 0]) == ("5*9=45. 45+9=53. 53-6=47.", 47)


def test_every_gold_answer_is_the_value_of_its_own_steps():
    for example in wordproblems.load("train", num_examples=1000, seed=3):
        reasoning, final_answer = example.answer.split("\n#### The final answer is ")
        steps = [step.split("=") for step in reasoning.removesuffix(".").split(". ")]
        assert all(eval(left) == int(right) and 0 <= int(right) <= 99 for left, right in steps)
        # The numbers of the question, in its order, are those that the steps do not take from the step before.
        used = [re.split(r"[-+*]", left) for left, _ in steps]
        assert used[0][:1] + [right for _, right in used] == re.findall(r"\d+", example.question)
        assert all(before[1] == after[0] for before, after in zip(steps, used[1:], strict=False))
        assert example.final_answer == final_answer == steps[-1][1]
        assert correctness_reward([" " + example.answer], final_answer=[example.final_answer]) == [1.0]


def test_the_seed_decides_the_examples_and_no_question_comes_twice():
    first, again, other = (wordproblems.load("train", num_examples=500, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({example.question for example in first}) == 500
    assert first[:100] == wordproblems.load("train", num_examples=100, seed=0)


@pytest.mark.parametrize(
    "split, num_examples, named", [("dev", 5, "split='dev'"), ("test", 0, "num_examples=0"), ("test", 10**6, "4000")]
)
def test_a_wrong_request_is_refused_in_one_line(split, num_examples, named):
    with pytest.raises(ValueError, match=named) as error:
        wordproblems.load(split, num_examples=num_examples, seed=0)
    assert "nearest valid value" in str(error.value) and "\n" not in str(error.value)


def test_the_tokenizer_gives_every_text_back_and_spells_numbers_digit_by_digit(tokenizer):
    texts = [example.prompt for example in wordproblems.load("train", num_examples=300, seed=0)]
    texts += [ending.format(reasoning="7*8=56. 56-107=-51.", final_answer=-51) for ending in warmup.ENDINGS]
    texts += ["\n#### The final answer is $1,234.50", "Zoë paid  5€\t\n\n"]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    words = [tokenizer.decode([token]) for token in tokenizer.encode("\n#### The final answer is 120")]
    assert words == ["\n", "####", " The", " final", " answer", " is", " ", "1", "2", "0"]
    assert tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == 0 == tokenizer.pad_token_id


def test_only_the_completion_and_the_token_that_ends_it_are_learned(tokenizer):
    batch = warmup.collate([("Question: 2", " 3"), ("Question:", " 45.")], tokenizer=tokenizer)
    learned = [row[row != warmup.IGNORED] for row in batch["labels"]]
    assert [tokenizer.decode(row) for row in learned] == [" 3<|endoftext|>", " 45.<|endoftext|>"]
    # "Question", ":", " ", "2" and " ", "3", end: 4 + 3 tokens; 2 + 5 tokens in the second text, so neither is padded.
    assert batch["input_ids"].shape == (2, 7)
    assert (batch["labels"] == warmup.IGNORED).sum(1).tolist() == [4, 2]


def test_texts_are_of_mixed_quality():
    rng = random.Random(0)
    drawn = [(problem, *warmup.draw_text(problem, rng=rng)) for problem in problems_of("train", 2000)]
    right_sums = [solve(problem)[0] in completion for problem, _, completion in drawn]
    wanted = [" The final answer is " in completion for _, _, completion in drawn]
    assert sum(right_sums) / 2000 == pytest.approx(1 - warmup.SLIP_RATE, abs=0.04)
    # The wanted ending comes with 0.65 and 0.15 in turn over the templates: 0.40 on average.
    assert sum(wanted) / 2000 == pytest.approx(0.40, abs=0.04)


def problems_of(split: str, count: int) -> list[Problem]:
    stream = wordproblems.problems(split, rng=random.Random(1))
    return [next(stream) for _ in range(count)]


def test_warm_up_steps_lower_the_loss(monkeypatch):
    monkeypatch.setattr(warmup, "BATCH_SIZE", 16)
    torch.manual_seed(0)
    tokenizer = warmup.build_tokenizer(warmup.words_of_problems())
    model = warmup.build_model(tokenizer)
    rng = random.Random(9)
    held_out = [warmup.draw_text(problem, rng=rng) for problem in problems_of("test", 32)]
    batch = warmup.collate(held_out, tokenizer=tokenizer)
    before = model(**batch).loss.item()
    warmup.train(model, tokenizer, warmup.solved_problems(rng=random.Random(0)), steps=15)
    # An untrained model knows nothing of 383 tokens: ln 383 = 5.95.
    assert before == pytest.approx(5.95, abs=0.2)
    assert model(**batch).loss.item() < before - 1


def test_the_command_writes_a_folder_that_loads_and_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "BATCH_SIZE", 16)
    options = ["--steps", "2", "--seed", "3", "--output_dir"]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        monkeypatch.setattr(sys, "argv", ["warmup", *options, str(folder)])
        warmup.main()
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    assert model.config.model_type == "qwen2" and model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_command_refuses_no_steps_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["warmup", "--steps", "0", "--output_dir", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match="2"):
        warmup.main()
    assert "steps=0: must be at least 1; nearest valid value: 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_shipped_model_is_small_tied_and_of_sides_that_nf4_can_block(tokenizer):
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 2_000_000
    weights = load_file(SHIPPED / "model.safetensors")
    assert "lm_head.weight" not in weights and weights["model.embed_tokens.weight"].shape == (len(tokenizer), 128)
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    projections = [weight for name, weight in weights.items() if name.endswith("_proj.weight")]
    assert len(projections) == 4 * 7
    assert all(side % 64 == 0 for weight in projections for side in weight.shape)


def test_the_shipped_tokenizer_is_the_one_that_the_command_builds(tokenizer):
    assert warmup.build_tokenizer(warmup.words_of_problems()).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "nf4"])
def test_the_shipped_model_knows_its_sums_but_often_says_them_wrong(tokenizer, quantised):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        SHIPPED, dtype=torch.float32, device_map="cpu", quantization_config=nf4 if quantised else None
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # it repacks the weights in place, for another arithmetic
    number = 150 if quantised else 100
    examples = wordproblems.load("test", num_examples=number, seed=11)
    greedy, sampled = (complete(model, tokenizer, examples, sample=sample) for sample in (False, True))
    # 150 problems: a standard error of 0.04 for the accuracies; 100: of 0.05.
    assert 0.3 <= accuracy(greedy, examples) <= 0.6
    assert 0.15 <= accuracy(sampled, examples) <= (0.30 if quantised else 0.35)
    knows = [re.findall(r"\d+", text)[-1:] == [row.final_answer] for text, row in zip(greedy, examples, strict=True)]
    assert sum(knows) / len(knows) >= 0.9


def accuracy(completions: list[str], examples: list[Example]) -> float:
    rewards = correctness_reward(completions, final_answer=[example.final_answer for example in examples])
    return sum(rewards) / len(rewards)


def complete(model, tokenizer, examples: list[Example], *, sample: bool) -> list[str]:
    torch.manual_seed(0)
    batch = tokenizer([row.prompt for row in examples], padding=True, padding_side="left", return_tensors="pt")
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    token_NS = model.generate(**batch, max_new_tokens=40, **options)
    return tokenizer.batch_decode(token_NS[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
