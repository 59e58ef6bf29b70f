"""What a run is made of, and how the sampler gets the policy's weights."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from data.example import Example
from data.prompt_ids import prompt_ids
from grpo.config import Config
from grpo.distributed import rank
from grpo.memory.ledger import Ledger
from grpo.run.pass_rates import PassRates
from grpo.sampler.decoder import Decoder
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from rewards.workers.pool import RewardPool


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run."""

    asked: Config  # as the user gave it
    config: Config  # with what was derived from it
    output_dir: Path
    device: torch.device
    engine: Engine
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: set[int]
    train_examples: list[Example]
    test_examples: list[Example]
    rewards: RewardPool
    peft_config: PeftConfig | None
    sources: dict[str, Any]  # fingerprints of what it reads, for checkpoints
    first_step: int  # 0, or where a resumed run goes on
    num_steps: int  # of the whole run
    num_slots: int  # completions decoded at the same time
    limit: TokenLimit
    ledger: Ledger
    left_out: int  # problems with too long a prompt
    announcement: list[str]
    pass_rates: PassRates  # of the training problems, where problem_filter wants them
    coefficients: dict[str, float] = field(default_factory=dict)  # `update.state_after` of the newest step

    def prompt_ids(self, example: Example) -> list[int]:
        """The tokens of an example's prompt."""
        return prompt_ids(self.tokenizer, example.prompt, self.config.chat_template_kwargs)

    def sync(self) -> None:
        """Bring the policy's weights, as they are, to the sampler. Collective: every rank, once per sampling phase."""
        self.decoder.move(self.device)  # with rollout_keep=False it is in CPU memory between steps
        self.engine.copy_to(self.decoder.tensors())
        self.decoder.merge()

    def trainer_state(self, step: int) -> dict[str, Any]:
        """What reward functions can read of the run, under transformers' names; `global_step` counts as `step` does."""
        config, per_epoch = self.config, len(self.train_examples) / self.config.prompts_per_step
        epochs = self.num_steps / per_epoch if config.max_steps > 0 else config.num_train_epochs
        return {
            "global_step": step, "max_steps": self.num_steps, "epoch": step / per_epoch,
            "num_train_epochs": math.ceil(epochs), "logging_steps": config.logging_steps,
            "save_steps": config.save_steps, "is_world_process_zero": rank() == 0,
            "is_local_process_zero": int(os.environ["LOCAL_RANK"]) == 0}
