"""OpenRLHF: `RemoteExperienceMaker.compute_advantages_and_returns`, `ActorPPOTrainer.training_step`, `Actor`.

These are methods of classes that live in Ray actors; here they run on objects without Ray, which have the attributes
that the methods read. `training_step` gets an actor that returns a claim's log-probabilities, times the mask as `Actor`
does, and a strategy that keeps the loss in the place of DeepSpeed's. Normalisers come from
`iter_grad_accum_global_norm`. What DeepSpeed does afterwards, 1 / micro-batches and a mean over ranks, is done here.
Options are those of GRPO in OpenRLHF's README: group_norm, KL as a loss, for which it recommends k2 or k3; here k3.
"""

import peers  # first: it says where OpenRLHF is
import stand_ins  # noqa: F401

# isort: split

from types import SimpleNamespace

import torch
import torch.distributed as dist
from openrlhf.models import Actor, PolicyLoss
from openrlhf.models.utils import compute_approx_kl
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer
from openrlhf.utils.loss_utils import iter_grad_accum_global_norm

NAME = peers.versioned("openrlhf")
CLIP = (0.2, 0.28)
BETA = 0.04
KL = "k3"


def named(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**values)


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    if rewards.shape[1] == 1:
        raise NotImplementedError("its command line refuses group_norm with one completion for a prompt")
    maker = object.__new__(RemoteExperienceMaker)
    maker.advantage_estimator, maker.kl_ctl = "group_norm", named(value=0.0)
    maker.strategy = named(args=named(
        rollout=named(n_samples_per_prompt=rewards.shape[1], max_new_tokens=1), reward=named(
            clip_range=(-10, 10), overlong_buffer_len=None, stop_properly_penalty_coef=None),
        algo=named(advantage=named(estimator="group_norm", gamma=1.0, no_std_norm=False))))
    one_N1 = torch.ones(rewards.numel(), 1)
    experience = Experience(index=list(range(rewards.numel())), rewards=rewards.flatten(), action_mask=one_N1,
                            kl=torch.zeros_like(one_N1), info={})
    return maker.compute_advantages_and_returns([experience])[0].advantages.view(rewards.shape)


def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
    return compute_approx_kl(logprob, ref_logprob, KL)


class Strategy:
    """Stands for DeepSpeed's: keeps the loss."""

    ring_attn_group = None
    args = named(train=named(dynamic_batch_enable=False), actor=named(entropy_coef=None),
                 algo=named(kl=named(use_loss=True, init_coef=BETA, estimator=KL)))

    def backward(self, loss: torch.Tensor, *others: object) -> None:
        self.loss = loss

    def optimizer_step(self, *given: object, **options: object) -> None:
        pass

    def get_grad_norm(self, model: object) -> float:
        return 0.0


def step_loss(experience: Experience, logprob: torch.Tensor, info: dict[str, object]) -> torch.Tensor:
    """The loss that training_step gives to DeepSpeed."""
    trainer, mask = object.__new__(ActorPPOTrainer), experience.action_mask
    trainer.strategy = Strategy()
    trainer.args, trainer.aux_loss, trainer.ema_model = trainer.strategy.args, False, None
    trainer.actor_loss_fn = PolicyLoss(*CLIP)
    trainer.actor_optim, trainer.actor_scheduler = None, named(get_last_lr=lambda: [0.0])

    class Given:
        def train(self) -> None:
            pass

        def __call__(self, *given: object, **options: object) -> tuple[torch.Tensor, None]:
            return logprob * mask.float(), None  # as Actor.forward ends

    trainer.actor = Given()
    trainer.training_step(experience, BETA, 0, info)
    return trainer.strategy.loss


def experience_of(
    old: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor, ref: torch.Tensor
) -> Experience:
    times = mask.float()  # those of the old policy and of the reference come from Actor.forward, too
    return Experience(action_mask=mask, action_log_probs=old * times, base_action_log_probs=ref * times,
                      advantages=advantage[:, None].expand(mask.shape), info={})


def loss(*micro_batch: torch.Tensor) -> torch.Tensor:
    return batch_loss([micro_batch])


def batch_loss(micro_batches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    steps = iter_grad_accum_global_norm(micro_batches, named(), len(micro_batches), lambda one: one[3])
    losses = [step_loss(experience_of(*one[1:]), one[0], info) for one, info in steps]
    return torch.stack(losses).sum() / len(losses)  # DeepSpeed divides by the micro-batches of a step


def score(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    class Model(torch.nn.Module):
        def forward(self, *given: object, **options: object) -> "Output":
            return Output(logits=torch.cat([logits, logits[:, :1]], dim=1))  # one for each token of a sequence

    class Output(dict):
        pass

    actor = Actor(Model(), temperature=temperature)
    actor.packing_samples = False
    sequences = torch.cat([tokens[:, :1], tokens], dim=1)  # a prompt of one token
    logprob, output = actor(sequences, torch.ones_like(tokens), torch.ones_like(sequences), return_output=True,
                            return_entropy=True)
    return logprob, output.entropy


def rank_gradient(
    weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    logprob = weight.log_softmax(dim=0)[tokens]
    (_, info), = iter_grad_accum_global_norm([mask], named(), 1, lambda one: one)
    info["dp_size"] = dist.get_world_size()  # as it is without a device mesh
    fixed = logprob.detach()
    step_loss(experience_of(fixed, advantage, mask, fixed), logprob, info).backward()
    dist.all_reduce(weight.grad)  # DeepSpeed averages gradients over ranks
    return weight.grad / dist.get_world_size()
