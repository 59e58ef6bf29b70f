"""The groups of a step: which problems this rank samples, and what came of each."""

from dataclasses import dataclass

import torch

from grpo.distributed import gather_objects, rank, world_size
from grpo.packing import merge, take
from grpo.report.measures import is_right
from grpo.run.parts import Run
from grpo.run.pass_rates import Judged
from grpo.schedule import prompts_of_step, refills_of_step
from grpo.types import Rollout
from rewards.workers.pool import Scored, join


@dataclass(frozen=True, kw_only=True)
class Groups:
    """B groups of completions that were sampled together."""

    problems: dict[int, int]  # by their place on this rank: indices of run.train_examples
    rollout: Rollout  # their N = B * G completions
    scored: Scored

    @property
    def reward_BG(self) -> torch.Tensor:
        """float32, totals of `scored`; NaN where a completion has none."""
        return torch.tensor(self.scored.total).view(len(self.problems), -1)

    def judged(self, outcome_reward: str | None) -> list[Judged]:
        """How many completions of each problem were right."""
        reward_BG = self.reward_BG
        right_B = is_right(reward_BG, self.scored.parts, outcome_reward).sum(dim=1).tolist()
        scored_B = (~reward_BG.isnan()).sum(dim=1).tolist()
        return [Judged(*one) for one in zip(self.problems.values(), right_B, scored_B)]


def has_choice(run: Run) -> bool:
    """Whether a problem may give way to another one, so that their pass rates are kept."""
    return run.config.dynamic_sampling > 0 or run.config.problem_filter is not None


def candidates(run: Run, step: int) -> list[list[int]]:
    """For each of this rank's places in the step the problems that it may have, in order: indices into the data."""
    num_prompts, num_examples = run.config.prompts_per_step, len(run.train_examples)
    share = num_prompts // world_size()
    mine = range(rank() * share, (rank() + 1) * share)
    own = prompts_of_step(num_examples, step, prompts_per_step=num_prompts, seed=run.config.seed)
    if not has_choice(run):
        return [[own[place]] for place in mine]
    others = refills_of_step(num_examples, step, prompts_per_step=num_prompts, seed=run.config.seed)
    return [run.pass_rates.wanted([own[place], *others[place]]) for place in mine]


def newest(draws: list[Groups]) -> Groups:
    """The last group of each place; failures and metrics of reward functions are those of all draws."""
    if len(draws) == 1:
        return draws[0]
    drawn = [one for groups in draws for one in groups.problems.items()]
    row = {b: row for row, (b, _) in enumerate(drawn)}  # a later one stands where the first one stood
    num_generations = len(draws[0].rollout.text) // len(draws[0].problems)
    return Groups(
        problems=dict(drawn), rollout=take(merge([one.rollout for one in draws]), list(row.values())),
        scored=join([one.scored for one in draws]).take(
            [b * num_generations + g for b in row.values() for g in range(num_generations)]))


def add_to_pass_rates(run: Run, draws: list[Groups]) -> dict[str, float]:
    """Add what was drawn to the pass rates. Returns metrics of what gave way or was not drawn. Collective."""
    if not has_choice(run):
        return {}
    judged = [groups.judged(run.config.outcome_reward) for groups in draws]
    everyone = gather_objects((judged[0], judged[1:]))
    first = [one for part, _ in everyone for one in part]
    again = [one for _, rest in everyone for part in rest for one in part]
    run.pass_rates.add([*first, *again])
    return {
        "accuracy_of_first": sum(one.right for one in first) / max(sum(one.scored for one in first), 1),
        "groups_drawn": (len(first) + len(again)) / len(first), "filtered_share": run.pass_rates.outside()}
