"""The names of other trainers: what each key of their recipes is here. Data only; docs/recipes.md is made of it.

Covered are TRL 1.16 (GRPOConfig, ModelConfig, ScriptArguments), transformers' TrainingArguments, keys of their earlier
versions, and the keys that open-r1, AWS's samples, philschmid and Unsloth add. A key is one of

    honoured    the same name (SAME), another name (RENAMED), or a value that options follow from (recipe.ForeignNames)
    harmless    what is computed does not depend on it: one line says that it has no effect
    a conflict  what is computed would change, and this project does not compute it: refused

A value that a table names needs no word: it is what happens here anyway, or the default of the other trainer.
"""

from typing import Any

# Names that mean here what they mean there; docs/recipes.md has the few differences.
SAME = """
    output_dir num_train_epochs max_steps learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay
    adam_beta1 adam_beta2 adam_epsilon max_grad_norm tf32 gradient_checkpointing gradient_checkpointing_kwargs
    logging_steps report_to run_name save_strategy save_steps save_total_limit seed ddp_timeout deepspeed
    eval_strategy eval_steps num_generations_eval metric_for_best_model load_best_model_at_end
    trust_remote_code max_prompt_length num_generations max_completion_length temperature beta num_iterations epsilon
    epsilon_high reward_funcs reward_weights multi_objective_aggregation scale_rewards loss_type
    mask_truncated_completions min_lr delta importance_sampling_level sapo_temperature_pos sapo_temperature_neg
    entropy_coef use_adaptive_entropy entropy_target entropy_coef_min entropy_coef_max entropy_coef_delta
    top_entropy_quantile
    model_name_or_path model_revision tokenizer_name_or_path torch_dtype use_peft lora_r lora_alpha lora_dropout
    lora_target_modules lora_modules_to_save load_in_4bit dataset_config system_prompt chat_template
    chat_template_kwargs
""".split()

# Another name: its option. A list of one item stands for the item, as in dataset_configs: [main].
RENAMED = {
    "dtype": "torch_dtype",
    "dataset_name": "train_dataset_id_or_path", "dataset_id_or_path": "train_dataset_id_or_path",
    "dataset_configs": "dataset_config", "dataset_train_split": "dataset_splits",
    "dataset_prompt_column": "prompt_column",
    "max_grpo_prompt_length": "max_prompt_length", "max_grpo_completion_length": "max_completion_length",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "use_gradient_checkpointing": "gradient_checkpointing", "random_state": "seed",
    "evaluation_strategy": "eval_strategy",
}

# Why a key has no effect: its names, each with the value (or a tuple of values) that needs no word.
HARMLESS: dict[str, dict[str, Any]] = {
    "completions come from this project's own sampler (see rollout_slots, rollout_weights)": {
        "vllm_mode": "colocate", "vllm_model_impl": "vllm", "vllm_enable_sleep_mode": False,
        "vllm_server_base_url": None, "vllm_server_host": "0.0.0.0", "vllm_server_port": 8000,
        "vllm_server_timeout": 240, "vllm_group_port": 51216, "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": None, "vllm_max_model_len": None, "vllm_tensor_parallel_size": 1,
        "vllm_device": (None, "auto"), "vllm_dtype": (None, "auto"), "vllm_enable_prefix_caching": None,
        "use_transformers_continuous_batching": False, "transformers_continuous_batching_config": None,
        "use_transformers_paged": False, "cache_implementation": None, "use_cache": False,
        "ds3_gather_for_generation": True, "remote_gen_model_url": None, "remote_gen_model_port": None,
        "fast_inference": False, "gpu_memory_utilization": None, "max_lora_rank": None,
    },
    "vllm_importance_sampling_clip_max is its name in TRL 1.16": {"vllm_importance_sampling_cap": None},
    "nothing is pushed to the Hub; the trained weights stay in output_dir": {
        "push_to_hub": False, "hub_token": None, "hub_private_repo": None, "hub_model_id": None,
        "hub_strategy": "every_save", "hub_always_push": False, "hub_revision": None, "hub_model_revision": "main",
        "overwrite_hub_revision": False, "push_to_hub_revision": False, "push_to_hub_model_id": None,
        "push_to_hub_organization": None, "push_to_hub_token": None, "log_completions_hub_repo": None,
    },
    "metrics.jsonl has every step, and report_to gets one in logging_steps": {
        "logging_strategy": "steps", "logging_first_step": (False, True), "log_on_each_node": True,
        "logging_nan_inf_filter": True, "include_num_input_tokens_seen": ("no", False),
        "include_tokens_per_second": False, "logging_dir": None, "log_level": "passive",
        "log_level_replica": "warning", "disable_tqdm": None,
    },
    "completions.jsonl has every completion": {
        "log_completions": (False, True), "num_completions_to_print": (None, 0), "log_multimodal": True,
        "log_unique_prompts": False, "wandb_log_unique_prompts": (None, True),
    },
    "a tracker reads it from the environment (such as WANDB_PROJECT), which a recipe does not set": {
        "wandb_project": None, "wandb_entity": None, "wandb_run_group": None, "env": {}, "project": "huggingface",
        "trackio_space_id": None, "trackio_bucket_id": None, "trackio_static_space_id": None,
    },
    "eval_examples problems are solved before and after the training, and between as eval_strategy says": {
        "eval_delay": 0, "eval_on_start": (False, True), "do_eval": (False, True), "do_train": (False, True),
        "do_predict": False, "per_device_eval_batch_size": 8, "per_gpu_eval_batch_size": None,
        "prediction_loss_only": False, "eval_do_concat_batches": True, "eval_use_gather_object": False,
        "eval_accumulation_steps": None, "include_for_metrics": [], "include_inputs_for_metrics": False,
        "batch_eval_metrics": False, "bf16_full_eval": False, "fp16_full_eval": False, "dataset_test_split": "test",
        "benchmarks": [],
    },
    "a checkpoint has what resume needs, and beside it the trained weights alone": {
        "save_only_model": False, "save_on_each_node": False, "save_safetensors": True,
        "enable_jit_checkpoint": (False, True), "restore_callback_states_from_checkpoint": False,
    },
    "a folder with another run in it is refused, and never written over": {"overwrite_output_dir": False},
    "log-probabilities come from the kernel that logprob_impl names, with float32 logits": {
        "use_liger_kernel": False, "liger_kernel_config": None, "use_liger_loss": False,
        "cast_lm_head_to_fp32": False, "unsloth_num_chunks": -1, "unsloth_logit_chunk_multiplier": None,
        "unsloth_grpo_mini_batch": None,
    },
    "torch.compile is not used": {
        "torch_compile": False, "torch_compile_backend": None, "torch_compile_mode": None, "torchdynamo": None},
    "completions are always packed, which changes no gradient": {"packing": True, "group_by_length": False},
    "a packed batch needs a tree mask, which sdpa takes": {"attn_implementation": (None, "sdpa")},
    "packed batches are as long as memory allows (see micro_batch_tokens)": {
        "auto_find_batch_size": False, "torch_empty_cache_steps": None, "pad_to_multiple_of": (None, "auto")},
    "ZeRO shards over the ranks that torchrun starts (see zero_stage)": {
        "fsdp": (None, False, ""), "fsdp_config": None, "fsdp_min_num_params": 0,
        "fsdp_transformer_layer_cls_to_wrap": None, "accelerator_config": None, "num_processes": None,
        "local_rank": (-1, 0),  # DeepSpeed's launcher gives each rank its own, also as LOCAL_RANK; rank 0 prints notes
        "ddp_backend": None, "ddp_find_unused_parameters": None, "ddp_bucket_cap_mb": None,
        "ddp_broadcast_buffers": None, "ddp_static_graph": None, "ignore_bias_buffers": False,
    },
    "prompts are held in memory, without a loader": {
        "dataloader_drop_last": False, "dataloader_num_workers": 0, "dataloader_pin_memory": True,
        "dataloader_persistent_workers": False, "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None, "dataloader_in_order": True, "dataset_streaming": False,
        "model_download_location": None, "dataset_local_location": None,
    },
    "reward functions get every column": {"remove_unused_columns": False},
    "GRPO has no use for it, in TRL neither": {
        "label_names": None, "label_smoothing_factor": 0, "average_tokens_across_devices": True,
        "train_sampling_strategy": "random", "length_column_name": "length",
    },
    "seed orders the data too": {"data_seed": None},
    "what a step draws is a function of seed and its number; a GPU may still round sums in another order": {
        "full_determinism": False},
    "a GPU is used where there is one, unless CUDA_VISIBLE_DEVICES hides it": {
        "use_cpu": False, "no_cuda": False, "use_mps_device": False},
    "there is nothing here that it would switch": {
        "debug": "", "skip_memory_metrics": True, "past_index": -1, "mp_parameters": "", "ray_scope": "last",
        "tpu_num_cores": None, "tpu_metrics_debug": False, "fp16_opt_level": "O1", "half_precision_backend": "auto",
        "fp16_backend": "auto", "jit_mode_eval": False, "use_ipex": False, "use_legacy_prediction_loop": False,
        "max_tool_calling_iterations": None, "callbacks": [],
    },
    "only TRL's loss vespo has it": {
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    },
    "only sync_ref_model has it, which is not offered": {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512},
    "NF4 always has double quantisation, and is computed with and stored in torch_dtype": {
        "use_bnb_nested_quant": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": None,
        "bnb_4bit_compute_dtype": None,
    },
    "it is an argument of reward functions of open-r1 that are not offered; those here have reward_options": {
        "cosine_min_value_wrong": 0.0, "cosine_max_value_wrong": -0.5, "cosine_min_value_correct": 0.5,
        "cosine_max_value_correct": 1.0, "cosine_max_len": 1000, "repetition_n_grams": 3,
        "repetition_max_penalty": -1.0, "code_language": "python", "code_eval_test_batch_size": 1,
        "code_eval_scoring_mode": "weighted_sum", "parallel_code_exec_per_proc": 2, "code_provider": "e2b",
        "ioi_provider": "piston", "e2b_router_url": None, "morph_router_url": None,
    },
}

# Why a key is refused: its names, each with the value (or a tuple of values, the nearest valid one first) that is not.
CONFLICTS: dict[str, dict[str, Any]] = {
    "truncated sampling biases the ratio (eval.py has top_p)": {"top_p": 1, "top_k": (0, -1, None), "min_p": (0, None)},
    "completions are drawn from the policy as it is, which the ratio needs": {
        "repetition_penalty": 1, "generation_kwargs": (None, {}), "vllm_structured_outputs_regex": None,
        "vllm_guided_decoding_regex": None, "vllm_sampling_params": None,
    },
    "the optimizer is AdamW": {
        "optim": ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused"),
        "adafactor": False, "optim_args": None, "optim_target_modules": None,
    },
    "float16 would need its gradients scaled; bf16 or dtype=float32 are without that": {"fp16": False},
    "the reference stays the policy of step 0": {"sync_ref_model": False},
    "rollout_correction weighs tokens, and nothing masks whole completions by their KL": {
        "off_policy_mask_threshold": None},
    "there is no mixture of experts": {"router_aux_loss_coef": (None, 0)},
    "embeddings get no noise": {"neftune_noise_alpha": None},
    "a LoRA branch is scaled by lora_alpha / lora_r; lora_alpha times the root of lora_r is the same": {
        "use_rslora": False},
    "adapters are plain LoRA on linear modules": {
        "use_dora": False, "lora_target_parameters": None, "lora_task_type": "CAUSAL_LM"},
    "weights have 4 bits as NF4 (load_in_4bit), or all": {"load_in_8bit": False, "bnb_4bit_quant_type": "nf4"},
    "how a model loads is said by torch_dtype, model_revision, load_in_4bit and trust_remote_code": {
        "model_init_kwargs": (None, {})},
    "each epoch has an order of its own, from seed": {"shuffle_dataset": True},
    "a run has one dataset, train_dataset_id_or_path, and all its problems": {
        "dataset_mixture": None, "datasets": None, "max_train_samples": None},
    "a reward is named in reward_funcs, as path/to/file.py:function": {
        "reward_fn": None, "reward_function_name": None},
    "a completion is one text, without tools and turns": {
        "tools_script": None, "tool_functions_module": None, "max_env_steps": None, "turn_advantage_coef": None},
    "a resumed run goes on where its data stopped": {"ignore_data_skip": False},
    "each metric of an evaluation is a share of right answers": {"greater_is_better": (True, None)},
    "a completion is not split over ranks": {"parallelism_config": None},
}

# Values of a key above that are taken all the same, with a line that says what is done instead.
INSTEAD = {
    "optim": dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"),
        "AdamW with both averages in float32, which is the same equation without the rounding, and more memory")
    | {"paged_adamw_32bit": "AdamW, with its averages where ZeRO puts them",
       "adamw_hf": "torch's AdamW, which adds adam_epsilon after the bias correction"},
}

# What open-r1 calls reward functions that are offered here, and their names here.
OPEN_R1 = {
    "accuracy": "accuracy_reward", "format": "think_answer_format_reward", "tag_count": "tag_count_reward",
    "length": "len_reward", "soft_overlong_punishment": "get_soft_overlong_punishment",
}
OVERLONG = {"max_completion_len": 16384, "soft_punish_cache": 4096}  # arguments of the last one, by its defaults there
# Its other reward functions: why they are not offered, and the nearest that is.
_REMOTE = ("has its programs run elsewhere, by a service", "path/to/file.py:function")
OPEN_R1_OTHERS = {
    "cosine": ("counts characters, and gives 1 where it cannot read the solution", "get_cosine_scaled_reward"),
    "repetition_penalty": ("counts words, not tokens", "get_repetition_penalty_reward"),
    "reasoning_steps": ("counts words such as First and Next", "path/to/file.py:function"),
    "code_format": ("needs the tags think and answer around the code", "think_answer_format_reward"),
    **dict.fromkeys(("code", "binary_code", "ioi_code", "cf_code"), _REMOTE),
}

# What TRL 1.16 has where a recipe is silent, and this project has not.
DEFAULTS = {
    "use_peft": False, "load_in_4bit": False, "lora_alpha": 32, "lora_dropout": 0.05,
    "lora_target_modules": "left to peft: q_proj v_proj", "prompts_per_step": "per_device_train_batch_size=8",
    "num_train_epochs": 3.0, "beta": 0.0, "learning_rate": 1e-6,
    "lr_scheduler_type": "linear",
}
SECRET = ("env", "hub_token", "push_to_hub_token")  # keys whose values are never shown
