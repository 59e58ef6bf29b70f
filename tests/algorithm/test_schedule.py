"""grpo.schedule by hand: which prompts, which learning rate, how many steps. 3 seconds, of imports."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from grpo.config import Config
from grpo.options.option import options
from grpo.schedule import learning_rate, next_beta, next_entropy_coef, prompts_of_step, total_steps


def test_each_epoch_reads_every_prompt_once_in_an_order_of_its_own():
    # 5 prompts, 3 a step: five steps read three epochs, and step 1 takes 2 of the first and 1 of the second.
    read = [place for step in range(5) for place in prompts_of_step(5, step, prompts_per_step=3, seed=0)]
    epochs = read[:5], read[5:10], read[10:]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1]


def test_no_seed_begins_with_another_ones_later_epoch():
    orders = [tuple(prompts_of_step(50, epoch, prompts_per_step=50, seed=seed)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize(("scheduler", "rates"), [
    # 6 steps, of which ceil(0.3 * 6) = 2 warm up: 1/2 and 2/2 of the peak, then x = 0, 1/4, 1/2, 3/4.
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),  # (1 + cos(pi / 4)) / 2 = 0.853553
    ("cosine_with_min_lr", [0.5, 1.0, 1.0, 0.882843, 0.6, 0.317157]),  # 0.2 + 0.8 of that
])
def test_the_learning_rate_warms_up_and_decays(scheduler, rates):
    found = [learning_rate(step, peak=2.0, scheduler=scheduler, warmup_ratio=0.3, min_lr=0.4, total=6)
             for step in range(6)]
    assert found == pytest.approx([2.0 * rate for rate in rates], abs=1e-5)


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "cosine_with_min_lr"])
def test_the_rate_is_that_of_transformers_but_one_step_ahead_in_the_warm_up_as_its_option_says(scheduler):
    # 13 steps, of which ceil(0.3 * 13) = 4 warm up: 1/4, 2/4, 3/4, 4/4 here and 0/4, 1/4, 2/4, 3/4 there.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    name = scheduler.replace("constant", "constant_with_warmup")
    theirs = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=13,
                           scheduler_specific_kwargs={"min_lr": 0.4} if "min" in name else None).lr_lambdas[0]
    ours = [learning_rate(step, peak=2.0, scheduler=scheduler, warmup_ratio=0.3, min_lr=0.4, total=13) / 2.0
            for step in range(13)]
    assert ours[:4] == [0.25, 0.5, 0.75, 1.0] and [theirs(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert ours[4:] == pytest.approx([theirs(step) for step in range(4, 13)], abs=1e-12)
    said = options(Config)["warmup_ratio"].metadata["text"]
    assert "step k of W has (k + 1) / W of the peak; transformers has k / W" in said


@pytest.mark.parametrize(("asked", "warmup"), [(0.05, 1), (0.3, 4), (0.99, 13), (1, 1), (4, 4), (5.5, 5), (20, 20)])
def test_warmup_steps_are_a_number_or_below_1_a_share_as_in_transformers(asked, warmup):
    there = SimpleNamespace(warmup_steps=asked)
    assert TrainingArguments.get_warmup_steps(there, 13) == warmup
    rates = [learning_rate(step, peak=2.0, scheduler="constant", warmup_ratio=0.7, warmup_steps=asked, total=13)
             for step in range(13)]
    assert rates == pytest.approx([2.0 * min(1, (step + 1) / warmup) for step in range(13)])


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, peak=2.0, scheduler="linear", warmup_ratio=0.0, total=4) == 2.0


def test_steps_are_those_asked_for_or_enough_for_the_epochs():
    # 1.5 epochs of 10 prompts are 15; 4 a step make 3.75.
    assert total_steps(10, prompts_per_step=4, num_train_epochs=1.5, max_steps=-1) == 4
    assert total_steps(10, prompts_per_step=4, num_train_epochs=1.5, max_steps=1) == 1


def test_beta_moves_towards_the_target_by_a_fifth_at_most():
    # 100 completions of a horizon of 1,000: a tenth. KL 0.11 for 0.1: + 0.1 * 0.1; 0.5: + 0.2 * 0.1; 0.05: - 0.2 * 0.1.
    found = [next_beta(0.04, kl, target=0.1, horizon=1000.0, num_completions=100) for kl in (0.11, 0.5, 0.05, math.nan)]
    assert found == pytest.approx([0.04 * 1.01, 0.04 * 1.02, 0.04 * 0.98, 0.04])
    # 8,192 of a horizon of 1,000 are no more than the whole horizon: not 1 - 0.2 * 8.192, which is below 0.
    assert next_beta(0.04, 0.0, target=0.1, horizon=1000.0, num_completions=8192) == pytest.approx(0.04 * 0.8)


def test_the_entropy_bonus_grows_at_or_below_its_target_and_stays_inside_its_bounds():
    def following(coef, entropy):
        return next_entropy_coef(coef, entropy, target=0.5, delta=0.1, low=0.05, high=0.25)

    assert [following(0.1, entropy) for entropy in (0.4, 0.5, 0.6, math.nan)] == pytest.approx([0.2, 0.2, 0.05, 0.1])
    assert following(0.2, 0.1) == 0.25
