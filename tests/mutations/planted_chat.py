"""Mistakes in what a row becomes: a conversation, its tokens, its end, what rewards get; see planted.py."""

CONVERSATION = [
    ("any role may be last", 'LAST = ("user", "tool", "assistant")', 'LAST = ("user", "tool", "assistant", "system")'),
    ("a tool may not be last", 'LAST = ("user", "tool", "assistant")', 'LAST = ("user", "assistant")'),
    ("messages written as text are a text", 'return hint if _WRITTEN_OUT.match(prompt) else ""', 'return ""'),
    ("any list written as text is messages", r"""["'](role|content)["']""", r"""["']\w+["']"""),
    ("no messages are messages", "if not isinstance(prompt, list) or not prompt:", "if not isinstance(prompt, list):"),
    ("a message needs no content", 'for key in ("role", "content")]', 'for key in ("role",)]'),
    ("messages count from 0", "enumerate(prompt, start=1)", "enumerate(prompt)"),
    ("half a letter in a message", "isinstance(part, str) and not _SURROGATE.search(part)", "isinstance(part, str)"),
    ("half a letter in a text", "not prompt.strip() or _SURROGATE.search(prompt)", "not prompt.strip()"),
    ("any number of solved examples", "    check_num_shots(num_shots)\n", ""),
    ("all solved examples", "EXEMPLARS[:num_shots]", "EXEMPLARS"),
    ("an answer begins with a space", "final_answer=final_answer).strip()", "final_answer=final_answer)"),
    ("solved examples by the user alone", '{"role": "assistant", "content": answer}]',
     '{"role": "user", "content": answer}]'),
    ("what the user said first", "in reversed(messages) if", "in messages if"),
    ("whoever said it last", 'if one["role"] == "user"), messages', "), messages"),
    ("a continued message is lost to the rewards", 'prompt[-1]["content"] if is_continued(prompt) else ""', '""'),
    ("every last message is continued", 'prompt[-1]["content"] if is_continued(prompt) else ""',
     'prompt[-1]["content"]'),
    ("a continued message stays in the prompt", "prompt[:-1] if is_continued(prompt) else prompt[:]", "prompt[:]"),
    ("all rewards share one prompt", "else prompt[:]  #", "else prompt  #"),
    ("the start behind the rest", "start + completion}]", "completion + start}]"),
    ("the user says the completion", '[{"role": "assistant", "content": start', '[{"role": "user", "content": start'),
]

PROMPT_IDS = [
    ("a text without the tokens around it", "add_special_tokens=as_they_are", "add_special_tokens=False"),
    ("messages with the tokens around a text", "add_special_tokens=as_they_are", "add_special_tokens=True"),
    ("the last batch alone", "found += tokenizer", "found = tokenizer"),
    ("nobody's turn", "add_generation_prompt=not continued", "add_generation_prompt=False"),
    ("a new turn after a started one", "continued = is_continued(prompt)", "continued = False"),
    ("every message is continued", "continued = is_continued(prompt)", "continued = True"),
    ("variables forgotten", "**form, **(variables or {})", "**form"),
    ("an answer to an answer", "prompt[:-1] if is_continued(prompt) else prompt\n", "prompt\n"),
    ("the last turn of the prompt", '[*before, {"role": "assistant", "content": ANSWER}]', "before"),
    ("what stands before the answer", "_, found, behind = text.rpartition", "behind, found, _ = text.rpartition"),
    ("found in any text", "add_special_tokens=False) if found else []", "add_special_tokens=False)"),
    ("a blank ends a turn", "if tokenizer.decode([token]).strip()), None)", "), None)"),
    ("a special token anywhere behind", "first = next((token for token in tokens if tokenizer.decode([token]).strip())",
     "first = next((token for token in tokens if token in tokenizer.added_tokens_decoder)"),
    ("a word ends a turn", "{first} & tokenizer.added_tokens_decoder.keys()", "{first} - {None}"),
    ("no word on a template that is missing", "if tokenizer.chat_template is None:", "if False:"),
    ("several lines", '" ".join(str(error).split())[:LONGEST_REASON]', "str(error)"),
]

TABLES = [
    ("only some errors of the library are one line", "except Exception as error:  # also RuntimeError",
     "except (OSError, ValueError) as error:  #"),
    ('"NA" is missing', '"keep_default_na": False', '"keep_default_na": True'),
    ("an empty cell is a text", '"na_values": [""]', '"na_values": []'),
    ("commas in a .tsv", '_CSV | {"sep": "\\t"}', "_CSV"),
    ("a .tsv.gz is a .csv.gz", '".tsv.gz": ("csv", _TSV)', '".tsv.gz": ("csv", _CSV)'),
    ("a name is a pattern", "data_files=escape(str(path))", "data_files=str(path)"),
    ("a copy in the cache", 'split="train", streaming=True, **options', 'split="train", **options'),
    ("only folders with splits", '("dataset_dict.json", "state.json")', '("dataset_dict.json",)'),
    ("only folders without splits", '("dataset_dict.json", "state.json")', '("state.json",)'),
    ("the configuration is ignored", "config or HUB_CONFIG.get(name)", "HUB_CONFIG.get(name)"),
    ("no choice of configurations", "(dataset_config={config})", "(dataset_config)"),
    ("several lines", "' '.join(str(error).split())[:LONGEST_REASON]", "str(error)"),
]

ROWS = [
    ("a file of tables is JSON", "if _suffix(path) in tables.READERS:", "if False:"),
    (".gz is text", '(gzip.open if path.suffix == ".gz" else open)', "(open)"),
    ("a .gz that breaks off is a crash", "except (OSError, EOFError, zlib.error)", "except (OSError, zlib.error)"),
    ("a mark in front is a letter", 'encoding="utf-8-sig"', 'encoding="utf-8"'),
    ("a suffix is what stands behind the last dot", "path.name.removesuffix(_suffix(path))", "path.stem"),
    ("a folder is never one split", 'if "" not in saved else _of_one', "if True else _of_one"),
    ("a local file has configurations", "if dataset_config is not None and path.exists():", "if False:"),
    ("training rows are test rows", 'if split == "test" and name != "train":', 'if split == "test":'),
    ("prompts of row 1 decide nothing", "isinstance(rows[0][prompt_column], list)",
     "any(isinstance(row[prompt_column], list) for row in rows)"),
    ("a dot always leads inside", "[column] if column in row else column.split", "column.split"),
    ("inner names are not offered", 'yield from (f"{name}.{inner}" for inner in value)', "pass"),
    ("only row 1 has answers", "for number, row in enumerate(rows, start=1):\n        try:",
     "for number, row in enumerate(rows[:1], start=1):\n        try:"),
]

GSM8K = [
    ("None stays in a message", " if value is not None} for message", "} for message"),
    ("ready texts are no messages", "    elif chat:\n", "    elif False:\n"),
    ("raw rows are no messages", "(converse if chat else build_prompt)", "(build_prompt)"),
    ("the column question of a conversation", 'last_said(prompt) if isinstance(prompt, list) else str(',
     'str('),
    ("the dataset's own final_answer wins", 'if answer_column is not None or "answer" in row and',
     'if "answer" in row and'),
    ("the answer column is not looked at", "if answer_column is None and row.get", "if row.get"),
    ("the answer column is not found inside", "else look_up(row, answer_column)", "else row.get(answer_column)"),
    ("an answer of 0 is none", '"" if answer is None else str(answer)', 'str(answer or "")'),
    ("an answer column of another name", "    if answer_column is not None:\n        check_answers",
     "    if False:\n        check_answers"),
]

LOAD = [
    ("auto is true", 'apply_chat_template == "true" or', 'apply_chat_template != "false" or'),
    ("a system prompt makes no messages", '"true" or system_prompt is not None', '"true"'),
    ("messages where no template may be", '"false" and isinstance(examples[0]', '"" and isinstance(examples[0]'),
    ("a system prompt without messages", '"false" and system_prompt is not None', '"" and system_prompt is not None'),
    ("generated problems are no messages", "build = converse if chat else build_prompt", "build = build_prompt"),
    ("two system messages", 'if example.prompt[0]["role"] == "system":', "if False:"),
    ("the system prompt comes last", "[message, *example.prompt]", "[*example.prompt, message]"),
]

PROMPTS = [
    ("one of ours is enough", "return STOP_STRINGS if all(", "return STOP_STRINGS if any("),
    ("every prompt stops at a question", "prompt.endswith(ours) for", "True for"),
    ("our template anywhere", "prompt.endswith(ours)", 'prompt.startswith("Question")'),
]

CHAT_OPTIONS = [
    ("a template is a file", "if value is None or _is_template(value):", "if value is None:"),
    ("a file is the template", "    return text\n", "    return value\n"),
    ("any text is a template", 'problem = "" if _is_template(text) else', 'problem = "" if True else'),
    ("a template prints", '"{{" in text or "{%" in text', '"{{" in text'),
    ("bytes that are no text are a crash", "except (OSError, ValueError) as error:", "except OSError as error:"),
    ("tokens may be cut", '"truncation", "max_length"', '"max_length"'),
    ("any variable", "name in TAKEN:", "False:"),
]

OPTION = [
    ("no line breaks", 'fine = "\\n\\t" if lines else ""', 'fine = ""'),
    ("line breaks everywhere", 'fine = "\\n\\t" if lines else ""', 'fine = "\\n\\t"'),
    ("line breaks are blank", 'text.strip(" " if lines else None)', "text.strip()"),
]

DOCTOR = [
    ("an unused template is fine", 'texts are meant" if doubt', 'texts are meant" if False'),
    ("what is meant is doubtful", ' and run.config.apply_chat_template == "auto"', ""),
    ("what is rendered is doubtful", " and not rendered", ""),
    ("any added word is of a template", "if added.special}", "}"),
    ("our own is doubtful", " and not rendered and not ours", " and not rendered"),
    ("the first token twice", "twice = any(ids[:2]", "twice = all(ids[1:2]"),
    ("an open thought is fine", "begun = ends.rstrip().endswith(THOUGHT)", "begun = ends.endswith(THOUGHT)"),
    ("a started thought is doubtful", " and not is_continued(examples[0].prompt)", ""),
    ("any variable is known", "if name not in str(tokenizer.chat_template)]", "if False]"),
    ("any template ends", "isinstance(prompt, str) or bool(end_of_turn", "True or bool(end_of_turn"),
    ("more examples for messages", "if isinstance(run.train_examples[0].prompt, list):", "if False:"),
    ("the template for our own", "unused = ready and", "unused ="),
]

# What is handed on through a run and through eval.py.
BUILD = [
    ("the template's end ends nothing", " | end_of_turn(tokenizer, prompt, config.chat_template_kwargs)", ""),
    ("another template is not used", "chat_template=config.chat_template, **hub", "**hub"),
    ("no string ends what ours ends", "strings = default_stop_strings(example.prompt for example in examples)",
     'strings = ["\\nQuestion:"]'),
]
PARTS = [("variables forgotten", "example.prompt, self.config.chat_template_kwargs)", "example.prompt)")]
STEP = [
    ("the question is the prompt", "[one.title for one", "[one.prompt_text for one"),
]
ASKED = [
    ("rewards get texts", "for_rewards(one.prompt, text) for one", "(one.prompt_text, text) for one"),
    ("tokens of the longest completion", "ids_T[:length].tolist()", "ids_T.tolist()"),
]
ANSWERS = [
    ("the question is the prompt", "question=example.title", "question=example.prompt_text"),
]
EVAL = [
    ("the template's end ends nothing",
     "        stop_token_ids |= end_of_turn(tokenizer, prompt, settings.chat_template_kwargs)\n", ""),
    ("another template is not used", "chat_template=settings.chat_template,\n", "chat_template=None,\n"),
    ("variables forgotten", "for one in group], settings.chat_template_kwargs)", "for one in group])"),
    ("no system prompt", '"apply_chat_template", "system_prompt")}', '"apply_chat_template")}'),
]
STOPPING = [
    ("an end that is not special shows", "ids[:-1] if ids and self.kind_V[ids[-1]] == ENDS else ids", "ids"),
    ("the last token never shows", "ids and self.kind_V[ids[-1]] == ENDS", "ids"),
]
EXAMPLES = [
    ("the configuration of another dataset", "if test_path in (None, train_path) else None", "if True else None"),
    ("no configuration for the same dataset", "if test_path in (None, train_path) else None", "if False else None"),
    ("texts held out from messages", "if type(test[0].prompt) is not type(train[0].prompt):", "if False:"),
    ("variables forgotten", "for example in examples], config.chat_template_kwargs)", "for example in examples])"),
    ("no system prompt", '"apply_chat_template", "system_prompt")}', '"apply_chat_template")}'),
]
SUFFIXES = [("a table that is missing is a Hub name", '".parquet", ".csv"', '".csv"')]

CHAT_GROUPS = [
    ("data/conversation.py", ("test_conversation.py", "test_bad_data.py"), CONVERSATION),
    ("data/prompt_ids.py", ("test_conversation.py",), PROMPT_IDS),
    ("data/tables.py", ("test_tables.py",), TABLES),
    ("data/rows.py", ("test_tables.py", "test_conversation.py", "test_data.py", "test_bad_data.py"), ROWS),
    ("data/gsm8k.py", ("test_conversation.py",), GSM8K),
    ("data/__init__.py", ("test_conversation.py",), LOAD),
    ("data/prompts.py", ("test_conversation.py",), PROMPTS),
    ("grpo/options/chat.py", ("test_chat_options.py",), CHAT_OPTIONS),
    ("grpo/options/option.py", ("test_chat_options.py",), OPTION),
    ("grpo/doctor/chat.py", ("test_doctor_chat.py",), DOCTOR),
    ("grpo/run/build.py", ("test_chat_run.py",), BUILD),
    ("grpo/run/parts.py", ("test_chat_run.py",), PARTS),
    ("grpo/step.py", ("test_chat_run.py",), STEP),
    ("grpo/run/scoring.py", ("test_chat_run.py",), ASKED),
    ("grpo/evaluation/answers.py", ("test_chat_run.py",), ANSWERS),
    ("eval.py", ("test_chat_run.py",), EVAL),
    ("grpo/sampler/stopping.py", ("test_stopping.py",), STOPPING),
    ("grpo/run/examples.py", ("test_run.py",), EXAMPLES),
    ("grpo/options/surroundings.py", ("test_chat_options.py",), SUFFIXES),
]
