"""Mistakes in how a run is set up, moved, measured, saved and continued, and in adapters; see planted.py."""

ADAPTER = [
    ("only DoRA is another kind", "if value and not plain and value != default.get(name):",
     'if value and name == "use_dora":'),
    ("what peft does not know is passed over", "(written | kind.to_dict()).items()", "kind.to_dict().items()"),
    ("what is derived from LoRA is LoRA", "if type(kind) is not LoraConfig:", "if not isinstance(kind, LoraConfig):"),
    ("any start of a branch", 'value in STARTS if name == "init_lora_weights" else name in PLAIN',
     'name in PLAIN or name == "init_lora_weights"'),
    ("a default refused", "if value and not plain and value != default.get(name):", "if value and not plain:"),
    ("the reference drops", "module.lora_dropout[REFERENCE] = nn.Identity()",
     "module.lora_dropout[REFERENCE] = copy.deepcopy(module.lora_dropout[TRAINED])"),
    ("the reference at scale 1", "module.scaling[REFERENCE] = module.scaling[TRAINED]",
     "module.scaling[REFERENCE] = 1.0"),
]

TRIAL = [
    ("dropout is no excuse for a KL", '**{"warn" if drops else "fail":', '**{"fail":'),
    ("a KL is never 0", '"" if apart == 0 else cure})', "cure})"),
]

DOCTOR = [
    ("an update's memory without the rollout slots", " + (slots if config.rollout_keep else 0)", ""),
    ("slots stay although the copy moves", " + (slots if config.rollout_keep else 0)", " + slots"),
    ("sampling needs no memory", "if max(coming + least, slots) > free", "if coming + least > free"),
    ("an adapter's dropout is not told", "run.peft_config.lora_dropout > 0", "run.config.lora_dropout > 0"),
]

CHECKPOINT = [
    ("step-9 above step-10", "key=lambda path: int(path.name[5:]), reverse", "key=lambda path: path.name[5:], reverse"),
    ("the oldest first", "int(path.name[5:]), reverse=True)", "int(path.name[5:]))"),
    ("skipped steps forgotten", '    engine.skipped_steps = saved["skipped_steps"]\n', ""),
    ("AdamW counts steps that were skipped", 'engine.start_optimizer(saved["optimizer_steps"])',
     'engine.start_optimizer(saved["step"])'),
]

CONTINUATION = [
    ("beta may change", '"plan", "doctor",', '"beta", "plan", "doctor",'),
    ("temperature may change", '"plan", "doctor",', '"temperature", "plan", "doctor",'),
    ("the length may always change", "(LENGTH if constant else set())", "LENGTH"),
    ("the length may never change", "(LENGTH if constant else set())", "set()"),
    ("a warm-up does not depend on the length", " and (share == 0 or share >= 1)", ""),
    ("more ranks' memory may not change", '"micro_batch_tokens",', ""),
]

UPDATE = [
    ("the old policy follows", "        if old_logprob_UT is None:", "        if True:"),
    ("gradients' norms added up", " / config.num_iterations", ""),
    ("masked completions are no sequences", "num_sequences=len(keep_U)", "num_sequences=int(keep_U.sum())"),
    ("masked completions' tokens counted", "int(merged.length_N[keep_U].sum())", "int(merged.length_N.sum())"),
    ("masked completions trained on", "keep_U = keep_U & ~merged.truncated_N", "pass"),
    ("truncated completions need no reward", "keep_U & ~merged.truncated_N", "~merged.truncated_N"),
    ("completions without a reward trained on", "torch.cat(scored)", "torch.ones_like(rollout.truncated_N)"),
    ("what was masked is not kept", ', "keep_N": self.keep_U', ""),
    ("a filler reaches the reference", "torch.where(batch.mask_UT, batch.scatter(output.logprob_K), 0.0)",
     "batch.scatter(output.logprob_K) * batch.mask_UT"),
    ("a filler reaches the old policy", "torch.where(batch.mask_UT, current_UT.detach(), 0.0)",
     "current_UT.detach() * batch.mask_UT"),
    ("weights of the sampler's gap follow", "current_UT if first else old_logprob_UT", "current_UT"),
]

TALLY = [
    ("the copy is written into", "= map(dict, copy)", "= copy"),
    ("a mean over no token is 0", "if not num_tokens:", "if False:"),
    ("a filler reaches the surrogate", "counted(self.advantage_U[:, None] * logprob_UT)",
     "(counted(self.advantage_U[:, None]) * logprob_UT)"),
    ("clip shares added up", "divisor[name] * iterations for", "divisor[name] for"),
    ("losses added up", '"loss": iterations', '"loss": 1'),
]

ZERO = [
    ("no weight decay", '        "weight_decay": config.weight_decay,\n', ""),
    ("torch's betas", '        "betas": (config.adam_beta1, config.adam_beta2),\n', ""),
    ("betas swapped", "(config.adam_beta1, config.adam_beta2)", "(config.adam_beta2, config.adam_beta1)"),
    ("torch's epsilon", '        "eps": config.adam_epsilon,\n', ""),
]

STAGES = [("at every stage a gradient can be dropped", "return self.stage in (0, 3)", "return True")]

ENGINE = [
    ("the rate of the start", '            group["lr"] = learning_rate * rate', "            pass"),
    ("one rate for all", "learning_rate * rate", "learning_rate"),
    ("the branches have the rate of what is trained whole", '1.0 if ".lora_" in name else whole_rate', "whole_rate"),
]

LEDGER = [
    ("a batch without its head", "together + self.head(num_tokens) + self.gathered()", "together + self.gathered()"),
    ("a batch without gradients inside an MLP", "num_tokens * widest + (weight", "(weight"),
    ("activations of all layers but one", "else layers * each)", "else (layers - 1) * each)"),
    ("checkpointing saves no inputs", "layers * hidden + each if checkpointing", "each if checkpointing"),
    ("ZeRO shards the scales", "(self.base(), trained, self.reference()))) + self.scales()",
     "(self.base(), trained, self.reference()))) + self.scales() // self.num_ranks"),
]

COMBINATIONS = [
    ("a completion without its prompt", "(config.max_prompt_length or 1) + config", "1 + config"),
]

RUN = [
    ("rows made for prompts that are left out", "[prompt for prompt in encoded if len(prompt) <= limit]", "encoded"),
    ("a prompt as long as the context", "min(config.max_prompt_length or room, room)",
     "config.max_prompt_length or room"),
]

KV_CACHE = [
    ("what is hidden shows where scores are low", "HIDDEN = -1e9", "HIDDEN = -20"),
    ("the padding of a rest is seen", "bias_A11Q=(padding_AQ * HIDDEN)", "bias_A11Q=(padding_AQ * 0.0)"),
    ("columns that a row has not reached are seen", "(hidden_MT * HIDDEN)", "(hidden_MT * 0.0)"),
]
POINTWISE = [
    ("the norm not rounded before its weight", "(x_float * scale_X1).to(x.dtype).mul_(weight_H)",
     "(x_float * scale_X1).mul_(weight_H).to(x.dtype)"),
    ("silu not rounded", "F.silu(gate_XI).mul_(up_XI)", "F.silu(gate_XI.float()).mul_(up_XI).to(up_XI.dtype)"),
]
LINEAR = [
    ("a weight that trains is reordered", 'elif frozen and form == "lora" and', 'elif form == "lora" and'),
    ("a small weight is reordered", "and num_elements >= cls.FEWEST", ""),
    ("a large weight is not", "and num_elements >= cls.FEWEST", "and num_elements > cls.FEWEST"),
    ("a reordered product without its bias", 'self.weight, bias_O, "none"', 'self.weight, None, "none"'),
    ("the bias added after rounding", "torch.addmm(bias_O, rows_XI, weight_IO)", "(rows_XI @ weight_IO).add_(bias_O)"),
]

BFLOAT16 = [("nobody is told that bfloat16 adds up", "config.zero_stage == 0 and dtype == torch.bfloat16", "False")]

COMPILER = [("on a GPU nothing is compiled", '"__main__" and not torch.cuda.is_available()', '"__main__"')]

MEMORY = [
    ("a rank among others packs again", "if world_size() > 1 or not", "if not"),
    ("no rank packs again", "if world_size() > 1 or not", "if world_size() > 0 or not"),
    ("a gradient that stays is added to", "or not can_undo or all(", "or all("),
]

RUN_GROUPS = [
    ("grpo/trainer/out_of_memory.py", ("test_out_of_memory.py",), MEMORY),
    ("grpo/loading/adapter.py", ("test_adapter.py",), ADAPTER),
    ("grpo/doctor/trial.py", ("test_adapter.py",), TRIAL),
    ("grpo/doctor/at_rest.py", ("test_adapter.py", "test_doctor.py"), DOCTOR),
    ("grpo/saving/checkpoint.py", ("test_checkpoint.py",), CHECKPOINT),
    ("grpo/saving/continuation.py", ("test_checkpoint.py",), CONTINUATION),
    ("grpo/update.py", ("test_update.py",), UPDATE),
    ("grpo/report/measures.py", ("test_update.py",), TALLY),
    ("grpo/trainer/zero.py", ("test_optimizer.py",), ZERO),
    ("grpo/trainer/engine.py", ("test_optimizer.py",), ENGINE),
    ("grpo/trainer/engine.py", ("test_engine.py",), STAGES),
    ("grpo/run/announcement.py", ("test_python.py",), BFLOAT16),
    *((program, ("test_programs_compile.py",), COMPILER)
      for program in ("train.py", "eval.py", "grpo/export/__main__.py")),
    ("grpo/memory/ledger.py", ("test_ledger.py",), LEDGER),
    ("grpo/options/combinations.py", ("test_bad_configs.py",), COMBINATIONS),
    ("grpo/run/examples.py", ("test_run.py",), RUN),
    ("grpo/sampler/kv_cache.py", ("test_kv_cache.py",), KV_CACHE),
    ("grpo/sampler/pointwise.py", ("test_decoder.py",), POINTWISE),
    ("grpo/sampler/linear.py", ("test_decoder.py",), LINEAR),
]
