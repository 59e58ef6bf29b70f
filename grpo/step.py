"""One step of GRPO (Shao et al. 2024, arXiv 2402.03300), numbered as in README.

`grpo_step` is the whole step; `collect` has its numbers 1 to 3, which `--doctor` needs too.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from data.example import Example
from grpo.advantage import (
    gate_advantages,
    group_advantages,
    leave_one_out_advantages,
    pass_at_k_advantages,
    reward_terms,
    whitened_advantages,
)
from grpo.distributed import gather_objects, rank, world_size
from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.report.measures import (
    Clock,
    global_moments,
    global_std,
    is_right,
    logged_metrics,
    reward_metrics,
    rollout_metrics,
)
from grpo.run.groups import Groups, add_to_pass_rates, candidates, newest
from grpo.run.parts import Run
from grpo.run.scoring import rewards_of
from grpo.sampler.generate import generate
from grpo.schedule import learning_rate
from grpo.types import Rollout
from grpo.update import Update, ask_reference, choose_tokens, coefficients_of, move, prepare, state_after
from rewards.workers.pool import Scored

PATIENCE_S = 5  # a sampling phase that takes longer shows how far it is


@dataclass(frozen=True, kw_only=True)
class Collected:
    """This rank's completions of a step, and what they are worth."""

    examples: list[Example]  # B problems
    rollout: Rollout  # their N = B * G completions
    reward_BG: torch.Tensor  # float32, totals of what is in `scored`; NaN where a completion has none
    scored: Scored  # the rewards by function
    advantage_BG: torch.Tensor  # float32
    metrics: dict[str, float]  # of the rewards, over all ranks
    logged: dict[str, float]  # what reward functions measured, over all ranks
    drawn: list[Rollout]  # all that was sampled, with its cost; more than `rollout` with dynamic_sampling

    @property
    def scored_N(self) -> torch.Tensor:
        """bool, completions with a reward: no other counts in the loss."""
        return ~self.reward_BG.flatten().isnan()

    def columns(self) -> dict[str, list]:
        """This rank's part of completions.jsonl."""
        rollout, parts, extra = self.rollout, self.scored.parts, self.scored.extra
        num_generations = len(rollout.text) // len(self.examples)
        columns = {
            # Not the whole prompt: with eight solved examples in front the file would be mostly those.
            "question": [one.title for one in self.examples for _ in range(num_generations)],
            "completion": rollout.text,
            "reward": self.reward_BG.flatten().tolist(),
            "rewards": [dict(zip(parts, values)) for values in zip(*parts.values())],
            "advantage": self.advantage_BG.flatten().tolist(),
            "length": rollout.length_N.tolist(),
            "truncated": rollout.truncated_N.tolist(),
        }
        if extra:  # of log_extra
            columns["extra"] = [dict(zip(extra, values)) for values in zip(*extra.values())]
        return columns


@dataclass(frozen=True, kw_only=True)
class Step:
    """The result of a step."""

    metrics: dict[str, float]  # over all ranks
    collected: Collected  # of this rank
    update: Update  # what the gradient was computed from


def grpo_step(run: Run, step: int) -> Step:
    """Sample, score, compare, ask the reference, move the policy. Collective: every rank, once per step.

    Raises:
        Stopped: the run was asked to stop before the policy had moved; on every rank.
        SystemExit: as `end_if_rewards_fail`.
    """
    config, clock = run.config, Clock(step)
    # 1 to 3. Sample completions, score them, compare each with its group.
    collected = collect(run, step, clock)
    end_if_rewards_fail(config.max_reward_failures, collected, step)
    # The completions of all ranks are dealt out again, so that every rank has the same amount of work.
    work = prepare(collected.rollout, collected.advantage_BG.flatten(), collected.scored_N, config, run.limit)
    work.coefficients = coefficients_of(config, run.coefficients)
    # 4. Ask the reference: what would the policy of step 0 say of them?
    clock.enter("reference")
    if config.beta > 0:
        ask_reference(run.engine, work, config)
    # 5. Move the policy.
    clock.enter("update")
    if config.top_entropy_quantile < 1:
        choose_tokens(run.engine, work, config.top_entropy_quantile)
    rate = learning_rate(
        step, peak=config.learning_rate, scheduler=config.lr_scheduler_type, warmup_ratio=config.warmup_ratio,
        warmup_steps=config.warmup_steps, min_lr=config.min_lr, total=run.num_steps)
    moved = move(run.engine, work, config, rate)
    clock.enter("log")
    metrics = collected.metrics | moved | rollout_metrics(collected.drawn, clock)
    metrics |= {"learning_rate": rate, "skipped_steps": run.engine.skipped_steps, **work.coefficients}
    entropy = moved["entropy"] if work.entropy is None else work.entropy
    run.coefficients.update(state_after(config, run.coefficients, kl=moved["kl"], entropy=entropy))
    return Step(metrics=metrics, collected=collected, update=work)


def collect(run: Run, step: int, clock: Clock) -> Collected:
    """Sample, score, compare. Collective: every rank.

    Raises:
        Stopped: the run was asked to stop; on every rank.
    """
    config = run.config
    clock.enter("sync")
    choices = candidates(run, step)  # for each of this rank's B places, several problems
    run.sync()  # the sampler gets the weights that the last update left
    with stop_request.may_end_this():
        draws = [draw(run, {b: problems[0] for b, problems in enumerate(choices)}, step, clock)]
        # DAPO's dynamic sampling, arXiv 2503.14476 equation 11. Each rank draws again on its own.
        for again in range(1, config.dynamic_sampling + 1):
            others = {b: choices[b][again] for b in teaches_nothing(run, draws[-1]) if again < len(choices[b])}
            if not others:
                break
            draws.append(draw(run, others, step, clock, again))
    if not config.rollout_keep:
        run.decoder.move("cpu")
    # 3. Compare: how much better than its group is each completion?
    clock.enter("advantage")
    groups = newest(draws)
    advantage_BG, metrics = compare(run, groups, num_sampled=sum(len(one.scored.total) for one in draws))
    metrics |= add_to_pass_rates(run, draws)
    return Collected(
        examples=[run.train_examples[problem] for problem in groups.problems.values()], rollout=groups.rollout,
        reward_BG=groups.reward_BG, scored=groups.scored, advantage_BG=advantage_BG, metrics=metrics,
        logged=logged_metrics(groups.scored.metrics), drawn=[one.rollout for one in draws])


def draw(run: Run, problems: dict[int, int], step: int, clock: Clock, again: int = 0) -> Groups:
    """Sample and score problems by their place b; `again` counts the step's draws before this one."""
    examples = [run.train_examples[problem] for problem in problems.values()]
    # A group's random numbers follow from its place in the step and the draw, not from the rank that samples it.
    first = run.config.prompts_per_step // world_size() * rank() + run.config.prompts_per_step * again
    # 1. Sample G completions of each prompt from the current policy; no rank waits for another.
    clock.enter("rollout")
    rollout = sample(run, examples, [first + b for b in problems], step)
    # 2. Score them with programs.
    clock.enter("reward")
    return Groups(problems=problems, rollout=rollout, scored=score(run, examples, rollout, step, again))


def sample(run: Run, examples: list[Example], places: list[int], step: int) -> Rollout:
    """Sample G completions of each prompt, with a progress bar if it takes long."""
    config = run.config
    with tqdm(total=len(examples) * config.num_generations, desc=f"sample step {step}", unit="completion",
              delay=PATIENCE_S, miniters=0, leave=False, disable=rank() > 0) as bar:
        return generate(
            run.decoder, [run.prompt_ids(example) for example in examples], tokenizer=run.tokenizer,
            num_generations=config.num_generations, max_completion_length=config.max_completion_length,
            temperature=config.temperature, stop_token_ids=run.stop_token_ids, stop_strings=config.stop_strings,
            seed=config.seed, step=step, prompt_index=places, num_slots=run.num_slots, bar=bar)


def score(run: Run, examples: list[Example], rollout: Rollout, step: int, again: int = 0) -> Scored:
    """Give each completion its reward; a warning names functions that failed.

    Raises:
        Stopped: this process was asked to stop.
    """
    def wait() -> None:
        pulse.progress()
        stop_request.leave()

    asked = [example for example in examples for _ in range(run.config.num_generations)]  # once for each completion
    seed = f"{run.config.seed}/{step}/{rank()}" + (f"/{again}" if again else "")
    return rewards_of(run, asked, rollout, step, seed=seed, on_wait=wait)


def teaches_nothing(run: Run, groups: Groups) -> list[int]:
    """The places b of groups that teach nothing: every advantage is 0 before a mean or std of all ranks comes in."""
    right_BG, _, compared_BG = rewards_to_compare(run, groups)
    advantage_BG = group_advantages(compared_BG, scale="none")
    if run.config.adv_estimator == "pass_at_k":
        advantage_BG = pass_at_k_advantages(right_BG, ~compared_BG.isnan(), k=run.config.pass_k)
    teaches_B = gate_advantages(advantage_BG, right_BG, gate=run.config.advantage_gate).any(dim=1)
    return [b for b, teaches in zip(groups.problems, teaches_B) if not teaches]


def rewards_to_compare(run: Run, groups: Groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which completions are right, what each reward function adds, and what completions are compared by.

    [B, G] bool, [F, B, G] and [B, G] float32.
    """
    config, reward_BG, parts = run.config, groups.reward_BG, groups.scored.parts
    right_BG = is_right(reward_BG, parts, config.outcome_reward)
    part_FBG = torch.tensor(list(parts.values())).view(-1, *reward_BG.shape)
    term_FBG = reward_terms(part_FBG, torch.tensor(run.rewards.weights), ~reward_BG.isnan(),
                            aggregation=config.multi_objective_aggregation)
    gdpo = config.multi_objective_aggregation == "normalize_then_sum"  # else the sum is reward_BG but for rounding
    return right_BG, term_FBG, term_FBG.sum(dim=0) if gdpo else reward_BG


def compare(run: Run, groups: Groups, *, num_sampled: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Advantages, [B, G] float32, and the metrics of rewards and groups over all ranks. Collective: every rank.

    `num_sampled` counts this rank's completions of the step, those of groups that gave way too.
    """
    config, reward_BG = run.config, groups.reward_BG
    scored_BG = ~reward_BG.isnan()
    right_BG, term_FBG, compared_BG = rewards_to_compare(run, groups)
    scale = "batch" if config.multi_objective_aggregation == "normalize_then_sum" else config.scale_rewards  # as in TRL
    if config.adv_estimator == "rloo":
        advantage_BG = leave_one_out_advantages(reward_BG)
    elif config.adv_estimator == "reinforce_plus_plus_baseline":
        centred_BG = group_advantages(reward_BG, scale="none")
        num_tokens_BG = counted_tokens(run, groups.rollout).view(reward_BG.shape)
        mean, std = global_moments(centred_BG[scored_BG], num_tokens_BG[scored_BG])
        advantage_BG = whitened_advantages(centred_BG, scored_BG, mean=mean, std=std)
    elif config.adv_estimator == "pass_at_k":
        advantage_BG = pass_at_k_advantages(right_BG, scored_BG, k=config.pass_k)
    else:
        batch_std = global_std(compared_BG[scored_BG]) if scale == "batch" else None
        advantage_BG = group_advantages(compared_BG, scale=scale, batch_std=batch_std)
    advantage_BG = gate_advantages(advantage_BG, right_BG, gate=config.advantage_gate)
    return advantage_BG, reward_metrics(
        reward_BG, groups.scored, right_BG, term_FBG=term_FBG, compared_BG=compared_BG, advantage_BG=advantage_BG,
        num_sampled=num_sampled)


def counted_tokens(run: Run, rollout: Rollout) -> torch.Tensor:
    """[N] int64, tokens of each completion in the loss if it has a reward."""
    return torch.where(rollout.truncated_N & run.config.mask_truncated_completions, 0, rollout.length_N)


def end_if_rewards_fail(limit: float, collected: Collected, step: int) -> None:
    """End the run when a reward function failed on more than `limit` of all ranks' completions. Collective: every rank.

    Raises:
        SystemExit: where and why, the same on every rank.
    """
    share = collected.metrics["reward_failures"]
    if share <= limit:
        return
    everyone = gather_objects(collected.scored.failures)
    counts = {name: sum(part.get(name, (0, ""))[0] for part in everyone) for part in everyone for name in part}
    worst = max(counts, key=counts.get)
    where, reason = next((index, part[worst][1]) for index, part in enumerate(everyone) if part.get(worst, (0,))[0])
    raise SystemExit(
        f"error: [rank {where} step {step}] reward function {worst!r} failed on {share:.1%} of the completions "
        f"({reason}), more than max_reward_failures={limit:g}")
