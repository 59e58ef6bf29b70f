"""Options that contradict each other; each is refused with the nearest valid value."""

from typing import Any

from grpo.options import chat
from grpo.options.refusal import nearest, refuse
from grpo.options.zero_settings import check_deepspeed

CHECKPOINT_ARGUMENTS = ("use_reentrant", "preserve_rng_state")


def check_combinations(config: Any) -> None:
    """Refuse with ValueError the options of a grpo.config.Config that do not go together."""
    _check_loss(config)
    if config.doctor and (config.resume or config.plan):
        refuse("doctor", True, "looks at the start of a run, and takes neither resume nor plan", False)
    if config.max_steps == 0:
        refuse("max_steps", 0, "must be -1 or at least 1", 1)
    if config.keep_tokens > config.prompts_per_step:
        refuse("keep_tokens", config.keep_tokens, f"must be at most prompts_per_step={config.prompts_per_step}: a "
               "prompt is a group", config.prompts_per_step)
    _check_filter(config)
    _check_floor(config)
    _check_evaluation(config)
    trains_whole = config.lora_modules_to_save or config.adapter_name_or_path  # the adapter may bring its own
    if config.lora_modules_to_save_learning_rate is not None and not trains_whole:
        refuse("lora_modules_to_save_learning_rate", config.lora_modules_to_save_learning_rate,
               "needs lora_modules_to_save: nothing is trained whole besides LoRA", "none")
    if config.lora_modules_to_save_learning_rate is not None and config.zero_stage in (1, 2):
        refuse("lora_modules_to_save_learning_rate", config.lora_modules_to_save_learning_rate,
               "needs zero_stage 0 or 3: at 1 and 2 DeepSpeed loses the moments of a second group", "zero_stage=3")
    if config.rollout_weights == "nf4" and not (config.load_in_4bit and config.rollout_keep):
        refuse("rollout_weights", "nf4", "needs load_in_4bit=True, and rollout_keep=True because packed weights "
               "stay where they are", "lora")
    if config.rollout_weights == "merged" and not config.use_peft:
        refuse("rollout_weights", "merged", "needs use_peft=True: there is nothing to merge", "lora")
    adapter_only = {"load_in_4bit": "false", "adapter_name_or_path": "none", "lora_modules_to_save": "none"}
    for name, off in adapter_only.items():
        if getattr(config, name) and not config.use_peft:
            refuse(name, getattr(config, name), "needs use_peft=True", f"{off}, or use_peft=True")
    if config.use_peft and config.adapter_name_or_path is None and not config.lora_target_modules:
        refuse("lora_target_modules", [], "must name at least one module", "all-linear")
    if config.reward_weights is not None and len(config.reward_weights) != len(config.reward_funcs):
        number = len(config.reward_funcs)
        refuse("reward_weights", config.reward_weights, f"must have one number for each of the {number} reward_funcs",
               " ".join(["1.0"] * number))
    _check_outcome(config)
    longest = (config.max_prompt_length or 1) + config.max_completion_length
    if config.micro_batch_tokens is not None and config.micro_batch_tokens < longest:
        refuse("micro_batch_tokens", config.micro_batch_tokens, "must fit the longest prompt with a completion",
               longest)
    chat.check_variables(config.chat_template_kwargs)
    check_deepspeed(config.deepspeed or {}, config.zero_stage)
    for key, value in (config.gradient_checkpointing_kwargs or {}).items():
        if key not in CHECKPOINT_ARGUMENTS or type(value) is not bool:
            refuse("gradient_checkpointing_kwargs", {key: value},
                   f"must hold true or false for {' or '.join(CHECKPOINT_ARGUMENTS)}", "{use_reentrant: false}")


def _check_loss(config: Any) -> None:
    if config.loss_type == "cispo" and config.epsilon_high < 1:
        refuse("epsilon_high", config.epsilon_high, "is the largest weight itself with loss_type=cispo, and must be at "
               "least 1, the weight on policy", 5.0)
    if config.epsilon_high < config.epsilon:
        refuse("epsilon_high", config.epsilon_high, f"must be at least epsilon={config.epsilon}", config.epsilon)
    if config.delta is not None and config.delta < 1 + config.epsilon_high:
        refuse("delta", config.delta, f"must be at least 1 + epsilon_high={config.epsilon_high}, the first clip",
               1 + config.epsilon_high)
    if config.target_kl is not None and config.beta == 0:
        refuse("target_kl", config.target_kl, "needs a beta above 0 to begin with", "none, or beta=0.04")
    if config.entropy_coef_min > config.entropy_coef_max:
        refuse("entropy_coef_min", config.entropy_coef_min,
               f"must be at most entropy_coef_max={config.entropy_coef_max}", config.entropy_coef_max)
    if config.loss_type == "geo_mean":  # has a completion's mean of ratios already
        for name, token in (("importance_sampling_level", "token"), ("top_entropy_quantile", 1.0)):
            if getattr(config, name) != token:
                refuse(name, getattr(config, name), "needs a loss of tokens, and that of loss_type=geo_mean is of "
                       "completions", token)
    if config.adv_estimator != "grpo" and config.multi_objective_aggregation != "sum_then_normalize":
        refuse("multi_objective_aggregation", config.multi_objective_aggregation,
               f"has advantages of its own, and so has adv_estimator={config.adv_estimator}", "sum_then_normalize")
    if config.adv_estimator == "pass_at_k" and config.pass_k > config.num_generations:
        refuse("pass_k", config.pass_k, f"must be at most num_generations={config.num_generations}",
               config.num_generations)


def _check_outcome(config: Any) -> None:
    names, outcome = [name.rpartition(":")[2] for name in config.reward_funcs], config.outcome_reward
    if outcome is not None and outcome not in names:
        refuse("outcome_reward", outcome, f"must be one of reward_funcs, {', '.join(names)}, by that name",
               nearest(outcome.rpartition(":")[2], names) or names[0])
    if config.advantage_gate == "outcome" and outcome is None and "correctness" not in names:
        refuse("advantage_gate", "outcome", "needs outcome_reward: nothing else says which completions are right",
               " or ".join(f"outcome_reward={name}" for name in names))


def _check_filter(config: Any) -> None:
    bounds = config.problem_filter
    if bounds is not None and not (len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] <= 1):
        refuse("problem_filter", bounds, "must be two shares, the lowest and the highest", "0.1 0.9")
    if config.problem_pass_rates is not None and bounds is None:
        refuse("problem_pass_rates", config.problem_pass_rates, "needs problem_filter: nothing else reads it",
               "none, or problem_filter=0.1 0.9")


def _check_floor(config: Any) -> None:
    if config.lr_scheduler_type == "cosine_with_min_lr" and config.min_lr is None:
        refuse("lr_scheduler_type", config.lr_scheduler_type, "needs min_lr", f"min_lr={config.learning_rate / 10:g}")
    if config.min_lr is not None and config.min_lr > config.learning_rate:
        refuse("min_lr", config.min_lr, f"must be at most learning_rate={config.learning_rate}", config.learning_rate)


def _check_evaluation(config: Any) -> None:
    needed = {"load_best_model_at_end": False, "early_stopping_patience": "none"}
    for name, off in needed.items():
        if getattr(config, name) and config.eval_strategy == "no":
            refuse(name, getattr(config, name), "needs evaluations to compare", f"{off}, or eval_strategy=steps")
        if getattr(config, name) and config.eval_examples == 0:
            refuse(name, getattr(config, name), "needs held-out problems", f"{off}, or eval_examples=200")
    if config.metric_for_best_model not in (None, "eval_greedy_accuracy") and config.num_generations_eval == 0:
        refuse("metric_for_best_model", config.metric_for_best_model, "is of sampled answers, and "
               "num_generations_eval=0", "eval_greedy_accuracy")
