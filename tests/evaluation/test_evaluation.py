"""Intervals and tests against numbers worked by hand and enumeration; scores by hand. Needs 10 s."""

import itertools
import json

import peft
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import eval as eval_script
from data.example import Example
from data.prompts import STOP_STRINGS, build_prompt
from grpo.evaluation.answers import Answer, evaluate, load_answers, save_answers
from grpo.evaluation.statistics import accuracy_interval, compare, num_right, paired_test, summarize, wilson_interval
from tests.support.tiny_models import SHAPE, decoder_of, tiny_qwen2, tiny_tokenizer

# What a tiny model is taught to answer, by heart. The gold answer of each is 9.
TAUGHT = {
    "one": " 4 + 5 = 9.\n#### The final answer is 9\nQuestion: 8",
    "two": " I get 9<eos>",
    "six": " It is.\n#### The final answer is 8<eos>",
    "ten": " 9 or 10 or 9 or 10 or 9 or 10 or 9 or 10",
}
EXAMPLES = [
    Example(question=question, answer="", final_answer="9", prompt=build_prompt(question)) for question in TAUGHT
]


def answer(index, strict, **fields):
    scores = dict(lenient=strict, format=strict, truncated=False) | fields
    return Answer(index=index, question=f"q{index}", final_answer="1", completion="c", strict=strict, **scores)


def test_wilson_interval_of_8_right_out_of_10():
    # z = 1.96, z^2 = 3.8415: middle (0.8 + 0.19207) / 1.38415 = 0.71674;
    # half 1.96 * sqrt(0.8 * 0.2 / 10 + 3.8415 / 400) / 1.38415 = 1.96 * sqrt(0.025604) / 1.38415 = 0.22658
    assert wilson_interval(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=2e-5)


def test_wilson_interval_of_none_and_all_right_ends_at_0_and_1():
    # 0 of 10: low 0, high z^2 / (10 + z^2) = 3.8415 / 13.8415 = 0.27753
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=2e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((1 - 0.27753, 1.0), abs=2e-5)
    assert all(wilson_interval(0.0, num)[0] == 0.0 and wilson_interval(1.0, num)[1] == 1.0 for num in range(1, 2000))


def test_with_one_sample_each_the_interval_is_wilson_s_over_problems():
    assert accuracy_interval([1] * 8 + [0] * 2, 1) == pytest.approx(wilson_interval(0.8, 10), abs=1e-12)


def test_samples_that_agree_within_a_problem_count_once():
    # all 4 samples of a problem right or all wrong: 10 problems are 10 answers, not 40
    assert accuracy_interval([4] * 8 + [0] * 2, 4) == pytest.approx(wilson_interval(0.8, 10), abs=1e-12)


def test_samples_that_disagree_within_a_problem_narrow_the_interval():
    # shares 1, 1, 0.5, 0.5 of 2 samples: p 0.75, var 0.0625, effective 0.1875 / (0.0625 / 4) = 12 > 8 answers, so 8
    assert accuracy_interval([2, 2, 1, 1], 2) == pytest.approx(wilson_interval(0.75, 8), abs=1e-12)
    # shares 1, 1, 1, 0, 0.5, 0.5: p 2/3, var 5/36, effective (2/9) / (5/36/6) = 9.6, between 6 and 12
    assert accuracy_interval([2, 2, 2, 0, 1, 1], 2) == pytest.approx(wilson_interval(2 / 3, 9.6), abs=1e-12)


def test_paired_test_of_single_answers_is_mcnemar_s_exact_test():
    # 1 problem only right before, 9 only right after: 2 * (C(10,0) + C(10,1)) / 2^10 = 22 / 1024
    before = [1] + [0] * 9 + [1] * 30 + [0] * 20
    after = [0] + [1] * 9 + [1] * 30 + [0] * 20
    assert paired_test(before, after) == pytest.approx(22 / 1024, rel=1e-12)
    assert paired_test(after, before) == pytest.approx(22 / 1024, rel=1e-12)


def test_paired_test_of_equal_answers_is_1():
    assert paired_test([1, 0, 3], [1, 0, 3]) == 1.0
    assert paired_test([1, 0], [0, 1]) == 1.0


def test_paired_test_of_several_samples_equals_enumeration_of_all_signs():
    before, after = [1, 4, 0, 2, 3, 2, 0], [4, 3, 2, 4, 3, 3, 1]
    differences = [y - x for x, y in zip(before, after, strict=True)]
    totals = [sum(s * d for s, d in zip(signs, differences)) for signs in itertools.product((-1, 1), repeat=7)]
    expected = sum(abs(total) >= abs(sum(differences)) for total in totals) / 2**7
    assert 0.01 < expected < 0.5
    assert paired_test(before, after) == pytest.approx(expected, rel=1e-12)


def test_paired_test_needs_the_same_problems():
    with pytest.raises(ValueError):
        paired_test([1, 0], [1])


def test_paired_test_of_a_large_set_neither_overflows_nor_leaves_0_to_1():
    # 1319 problems of 8 samples, all better by 8: 2 * 2^-1319 is 0 in float64
    assert paired_test([0] * 1319, [8] * 1319) == 0.0
    assert paired_test([0, 1] * 600, [1, 0] * 600) == pytest.approx(1.0)


def test_answers_of_several_ranks_are_counted_by_problem():
    answers = [answer(2, True), answer(2, True), answer(0, False), answer(0, True), answer(1, False), answer(1, False)]
    assert num_right(answers) == [1, 0, 2]


def test_compare_reports_strict_accuracies_and_their_paired_test():
    before = [answer(index, False, lenient=True) for index in range(10)]
    after = [answer(index, index > 0) for index in range(10)]
    # 9 problems gained, none lost: 2 / 2^9
    assert compare(before, after) == pytest.approx({"accuracy_before": 0, "accuracy_after": 0.9, "p_value": 2 / 2**9})


def test_summary_holds_each_share_over_all_answers():
    first = [answer(0, True), answer(0, False, lenient=True)]
    summary = summarize(first + [answer(1, False, truncated=True), answer(1, True)])
    assert (summary["num_problems"], summary["num_samples"]) == (2, 2)
    assert [summary[score] for score in ("strict", "lenient", "format", "truncated")] == [0.5, 0.75, 0.5, 0.25]


def test_saved_answers_read_back_equal(tmp_path):
    answers = [answer(0, True), answer(1, False, truncated=True)]
    save_answers(answers, tmp_path / "deep" / "answers.jsonl")
    assert load_answers(tmp_path / "deep" / "answers.jsonl") == answers


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A Qwen2 that gives the taught answers."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"num_hidden_layers": 2}))
    texts = [(tokenizer.encode(build_prompt(question)), tokenizer.encode(text)) for question, text in TAUGHT.items()]
    length = max(len(prompt) + len(text) for prompt, text in texts)
    token_NS, target_NS = torch.zeros(len(texts), length, dtype=torch.long), torch.full((len(texts), length), -100)
    for row, (prompt, text) in enumerate(texts):
        token_NS[row, :len(prompt + text)] = torch.tensor(prompt + text)
        target_NS[row, len(prompt):len(prompt + text)] = torch.tensor(text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        model(token_NS, labels=target_NS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """The model, a data set of ten times its first problem, and an adapter that makes it answer nonsense."""
    path = tmp_path_factory.mktemp("taught")
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rows = [json.dumps({"question": "one", "answer": "4+5=<<4+5=9>>9\n#### 9"}) + "\n"] * 10
    (path / "data.jsonl").write_text("".join(rows))
    bases = {"adapter": Qwen2ForCausalLM.from_pretrained(path / "model"), "foreign": tiny_qwen2(hidden_size=96)}
    for name, base in bases.items():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=400, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        peft.get_peft_model(base, config).save_pretrained(path / name)
    return path


def run_evaluate(decoder, tokenizer, examples=EXAMPLES, **options):
    defaults = dict(seed=0, max_completion_length=40, stop_token_ids={1}, stop_strings=STOP_STRINGS)
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    return evaluate(decoder, tokenizer, examples, prompts, **defaults | options)


def test_each_completion_is_scored_strictly_leniently_and_for_its_format(model, tokenizer):
    answers = run_evaluate(decoder_of(model), tokenizer)
    completions = [text.removesuffix("<eos>").removesuffix("\nQuestion: 8") for text in TAUGHT.values()]
    assert [answer.completion for answer in answers[:3]] == completions[:3]
    scores = [(answer.strict, answer.lenient, answer.format) for answer in answers[:3]]
    assert scores == [(True, True, True), (False, True, False), (False, False, True)]


def test_a_completion_without_an_end_counts_as_truncated(model, tokenizer):
    answers = run_evaluate(decoder_of(model), tokenizer, max_completion_length=len(tokenizer.encode(TAUGHT["ten"])) - 1)
    assert [answer.truncated for answer in answers[1::2]] == [False, True]
    assert answers[3].completion == TAUGHT["ten"][:len(answers[3].completion)] != ""


def test_sampled_answers_depend_on_neither_the_number_of_slots_nor_the_split_over_ranks(tokenizer):
    decoder = decoder_of(tiny_qwen2())
    options = dict(num_samples=3, temperature=1.0, max_completion_length=8)
    whole = run_evaluate(decoder, tokenizer, **options)
    small = run_evaluate(decoder, tokenizer, num_slots=1, **options)
    ranks = [
        run_evaluate(decoder, tokenizer, EXAMPLES[rank::2], prompt_index=[rank, rank + 2], **options) for rank in (0, 1)
    ]
    assert [answer.index for answer in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({answer.completion for answer in whole}) > 6
    assert small == whole
    assert sorted(ranks[0] + ranks[1], key=lambda answer: answer.index) == whole


def test_another_seed_draws_other_answers(tokenizer):
    decoder = decoder_of(tiny_qwen2())
    first, second = (run_evaluate(decoder, tokenizer, temperature=1.0, seed=seed) for seed in (0, 1))
    assert first != second


def test_several_greedy_samples_and_prompts_without_room_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="num_samples=2: greedy samples are all the same"):
        run_evaluate(decoder_of(model), tokenizer, num_samples=2)
    with pytest.raises(ValueError, match="max_completion_length=2040: .* context of 2048 tokens; nearest valid"):
        run_evaluate(decoder_of(model), tokenizer, max_completion_length=2040)


def command(folder, **options):
    """The command line of eval.py on the taught model."""
    values = {"model": folder / "model", "data": folder / "data.jsonl", "max_completion_length": 40} | options
    return [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]


def test_the_script_prints_a_row_for_each_number_of_shots_and_writes_its_report(folder, tmp_path, capsys):
    assert eval_script.main(command(folder, num_shots="0 2", output=tmp_path / "out")) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 10 of 10 right: 100 % from 10 / (10 + 3.8415) = 72.2 % on
    assert lines[1][:9] == ["model", "0", "10", "x", "1", "100.0", "%", "(72.2", "to"]
    assert lines[2][:5] == ["model", "2", "10", "x", "1"]
    results = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    assert [(result["num_shots"], result["num_problems"]) for result in results] == [(0, 10), (2, 10)]
    assert results[0]["strict"] == results[0]["format"] == 1.0 and results[0]["truncated"] == 0.0
    assert "100.0 % (72.2 to 100.0)" in (tmp_path / "out" / "eval.html").read_text()
    assert "<title>shots 0, model, strict: 1 (0.7225 to 1)</title>" in (tmp_path / "out" / "eval.html").read_text()
    first = load_answers(tmp_path / "out" / "answers_model_0_shots.jsonl")[0]
    assert first.strict and first.completion.endswith("The final answer is 9")  # cut at the stop string


def test_the_script_says_what_several_samples_are_worth_together(folder, tmp_path, capsys):
    options = command(folder, num_samples=3, temperature=0.7, limit=4, output=tmp_path / "out")
    assert eval_script.main(options) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["model", "shots", "pass@1", "maj@1", "pass@2", "maj@2", "pass@3", "maj@3"]
    (result,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"]
    assert result["several"]["pass@1"][0] == pytest.approx(result["strict"]) and lines[3][:2] == ["model", "0"]
    assert float(lines[3][2]) == pytest.approx(100 * result["strict"], abs=0.05)
    assert "<th>maj@3</th>" in (tmp_path / "out" / "eval.html").read_text()


def test_the_script_tests_an_adapter_against_its_base_on_the_same_problems(folder, capsys):
    assert eval_script.main(command(folder, adapter=folder / "adapter", compare_base="true", limit=8)) == 0
    adapter, base = [line.split() for line in capsys.readouterr().out.splitlines()][1:]
    # the adapter loses all 8 problems: p = 2 / 2^8 = 0.0078
    assert (adapter[0], adapter[5], adapter[-1]) == ("adapter", "0.0", "0.0078")
    assert (base[0], base[5]) == ("model", "100.0")


@pytest.mark.parametrize("options, message", [
    ({"model": "no/such/model"}, "model='no/such/model' must be a folder that holds config.json"),
    ({"adapter": "no_such_adapter"}, "adapter='no_such_adapter' must be a folder that holds adapter_config.json"),
    ({"adapter": "{folder}/foreign"}, "not for this model"),
    ({"data": "no_such.jsonl"}, "dataset='no_such.jsonl'"),
    ({"data": "{folder}/model/config.json"}, "config.json:1: "),
    ({"num_shots": "9"}, "num_shots=9 must lie in [0, 8]"),
    ({"num_sample": "2"}, "unknown option --num_sample; nearest known one: --num_samples"),
    ({"num_samples": "2"}, "num_samples=2 greedy samples are all the same"),
    ({"compare_base": "true"}, "compare_base=True needs an adapter"),
    ({"max_completion_length": "5000"}, "max_completion_length=5000"),
    ({"output": "{folder}/old"}, "holds another evaluation, which is not written over"),
])
def test_a_user_s_mistake_ends_in_one_line_and_exit_code_2(folder, capsys, options, message):
    (folder / "old").mkdir(exist_ok=True)
    (folder / "old" / "eval.json").write_text("{}")
    arguments = command(folder, **{name: value.format(folder=folder) for name, value in options.items()})
    capsys.readouterr()
    assert eval_script.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert (folder / "old" / "eval.json").read_text() == "{}"
