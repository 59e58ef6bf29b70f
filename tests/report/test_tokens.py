"""The token page's numbers are those of plain transformers at the weights of the update; its form. Needs 8 s."""

import copy
import html
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_qwen2, tiny_tokenizer

from grpo.config import Config
from grpo.report.json_lines import JsonLines, read_step, steps_of
from grpo.report.log import Log
from grpo.report.page import write_report
from grpo.report.tokens.__main__ import main
from grpo.report.tokens.page import HEADER, by_hand, shades, write_page
from grpo.report.tokens.record import TokenRecord, chosen, lines
from grpo.report.tokens.token import Token, tokens_of
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import Policy, trainable
from grpo.types import Rollout
from grpo.update import ask_reference, move, prepare

EPSILON, BETA, TEMPERATURE, G, RATE = 0.02, 0.3, 0.8, 3, 0.01
LENGTHS, PROMPTS = [5, 2, 7, 4, 6, 3], [[9, 8, 7, 30], [9, 8, 7, 31, 32]]
REWARDS = [1.0, 0.0, 0.5, 1.0, 0.0, 0.0]
ADVANTAGES = torch.tensor([1.5, -1.2, 0.3, 1.1, -0.6, -0.5])
TRUNCATED = 4  # this completion, which mask_truncated_completions leaves out


@pytest.fixture(scope="module", autouse=True)
def group_of_one():
    before = dist.is_initialized()
    if not before:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if not before:
        dist.destroy_process_group()


class Plain:
    """An engine without DeepSpeed: the real policy, and plain gradient descent; keeps the weights of each update."""

    can_discard = True

    def __init__(self, model):
        torch.manual_seed(0)  # of LoRA's A
        self.model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:  # 0 would make policy and reference the same
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        self.policy, self.before = Policy(model, temperature=TEMPERATURE).train(), []

    def __call__(self, batch, **options):
        return self.policy(batch, **options)

    def backward(self, loss, last):
        loss.backward()

    def step(self, learning_rate):
        self.before.append(self.whole())
        for parameter in trainable(self.policy.model).values():
            parameter.data -= learning_rate * parameter.grad
            parameter.grad = None
        return 1.0

    def whole(self):
        """The weights as they are, as a model of transformers without adapter, with its own attention."""
        model = copy.deepcopy(self.model).merge_and_unload().eval()
        model.set_attn_implementation("eager")
        return model


@torch.no_grad()
def scored(model, prompt, tokens):
    """[T, V] log-probabilities by an ordinary forward pass over one prompt with one completion."""
    logits_LV = model(torch.tensor([prompt + tokens])).logits[0]
    return (logits_LV[len(prompt) - 1:-1].float() / TEMPERATURE).log_softmax(dim=-1)


def run_step(folder, **options):
    """An update of two groups in a run's folder that keeps both; plain models before each update, and the rollout."""
    config = Config(prompts_per_step=2, num_generations=G, max_completion_length=8, num_iterations=2, keep_tokens=2,
                    epsilon=EPSILON, beta=BETA, temperature=TEMPERATURE, mask_truncated_completions=True, **options)
    engine, generator = Plain(tiny_qwen2(num_hidden_layers=2)), torch.Generator().manual_seed(0)
    token_NT, sampler_NT = torch.zeros(6, 7, dtype=torch.int64), torch.zeros(6, 7)
    for n, length in enumerate(LENGTHS):
        token_NT[n, :length] = torch.randint(3, 320, (length,), generator=generator)
        logprob_TV = scored(engine.whole(), PROMPTS[n // G], token_NT[n, :length].tolist())
        sampler_NT[n, :length] = logprob_TV.gather(1, token_NT[n, :length, None])[:, 0] + 0.01
    rollout = Rollout(prompt_ids=PROMPTS, token_NT=token_NT, length_N=torch.tensor(LENGTHS), text=["text"] * 6,
                      sampler_logprob_NT=sampler_NT, truncated_N=torch.arange(6) == TRUNCATED)
    limit = TokenLimit(24, needed=lambda num_tokens: 0, device=torch.device("cpu"))
    work = prepare(rollout, ADVANTAGES, torch.ones(6, dtype=torch.bool), config, limit)
    assert len(work.micro_batches) > 1
    ask_reference(engine, work, config)
    move(engine, work, config, RATE)
    columns = {"question": ["<b>q0</b>"] * G + ["q1"] * G, "reward": REWARDS,
               "rewards": [{"own": one} for one in REWARDS], "advantage": ADVANTAGES.tolist(),
               "truncated": rollout.truncated_N.tolist()}
    config.save(folder / "config.yaml")
    JsonLines(folder / "metrics.jsonl", 0).append([{"step": 0, "reward": 0.4, "reward_std_batch": 0.5}])
    found = lines(work.tokens.kept_N, [work.tokens.part()], [columns], rollout, tiny_tokenizer().decode)
    JsonLines(folder / "tokens.jsonl", 0).append([{"step": 0, **row} for row in found])
    return engine, rollout


@pytest.fixture(scope="module", params=["k3_unbiased", "exact"])
def stepped(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return request.param, folder, *run_step(folder, kl_estimator=request.param)


def tables(text):
    """The cells of the rows of each table of tokens."""
    found = re.findall(r'<table class="numbers">(.*?)</table>', text, re.DOTALL)
    return [[[html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.DOTALL)]
             for row in re.findall(r"<tr>(.*?)</tr>", one, re.DOTALL)] for one in found]


def by_transformers(estimator, engine, rollout):
    """For each token that counts: old and new probability, KL, entropy, and both pulls, from log-softmax alone."""
    base, (first, second) = tiny_qwen2(num_hidden_layers=2), engine.before
    denominator = sum(length for n, length in enumerate(LENGTHS) if n != TRUNCATED)
    for n, length in enumerate(LENGTHS):
        prompt, tokens = PROMPTS[n // G], rollout.token_NT[n, :length].tolist()
        old_TV, new_TV, ref_TV = (scored(model, prompt, tokens) for model in (first, second, base))
        for t, token in enumerate(tokens):
            if n == TRUNCATED:
                yield None
                continue
            old, new, ref = (float(one[t, token]) for one in (old_TV, new_TV, ref_TV))
            kl, kl_pull = math.expm1(ref - old) - (ref - old), -BETA * (new - ref) / denominator
            if estimator == "exact":
                kl, kl_pull = float((old_TV[t].exp() * (old_TV[t] - ref_TV[t])).sum()), 0.0
            ratio, advantage = math.exp(new - old), float(ADVANTAGES[n])
            clip = "above" if advantage > 0 and ratio > 1 + EPSILON else (
                "below" if advantage < 0 and ratio < 1 - EPSILON else "")
            policy = 0.0 if clip else ratio * advantage / denominator
            yield {"old": math.exp(old), "new": math.exp(new), "ratio": ratio, "clip": clip, "KL": kl,
                   "entropy": -float((old_TV[t].exp() * old_TV[t]).sum()), "policy": policy, "KL pull": kl_pull}


def test_the_page_shows_what_plain_transformers_computes(stepped):
    estimator, folder, engine, rollout = stepped
    found = [dict(zip(HEADER, row)) for table in tables(write_page(folder, 0).read_text())
             if table[0] == [*HEADER] for row in table[1:]]
    expected = list(by_transformers(estimator, engine, rollout))
    total = sum(abs(one["policy"] + one["KL pull"]) for one in expected if one)
    clips = set()
    for row, one in zip(found, expected, strict=True):
        if one is None:
            assert row["in the loss"] == "no" and row["new"] == row["KL"] == row["policy"] == "none"
            continue
        clips.add(row["clip"])
        assert row["clip"] == one["clip"] and row["in the loss"] == "yes"
        for name in ("old", "new", "ratio", "KL", "entropy", "policy", "KL pull"):
            assert float(row[name]) == pytest.approx(one[name], abs=1e-4, rel=1e-4), name
        assert float(row["sampler"]) == pytest.approx(one["old"] * math.exp(0.01), abs=1e-4)
        share = 100 * (one["policy"] + one["KL pull"]) / total
        assert float(row["share"].removesuffix(" %")) == pytest.approx(share, abs=0.02, rel=0.01)
    assert clips == {"above", "below", ""} and max(one["KL"] for one in expected if one) > 0.01
    assert [row["place"] for row in found] == [str(t + 1) for length in LENGTHS for t in range(length)]


def test_the_text_of_the_tokens_is_the_completion(stepped):
    _, folder, _, rollout = stepped
    text = write_page(folder, 0).read_text()
    shown = [re.findall(r'<span class="t[^>]*>(.*?)</span>', one, re.DOTALL)
             for one in re.findall(r'<p class="tokens">(.*?)</p>', text, re.DOTALL)]
    tokens = [[tiny_tokenizer().decode([one]) for one in row[:length]]
              for row, length in zip(rollout.token_NT.tolist(), LENGTHS)]
    assert [len(one) for one in shown] == LENGTHS
    for one, words in zip(shown, tokens, strict=True):
        assert all(span == word for span, word in zip(one, words) if word.isalnum())


def test_each_group_has_its_rewards_worked_through_and_each_completion_its_share(stepped):
    _, folder, _, _ = stepped
    text = html.unescape(write_page(folder, 0).read_text())
    assert "rewards (1, 0, 0.5). The mean is 0.5 and the sample standard deviation √((0.5² + 0.5² + 0²)/2) =" in text
    assert "1.500 and 3 times −0.25/0.5 = −0.500 (1.4997 and −0.4999" in text, "the example of README"
    assert "Completion 2: reward 0, advantage -1.200" in text and ", not in the loss</h3>" in text
    shares = [float(row[-1].removesuffix(" %")) for table in tables(text) if table[0][0] == "completion"
              for row in table[1:]]
    assert len(shares) == 6 and sum(shares) == pytest.approx(100, abs=0.5), "both groups are all of the step"


def test_the_page_is_one_file_without_a_script_in_both_themes(stepped):
    _, folder, _, _ = stepped
    text = write_page(folder, 0).read_text()
    assert not re.findall(r"""(?:src|href)=|https?:|url\(|@import|<script|<link""", text)
    assert "color-scheme: light dark" in text and "width=device-width" in text
    assert "<b>q0</b>" not in text and "&lt;b&gt;q0&lt;/b&gt;" in text
    for name in ("pull", "surprise", "ratio", "kl", "entropy"):
        assert f'id="by-{name}"' in text and f'for="by-{name}"' in text and f"#by-{name}:checked ~ main" in text
    # A token that is stopped by the clip or not in the loss is told apart without colors.
    drawn = text.partition("<main>")[2]
    assert len(re.findall(r'<span class="t[^"]* m"', drawn)) == LENGTHS[TRUNCATED]
    assert len(re.findall(r'<span class="t[^"]* x"', drawn)) == len(re.findall(">(?:above|below)<", drawn)) > 1


def test_the_report_links_the_first_and_the_last_page_that_is_kept(stepped, tmp_path):
    _, folder, _, _ = stepped
    for name in ("config.yaml", "metrics.jsonl", "tokens.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert "tokens-" not in write_report(tmp_path).read_text().replace('href="tokens-0.html"', "")
    assert (tmp_path / "tokens-0.html").exists()
    again = (tmp_path / "tokens.jsonl").read_text()
    (tmp_path / "tokens.jsonl").write_text(
        again + again.replace('{"step": 0,', '{"step": 7,') + again.replace('{"step": 0,', '{"step": 12,'))
    text = write_report(tmp_path).read_text()
    assert re.findall(r'<a href="(.*?)">(.*?)</a>', text) == [
        ("tokens-0.html", "tokens of step 0"), ("tokens-12.html", "tokens of step 12")]
    assert "3 are kept" in text and not (tmp_path / "tokens-7.html").exists()
    (tmp_path / "tokens.jsonl").unlink()
    assert "<h2>Tokens</h2>" not in write_report(tmp_path).read_text()


def test_the_command_draws_the_last_step_or_the_one_that_is_named_and_refuses_others(stepped, tmp_path):
    _, folder, _, _ = stepped
    assert main([str(folder)]) == main([str(folder), "--step", "0"]) == folder / "tokens-0.html"
    with pytest.raises(ValueError, match="--step=3 must be a step whose tokens are kept, 0 to 0; nearest valid .*: 0"):
        main([str(folder), "--step", "3"])
    with pytest.raises(ValueError, match="must be the folder of a run"):
        main([str(tmp_path)])
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="has no tokens: .* a run with --keep_tokens 1"):
        main([str(tmp_path)])


def test_a_step_is_read_without_the_others_and_without_broken_lines(tmp_path):
    file = JsonLines(tmp_path / "tokens.jsonl", 0)
    file.append([{"step": step, "kl": [0.5, math.nan]} for step in (1, 1, 12)])
    with file.path.open("a") as broken:
        broken.write('{"step": 1, "kl": [0.')
    assert steps_of(file.path) == [1, 12]
    assert read_step(file.path, 1) == [{"step": 1, "kl": [0.5, None]}] * 2 and read_step(file.path, 2) == []


def test_groups_whose_rewards_differ_are_kept_first():
    advantage_U = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.5, -0.5])
    assert [chosen(advantage_U, number, 2).tolist() for number in (0, 1, 2, 3)] == [
        [], [2, 3], [2, 3, 6, 7], [0, 1, 2, 3, 6, 7]]
    assert Config(keep_tokens=16).keep_tokens == 16
    with pytest.raises(ValueError, match="keep_tokens=17 must be at most prompts_per_step=16.*nearest valid value: 16"):
        Config(keep_tokens=17)


class Noted:
    """A packed batch of one token for each of some completions, with what the record reads of it."""

    def __init__(self, *completions):
        self.mask_UT = torch.isin(torch.arange(4), torch.tensor(completions, dtype=torch.int64))[:, None]


def noted(record, batch, logprobs, slope):
    logprob_UT = torch.tensor(logprobs)[:, None].requires_grad_()
    loss = (torch.where(batch.mask_UT, logprob_UT, 0.0) * slope).sum()
    record.add(batch, loss, logprob_UT, kl_UT=None, entropy_K=None, weight_UT=None)


def rows_of(*records):
    rollout = Rollout(
        prompt_ids=[[1], [2]], token_NT=torch.arange(5, 9)[:, None], length_N=torch.ones(4, dtype=torch.int64),
        text=[""] * 4, sampler_logprob_NT=torch.zeros(4, 1), truncated_N=torch.zeros(4, dtype=torch.bool))
    names = ("question", "reward", "rewards", "advantage", "truncated")
    columns = [dict.fromkeys(names, [f"rank {rank}"] * 2) for rank in (0, 1)]
    return lines(torch.tensor([1, 2, 3]), [one.part() for one in records], columns, rollout, lambda ids: "a")


def test_each_completion_has_the_numbers_of_the_rank_that_scored_it_and_shares_are_of_all_ranks():
    here, there = TokenRecord(torch.tensor([1, 2, 3])), TokenRecord(torch.tensor([1, 2, 3]))
    for record in (here, there):
        record.begin()
    noted(here, Noted(0, 2), [-1.0, -2.0, -3.0, -4.0], 0.25)
    noted(there, Noted(1), [-5.0, -6.0, -7.0, -8.0], -0.5)
    noted(there, Noted(), [-5.0, -6.0, -7.0, -8.0], -0.5)  # a filler
    assert len(here.part()[0]["index"]) == len(there.part()[0]["index"]) == 1, "no rank sends what it did not score"
    rows = rows_of(here, there)
    assert [row["logprob"] for row in rows] == [[[-6.0]], [[-3.0]], [[None]]]
    assert [row["policy_pull"] for row in rows] == [[[0.5]], [[-0.25]], [[None]]]
    assert [row["id"] for row in rows] == [[6], [7], [8]]
    assert [row["mask"] for row in rows] == [[1], [1], [0]] and rows[0]["total_pull"] == [0.25 * 2 + 0.5]
    assert [(row["group"], row["completion"], row["question"]) for row in rows] == [
        (0, 1, "rank 0"), (1, 0, "rank 1"), (1, 1, "rank 1")]
    assert tokens_of(rows[0] | {"advantage": 1.0}, epsilon=0.2, epsilon_high=0.2)[0].share == 0.5


def test_an_iteration_that_ran_out_of_memory_leaves_nothing():
    record = TokenRecord(torch.tensor([1, 2, 3]))
    record.begin()
    noted(record, Noted(1, 2), [-1.0] * 4, 0.25)
    record.begin()
    noted(record, Noted(1, 2), [-2.0] * 4, 0.25)
    record.start_again()
    noted(record, Noted(1), [-3.0] * 4, 0.25)
    noted(record, Noted(3), [-4.0] * 4, 0.25)
    assert [row["logprob"] for row in rows_of(record)] == [[[-1.0], [-3.0]], [[-1.0], [0.0]], [[None], [None]]]


def test_a_run_that_keeps_nothing_computes_and_sends_nothing():
    record = TokenRecord()
    record.begin()
    record.add(None, None, None, kl_UT=None, entropy_K=None, weight_UT=None)
    assert record.part() == [] and Config().keep_tokens == 0


@pytest.mark.parametrize(("changed", "advantages", "words"), [
    ({"scale_rewards": "none"}, [0.5, -0.5], "The mean is 0.5. So the advantages are 0.5 and −0.5. They sum to 0."),
    ({"scale_rewards": "batch"}, [1.25, -1.25], "standard deviation of the whole step 0.4. So the advantages are "
     "0.5/0.4 = 1.250 and −0.5/0.4 = −1.250 (1.2497 and −1.2497 with"),
    ({"advantage_gate": "outcome"}, [0.0, 0.0], "no completion is right, so advantage_gate outcome sets all to 0"),
    ({"multi_objective_aggregation": "normalize_then_sum"}, [0.7, -0.7], "each reward function is compared with its"),
])
def test_the_rewards_are_worked_through_as_the_options_say(changed, advantages, words):
    rows = [{"reward": 1.0 - index, "advantage": one} for index, one in enumerate(advantages)]
    settings = {"scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize", **changed}
    assert words in by_hand(rows, settings, {"reward_std_batch": 0.4})


def test_a_color_is_the_stronger_the_farther_a_token_is_from_nothing():
    def token(**changed):
        plain = dict(place=1, text="a", sampler=0.95, old=0.95, new=0.95, ratio=1.0, clip="", kl=0.0, entropy=0.0)
        return Token(**plain | dict(policy=0.0, kl_pull=0.0, share=0.0) | changed)

    tokens = [token(), token(new=0.005, share=0.4), token(new=0.3, share=-0.2), token(ratio=1.16, kl=2.0),
              token(ratio=0.84, kl=0.5, entropy=1.0), token(clip="above", ratio=3.0), token(new=None)]
    classes = shades(tokens, 0.2, 0.3)
    # surprise below 0.9, 0.5, 0.1 and 0.01; half of the hardest pull is the third of four levels, downwards; 0.16 of
    # 0.3 too, 0.16 of 0.2 the fourth; a quarter of the largest KL the second
    assert [classes(one) for one in tokens] == [
        "t", "t pu4 su4", "t pd3 su2", "t ru3 ku4", "t rd4 ku2 eu4", "t ru4 x", "t m"]


def test_tokens_of_a_course_that_was_left_go_when_the_run_resumes(tmp_path):
    def opened(first_step, keep_tokens):
        return Log(tmp_path, report_to=[], total_steps=4, first_step=first_step,
                   settings=asdict(Config(keep_tokens=keep_tokens)))

    with opened(0, 1) as log:
        for step in range(3):
            log.write_tokens(step, [{"token": ["a"]}])
    with opened(2, 0):  # also if it keeps none from now on
        assert [json.loads(line)["step"] for line in Path(tmp_path, "tokens.jsonl").read_text().splitlines()] == [0, 1]
    (tmp_path / "tokens.jsonl").unlink()
    with opened(2, 0):
        assert not (tmp_path / "tokens.jsonl").exists()
