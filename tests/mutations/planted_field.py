"""Mistakes planted in the rewards of TRL and open-r1, in math_verify and in Reasoning Gym; see planted.py."""

LATEX = [
    ("a second place is tried", 'read(text, places, "first_match")', 'read(text, places, "any_match")'),
    ("an answer without a gold is wrong", "if known else None", "if known else 0.0"),
    ("any number of a text is an answer",
     "ExprExtractionConfig(try_extract_without_anchor=False))", "ExprExtractionConfig())"),
    ("bare LaTeX is no gold", r'rf"\boxed{{{gold}}}"', "gold"),
    ("one $ marks a gold", 'gold.count("$") > 1', 'gold.count("$") > 0'),
    ("the box does not come first", '"boxed_match_priority": 0', '"boxed_match_priority": 50'),
    ("comparing never ends", "timeout_seconds=COMPARE_S", "timeout_seconds=300"),
    ("units of TRL's answers stay", "NormalizationConfig(units=True)", "NormalizationConfig()"),
]

TRL = [
    ("the cosine over twice the length", "cos(pi * min(len(ids) / max_len, 1.0))",
     "cos(pi * min(len(ids) / max_len, 2.0))"),
    ("long and short swapped where it is wrong", "(min_value_wrong, max_value_wrong)\n",
     "(max_value_wrong, min_value_wrong)\n"),
    ("long and short swapped where it is right", "(max_value_correct, min_value_correct)",
     "(min_value_correct, max_value_correct)"),
    ("no answer is a wrong one", "        if right is None:\n            values.append(None)\n            continue\n",
     ""),
    ("reasoning ends at its first delimiter", "text.rpartition(end)[2]", "text.partition(end)[2]"),
    ("without an end the whole text counts", "0.0 if end is None else", "_accuracy(text, one) if end is None else"),
    ("reasoning may stand later", "float(not before and ", "float("),
    ("reasoning may begin twice", 'and "<think>" not in rest ', ""),
    ("reasoning need not end", ' and "</think>" in rest)', ")"),
    ("the last n-gram is left out", "len(ids) - ngram_size + 1", "len(ids) - ngram_size"),
    ("repetition by the number of different n-grams", "max_penalty * repeated / len(ngrams)",
     "max_penalty * repeated / len({*ngrams})"),
    ("the line goes on behind the limit", "len(ids) > max_completion_len", "len(ids) > max_completion_len + 1"),
    ("the line over the whole length", "-over / soft_punish_cache", "-over / max_completion_len"),
    ("no limit without a soft one", "-1.0 if len(ids) > max_completion_len else ", ""),
    ("a penalty may reward", "nearest=-1.0) > 0:", "nearest=-1.0) > 1:"),
    ("true is a number of tokens", "isinstance(value, int) and not isinstance(value, bool)", "isinstance(value, int)"),
    ("NaN is a value", " or not isfinite(value)", ""),
]

OPEN_R1 = [
    ("a tag may come twice", "count(tag) == 1", "count(tag) >= 1"),
    ("no line break behind the end of reasoning", '"\\n</think>\\n"', '"\\n</think>"'),
    ("text in front of the reasoning", "float(not before and ", "float("),
    ("the answer need not end a line", '"\\n</answer>\\n" in f"{answer}\\n"', '"\\n</answer>" in answer'),
    ("a wrong short answer is rewarded", "min(0.0, share) if wrong else share", "share"),
    ("a solution without LaTeX", ", gold_places=LATEX, first=True", ""),
    ("length from the longest", "(len(text) - shortest) / spread if", "(len(text) - shortest) / max(lengths) if"),
]

GYM = [
    ("answers are run", "if given is not None and not is_harmless(task[\"name\"], given):", "if False:"),
    ("a call in a literal", r"""r"[\w\s,'\"\[\]-]*")""", r"""r"[\w\s,'\"\[\]()-]*")"""),
    ("a dot in a literal", r"""r"[\w\s,'\"\[\]-]*")""", r"""r"[\w\s,'\"\[\].-]*")"""),
    ("any dot in a formula", r"\.(?=\d)", r"\."),
    ("any name in a formula", "(?:[A-Za-z]|a?(?:sin", r"(?:[A-Za-z]+|a?(?:sin"),
    ("the first tag", "text.rpartition(f\"<{tag}>\")", "text.partition(f\"<{tag}>\")"),
    ("the tag where the line is asked for", 'if tagged and answer_from != "line":', "if tagged:"),
    ("the line where the tag is asked for", 'None if answer_from == "tag" else ANSWER_LINE', "ANSWER_LINE"),
    ("the parameters of the rows are lost", 'create_dataset(task["name"], **task["config"])',
     'create_dataset(task["name"])'),
    ("one task's parameters for all", "key = repr(task)", 'key = task["name"]'),
    ("raising ends the call", "        except Exception:  # some", "        except KeyError:  # some"),
    ("nobody is told of it", "            raised += 1\n", ""),
    ("any place", "if answer_from not in PLACES:", "if False:"),
]

DATA = [
    ("neighbouring seeds hold out", "NUM_SEEDS // 4", "1"),
    ("held-out questions that are trained on", 'if row["question"] not in trained]', "]"),
    ("the run's seed comes first", 'seed = config.pop("seed", seed)', 'config.pop("seed", seed)'),
    ("ranks with other rows", 'if name in BY_HASH and', "if False and"),
    ("plus signs are spaces", "from urllib.parse import unquote\n",
     "from urllib.parse import unquote_plus as unquote\n"),
    ("parameters that nobody has", "        if key not in known:", "        if False:"),
    ("no row at all", 'if config.get("size", 1) < 1:', "if False:"),
]

LOADING = [
    ("a missing package is not looked for", "    if name in EXTRAS:\n", "    if False:\n"),
    ("any version will do", "or version and found != version:", "or False:"),
]

DERIVED = [
    ("format is ours beside open-r1's names", "names = [foreign.OPEN_R1.get(name, name) for name in given]",
     "names = [name if name in BUILT_IN else foreign.OPEN_R1.get(name, name) for name in given]"),
    ("a doubtful format passes", "if both and theirs != given:", "if False:"),
    ("what open-r1 computes otherwise passes", "        if name in foreign.OPEN_R1_OTHERS:\n", "        if False:\n"),
    ("open-r1's lengths in everybody's recipe", "(foreign.OVERLONG if is_theirs else {}) | given",
     "foreign.OVERLONG | given"),
    ("a contradiction of lengths passes", "own.get(key, value) != value:", "False:"),
    ("an option that was given is lost", "{name: wanted | own}", "{name: wanted}"),
    ("lengths without their reward are silent", "for key, value in given.items() if value != foreign.OVERLONG[key]]",
     "for key, value in {}.items()]"),
    ("dotted paths are told nowhere", 'notes.append(f"reward_funcs: {name} is', 'str(f"reward_funcs: {name} is'),
]

FIELD_GROUPS = [
    ("rewards/latex.py", ("test_verifiers.py",), LATEX),
    ("rewards/trl.py", ("test_verifiers.py",), TRL),
    ("rewards/open_r1.py", ("test_verifiers.py",), OPEN_R1),
    ("rewards/gym.py", ("test_gym.py",), GYM),
    ("data/gym.py", ("test_gym_data.py",), DATA),
    ("rewards/loading.py", ("test_verifiers.py", "test_gym.py"), LOADING),
    ("grpo/options/derived.py", ("test_foreign.py",), DERIVED),
]
