"""Mistakes in how recipes of other trainers are read, and in what follows from their names; see planted.py."""

TABLE = [
    ("a truncated distribution passes", '{"top_p": 1,', '{"top_p": (1, 0.9),'),
    ("Lion is AdamW", '"adamw_torch_npu_fused", "adamw_apex_fused"', '"adamw_torch_npu_fused", "lion_8bit"'),
    ("8-bit AdamW without a word", '"optim": ("adamw_torch", "adamw', '"optim": ("adamw_torch", "adamw_8bit", "adamw'),
    ("float16 passes", '{"fp16": False}', '{"fp16": (False, True)}'),
    ("a key of TRL forgotten", '"log_unique_prompts": False, ', ""),
    ("a key in two places", '"vllm_mode": "colocate",', '"vllm_mode": "colocate", "optim": "adamw_torch",'),
    ("a metric of which less is better passes", '"greater_is_better": (True, None)',
     '"greater_is_better": (True, None, False)'),
    ("an older name of another option", '"evaluation_strategy": "eval_strategy"',
     '"evaluation_strategy": "save_strategy"'),
    ("any liger kernel without a word", '"use_liger_kernel": False', '"use_liger_kernel": (False, True)'),
    ("a default of TRL is a conflict", '"shuffle_dataset": True', '"shuffle_dataset": False'),
    ("a vocabulary for another option", '"dataset_prompt_column": "prompt_column"',
     '"dataset_prompt_column": "tokenizer_name_or_path"'),
    ("the split of another name", '"dataset_train_split": "dataset_splits"', '"dataset_train_split": "output_dir"'),
    ("AWS's length of a prompt", '"max_grpo_prompt_length": "max_prompt_length"',
     '"max_grpo_prompt_length": "max_completion_length"'),
    ("a default of TRL not told", '"beta": 0.0, "learning_rate"', '"learning_rate"'),
    ("a token in the open", '("env", "hub_token", ', '("env", '),
    ("another default of TRL", '"learning_rate": 1e-6', '"learning_rate": 1e-5'),
]

RECIPE = [
    ("steps of several updates without a word", 'in_force("num_iterations")) > 1:', 'in_force("num_iterations")) > 9:'),
    ("a share of steps counts rollouts", "(values[name] or 0) > 1", "name"),
    ("only the first mistake is told", "        raise Mistakes(*mistakes)", "        raise ValueError(mistakes[0])"),
    ("what several keys say together is told later", "    ranks = values.get(",
     "    if mistakes:\n        raise Mistakes(*mistakes)\n    ranks = values.get("),
    ("one mistake is told twice", "if not unknown & {*needs}:", "if True:"),
    ("a wrong stage is told twice", 'if not unknown & {"deepspeed", "zero_stage"}:', "if True:"),
    ("a mistake in another name is told twice", "{foreign.RENAMED.get(name, name) for name in wrong}", "{*wrong}"),
    ("a switch that is off replaces a value", "name == other or alike and name not in idle", "name == other or alike"),
    ("a plan for the ranks of now", 'values.get("plan") or world_size', "world_size"),
    ("settings of DeepSpeed are not looked at", 'check_deepspeed(in_force("deepspeed") or {}, in_force("zero_stage"))',
     "check_deepspeed({}, 3)"),
    ("the file stands beside the command line", "alike = _decided(name) == _decided(other) and", "alike = False and"),
    ("sizes of a batch replace each other", "and not {name, other} <= {*SIZES}", ""),
    ("the command line does not replace its own name", "return name == other or ", "return "),
    ("a warm-up in steps beside one in shares", '"resume", "warmup_steps": "warmup_ratio"}', '"resume"}'),
    ("of two names the last one wins", '    set_once(values, name, value, f"{given}={value}")\n    return notes',
     "    values[name] = value\n    return notes"),
    ("a range is not checked here", "    check(one, value)\n", ""),
    ("lists of one stay lists", "len(value) == 1 and get_origin", "len(value) == 0 and get_origin"),
    ("null is a value", "        if value is None:\n            return []\n", ""),
    ("files of DeepSpeed are not read", 'value.endswith(".json")', 'value.endswith(".js")'),
    ("a file's open settings without a word", "value, notes = read_json(value)", "value, _ = read_json(value)"),
    ("any argument of a schedule", 'if key not in ("min_lr", "min_lr_rate"):', 'if key == "":'),
    ("a secret is shown", "shown = name if name in foreign.SECRET else", "shown ="),
    ("conflicts pass", "if name in group and not _is_one_of(value, group[name]):", "if False:"),
    ("every harmless key without a word", "return [] if _is_one_of(value, group[name]) else",
     "return [] if name in group else"),
    ("defaults are told", "return [] if _is_one_of(value, group[name]) else", "return [] if False else"),
    ("8-bit AdamW refused", "if instead := foreign.INSTEAD.get(name, {}).get(str(value)):", "if instead := None:"),
    ("numbers compared as text", "        return float(text)\n", "        return text\n"),
    ("what TRL has otherwise is never told", "if recipe.keys() - options(cls).keys():", "if False:"),
    ("what TRL has otherwise is always told", "if recipe.keys() - options(cls).keys():", "if True:"),
    ("what is given is told as left out", "if name not in values and name not in idle]", "if name not in idle]"),
    ("LoRA told without LoRA", '{"load_in_4bit", *LORA_SHAPE}', "set()"),
    ("epochs told beside steps", '{"num_train_epochs"} if in_force("max_steps") > 0 else set()', "set()"),
    ("a constant rate that warms up without a word", 'if recipe.get("lr_scheduler_type") == "constant" and',
     'if recipe.get("lr_scheduler_type") == "" and'),
]

DERIVED = [
    ("of two names the last one wins", 'if values.get(name) not in (None, "auto", value):', "if False:"),
    ("bf16: false is bfloat16", 'if values.pop("bf16", None):', 'if values.pop("bf16", None) is not None:'),
    ("dropout stays", 'set_once(values, "lora_dropout", 0.0', 'set_once(values, "lora_dropout", 0.1'),
    ("the estimators swapped", '"k3_unbiased" if corrected else "k3"', '"k3" if corrected else "k3_unbiased"'),
    ("a prompt as long as the sequence", '"max_prompt_length", longest - completion', '"max_prompt_length", longest'),
    ("prompts of one rank", "completions = per_device * ranks * accumulation",
     "completions = per_device * accumulation"),
    ("part of a group on a rank", "if per_device * accumulation % generations:", "if False:"),
    ("completions of a later step pass", "if value not in (None, valid):", "if False:"),
    ("a batch in steps needs no size", "    if per_device is None:\n", "    if False:\n"),
    ("the share of a rate is the rate", 'set_once(values, "min_lr", share * peak,',
     'set_once(values, "min_lr", share,'),
    ("rewards of others pass", "    if unknown:\n", "    if False:\n"),
    ("any checkpoint of the folder", "in (folder, newest) if path]", "in (folder, *saved)]"),
    ("step-9 is newer than step-10", "key=lambda path: int(path.name[5:]), default=None", "default=None"),
    ("a resume that is not one", 'set_once(values, "resume", True,', 'set_once(values, "resume", False,'),
    ("a silenced warm-up", '"warmup_steps comes first": (value_of("warmup_steps") > 0',
     '"warmup_steps comes first": (value_of("warmup_steps") > 9'),
    ("a floor that is none", '!= "cosine_with_min_lr", ["min_lr"]', '== "cosine_with_min_lr", ["min_lr"]'),
    ("a name that nobody shows", 'not {"mlflow", "wandb", "trackio"} & {*value_of("report_to")}', "False"),
]

ZERO_SETTINGS = [
    ("any type of accumulated gradients", "if value not in DEEPSPEED_FLOATS:", "if type(value) is not str:"),
    ("other data types passed over", 'if key != "grad_accum_dtype":', 'if key == "":'),
    ("a type that the weights do not have without ZeRO", "if zero_stage == 0:", "if zero_stage is None:"),
    ("a division by 0 steps", '"steps_per_print" and value < 1:', '"steps_per_print" and value < 0:'),
    ("another AdamW asked for", "if key in ZERO_NOT_OFFERED:", 'if key == "offload_optimizer":'),
    ("only the first setting is told", "        raise Mistakes(*mistakes)\n", "        raise Mistakes(mistakes[0])\n"),
    ("auto stays", 'if value == "auto" or', 'if value == "Auto" or'),
    ("sections that are auto stay", 'value.get("enabled") == "auto":', 'value.get("enabled") == "Auto":'),
    ("a terminal obeys a file", "[spelled_out(f\"deepspeed={path!r} leaves to the options here: {', '.join(left)}\")]",
     "[f\"deepspeed={path!r} leaves to the options here: {', '.join(left)}\"]"),
    ("what is left open is not told", "        left.append(where)\n", ""),
    ("bfloat16 switched off without a word", 'value.get("enabled") is False and key != "bf16"',
     'value.get("enabled") is False'),
    ("all that is switched on is off", 'value.get("enabled") is False and', "True and"),
    ("an offload to nowhere stays", 'key.startswith("offload_") and value.get("device") in (None, "none")', "False"),
    ("every offload goes", 'value.get("device") in (None, "none")', "True"),
    ("Lion is AdamW", 'kept["type"] in PLAIN_ADAMW', "True"),
    ("numbers of an AdamW are dropped", 'and kept.keys() == {"type"} and', "and"),
    ("the later of two keys wins", "    if len(mapping) < len(pairs):\n", "    if False:\n"),
]

COMMAND_LINE = [
    ("a flag is text", "or True\n", 'or "true"\n'),
    ("one word is a list", "_read(words[0]) if len(words) == 1 else", "_read(words[0]) if len(words) == 0 else"),
    ("values are text", "        return read_yaml(word)\n", "        return word\n"),
    ("names without effect are in the help", 'nargs="*", help=argparse.SUPPRESS', 'nargs="*", help="without effect"'),
]

REFUSAL = [
    ("of several lines one is left", "lines += error.args if isinstance(error, Mistakes) else",
     "lines += error.args[:1] or"),
    ("lines without their error", 'f"error: {spelled_out(str(line))}" for', 'f"{spelled_out(str(line))}" for'),
    ("one line for all", 'return "\\n".join(f"error', 'return " ".join(f"error'),
]

SCHEDULE = [
    ("a cosine to 0", 'if scheduler == "cosine_with_min_lr":\n        return min_lr + (peak - min_lr) * cosine',
     'if scheduler == "cosine_with_min_lr":\n        return peak * cosine'),
    ("a floor below the cosine", "min_lr + (peak - min_lr) * cosine", "min_lr + peak * cosine"),
    ("a share of steps is a number of them", "if warmup_steps >= 1 else", "if warmup_steps > 0 else"),
    ("one step is the whole run", "if warmup_steps >= 1 else", "if warmup_steps > 1 else"),
    ("the ratio comes first", "(warmup_steps or warmup_ratio)", "(warmup_ratio or warmup_steps)"),
]

COMBINATIONS = [
    ("a floor above the peak", "config.min_lr > config.learning_rate:", "config.min_lr > 1:"),
    ("a cosine without its end", '"cosine_with_min_lr" and config.min_lr is None:', '"" and config.min_lr is None:'),
]

CONTINUATION = [
    ("a share of steps does not depend on the length", "(share == 0 or share >= 1)", "(share >= 0)"),
    ("steps of a warm-up depend on the length", "(share == 0 or share >= 1)", "(share == 0)"),
    ("an option that came later has no default", "{name: default_of(one) for", "{name: None for"),
    ("an edited reward file is not named", "if was.get(place, found) != found]", "if False]"),
    ("a checkpoint without reward files names all", "was.get(place, found) != found", "was.get(place) != found"),
]

REWARD_FILES = [
    ("reward files are not in a checkpoint", '"reward_files": content.of_reward_files(config.reward_funcs),',
     '"reward_files": {},'),
]

RESUMED = [("nobody is told of an edited reward file", ", *continuation.edited(record, sources)]", "]")]

TRACKERS = [
    ("trackers do not get the name", 'self.settings["run_name"] or os', "os"),
    ("a resumed run is another one", "known=known.get(name)", "known=None"),
    ("whatever came of it, it is finished", "self.mlflow.end_run(status)", "self.mlflow.end_run()"),
    ("only the thread that began a run ends it", "self.mlflow.MlflowClient().set_terminated(self.id, status)", "pass"),
    ("only the thread that began a run flushes it", "self.run.finish()", "self.trackio.finish()"),
    ("a table behind a later step", 'self.wandb.Table(columns=columns, data=cells)})',
     'self.wandb.Table(columns=columns, data=cells)}, step=step)'),
    ("tags of the environment are not set", 'mlflow.set_tags(json.loads(os.environ.get("MLFLOW_TAGS", "{}")))', "pass"),
]

TRAIN = [
    ("nobody tells the trackers before a verdict",
     '            heartbeat.before_end(partial(log.tell_end, "FAILED"))\n', ""),
]
LOG = [
    ("trackers are told twice", "            if not self.ended:\n", "            if True:\n"),
    ("whatever ends it, a run has ended well", 'self._tell("close", status)', 'self._tell("close", "FINISHED")'),
]

RECIPE_GROUPS = [
    ("grpo/options/foreign.py", ("test_foreign.py", "test_foreign_keys.py"), TABLE),
    ("grpo/options/recipe.py", ("test_foreign.py", "test_foreign_keys.py", "test_config.py"), RECIPE),
    ("grpo/options/derived.py", ("test_foreign.py", "test_foreign_keys.py", "test_config.py"), DERIVED),
    ("grpo/options/zero_settings.py", ("test_foreign_keys.py", "test_bad_configs.py"), ZERO_SETTINGS),
    ("grpo/options/command_line.py", ("test_foreign.py", "test_foreign_keys.py", "test_config.py"), COMMAND_LINE),
    ("grpo/options/refusal.py", ("test_foreign_keys.py", "test_quick_answers.py"), REFUSAL),
    ("grpo/schedule.py", ("test_schedule.py",), SCHEDULE),
    ("grpo/options/combinations.py", ("test_foreign_keys.py",), COMBINATIONS),
    ("grpo/saving/continuation.py", ("test_checkpoint.py",), CONTINUATION),
    ("grpo/saving/continuation.py", ("test_moved.py",), REWARD_FILES),
    ("grpo/run/build.py", ("test_moved.py",), RESUMED),
    ("grpo/report/trackers.py", ("test_trackers.py",), TRACKERS),
    ("grpo/report/log.py", ("test_trackers.py",), LOG),
    ("train.py", ("test_trackers.py",), TRAIN),
]
