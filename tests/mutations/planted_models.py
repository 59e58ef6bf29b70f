"""Mistakes in how a model, an adapter and a tokenizer become what is trained and what is sampled; see planted.py."""

HEADS = [
    ("what says tied is tied", "weight is model.get_input_embeddings().weight\n",
     "weight is model.get_input_embeddings().weight or model.config.tie_word_embeddings\n"),
    ("a head that is the embedding is held twice", "            seen.add(parameter)\n", "",
     "more memory, the same numbers"),
]
DECODER = [
    ("the sampler has the original beside what is trained whole", ' or ".original_module" in name', ""),
    ("the sampler has the reference's copy of it", ' or f".modules_to_save.{REFERENCE}" in name', ""),
    ("the sampler has no copies that are trained whole", '".original_module" in name', '"modules_to_save" in name'),
    ("branches at scale 1", "module.scaling[TRAINED]\n", "1.0\n"),
    ("a branch in the wrong order", "in (module.lora_A, module.lora_B))",
     "in (module.lora_B, module.lora_A))"),
    ("packed bytes of another type stay", "module.weight.data.flatten().view(dtype)[:, None]", "module.weight.data"),
    ("products in the type of the files", "            module.compute_dtype = dtype\n", ""),
    ("only the tokenizer's end", "(tokenizer.eos_token_id, *listed)", "(tokenizer.eos_token_id,)"),
    ("only the generation's ends", "(tokenizer.eos_token_id, *listed)", "(*listed,)"),
]
ADAPTER = [
    ("tied weights train apart", "ensure_weight_tying=tied,", "ensure_weight_tying=False,"),
    ("the reference is the bare base", "        _copy_as_reference(model)\n", "        pass\n"),
    ("what is trained whole has no reference", "            module._adapters.add(REFERENCE)\n", ""),
    ("the reference trains", "parts[REFERENCE] = copy.deepcopy(parts[TRAINED], copies).requires_grad_(False)",
     "parts[REFERENCE] = copy.deepcopy(parts[TRAINED], copies)"),
    ("the reference is what trains", "saved[REFERENCE] = copy.deepcopy(saved[TRAINED], copies).requires_grad_(False)",
     "saved[REFERENCE] = saved[TRAINED]"),
    ("what peft puts into the base passes", "(foreign - wanted,", "(set(),"),
    ("what is missing passes", "(wanted - tensors.keys(),", "(set(),"),
    ("the base's own weights in an adapter are foreign",
     "if name not in base or not torch.equal(tensor.to(base[name]), base[name])}", "}"),
    ("the base's changed weights are its own",
     "if name not in base or not torch.equal(tensor.to(base[name]), base[name])}",
     "if name not in base}"),
    ("a tied name is unknown", "model.named_parameters(remove_duplicate=False)", "model.named_parameters()"),
    ("packed modules can be trained whole", 'type(module).__name__ != "Linear4bit" and ', ""),
    ("any module can be trained whole", 'if not any(path.endswith(f".{one}") for path in paths):', "if not paths:"),
    ("ranks by pattern are another kind", '"rank_pattern", "alpha_pattern", ', '"alpha_pattern", '),
    ("scales by pattern are another kind", '"rank_pattern", "alpha_pattern", ', '"rank_pattern", '),
    ("a start that changed the base passes", "plain = value in STARTS if", "plain = True if"),
    ("an adapter that is not finite passes",
     '        check_finite("adapter_name_or_path", path, name, tensor)\n', "        pass\n"),
    ("a branch where the sampler has none passes",
     "isinstance(module, LoraLayer) and name.rpartition", "False and name.rpartition"),
]
QUANTISED = [
    ("NF4 that is not asked for", "            if not load_in_4bit:\n", "            if False:\n"),
    ("8 bits pass", '        method += " in 8 bits"\n', "        return\n"),
    ("any 4 bits are NF4", 'if kind == "nf4" and twice and not apart:', "if twice and not apart:"),
    ("scales that are not quantised pass",
     'if kind == "nf4" and twice and not apart:', 'if kind == "nf4" and not apart:'),
    ("layers left out pass", 'if kind == "nf4" and twice and not apart:', 'if kind == "nf4" and twice:'),
    ("a head left out is refused", 'if one != "lm_head"]', "]"),
    ("what nothing is known of is double",
     'found.get("bnb_4bit_use_double_quant", False)', 'found.get("bnb_4bit_use_double_quant", True)'),
    ("4 bits are NF4 unless they say so",
     'found.get("bnb_4bit_quant_type", "fp4")', 'found.get("bnb_4bit_quant_type", "nf4")'),
    ("other files that are quantised pass", ' or settings.get("compression_config")', ""),
]
SIZES = [
    ("sizes that NF4 cannot pack", "if value % NF4_BLOCK:", "if False:"),
]
INSPECTION = [
    ("missing weights pass", '(("missing_keys", "is not in its files"), ', "("),
    ("other shapes pass", ', ("mismatched_keys", shape)):', ",):"),
    ("what has no place passes", "    if foreign:\n", "    if False:\n"),
    ("a whole vocabulary too large", "if tokenizer.vocab_size > vocab_size:", "if False:"),
    ("as many tokens as the model are too many", "if tokenizer.vocab_size > vocab_size:",
     "if tokenizer.vocab_size >= vocab_size:"),
    ("added tokens are too many", "if tokenizer.vocab_size > vocab_size:", "if len(tokenizer) > vocab_size:"),
    ("any end", "type(token) is not int or token < 0", "type(token) is not int"),
    ("an end of the vocabulary's size", "any(token < vocab_size for", "any(token <= vocab_size for"),
    ("no end beyond the vocabulary", "any(token < vocab_size for", "all(token < vocab_size for"),
    ("no vocabulary", '    if not tokenizer.encode("1 + 1", add_special_tokens=False):\n', "    if False:\n"),
    ("NaN passes", "not ends.isfinite().all()", "ends.isinf().any()"),
]
TOKENS = [
    ("tokens are not looked at", "if token >= first), None)", "if token > 2**40), None)"),
    ("the model's size is a token", "if token >= first), None)", "if token > first), None)"),
    ("the last token of the model is none", "if token >= first), None)", "if token >= first - 1), None)"),
]
BUILD = [
    ("the evaluation's prompts are not looked at", 'test_path or train_path, test_examples, test_prompts, tokenizer',
     'test_path or train_path, [], [], tokenizer'),
    ("the training's prompts are not looked at", "train_path, train_examples, prompts, tokenizer, model_config",
     "train_path, [], [], tokenizer, model_config"),
]

MODEL_GROUPS = [
    ("grpo/loading/model.py", ("test_heads.py",), HEADS),
    ("grpo/loading/model.py", ("test_heads.py", "test_bad_models.py", "test_chat_run.py"), DECODER),
    ("grpo/loading/adapter.py", ("test_heads.py", "test_adapter.py", "test_bad_models.py"), ADAPTER),
    ("grpo/loading/model_config.py", ("test_bad_models.py",), QUANTISED),
    ("grpo/loading/model_config.py", ("test_bad_input.py",), SIZES),
    ("grpo/loading/inspection.py", ("test_bad_models.py", "test_added_tokens.py"), INSPECTION),
    ("grpo/run/examples.py", ("test_added_tokens.py",), TOKENS),
    ("grpo/run/build.py", ("test_added_tokens.py",), BUILD),
]
