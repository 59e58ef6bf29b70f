"""Mistakes planted in the rewards for words, in what they read, and in the generated notes; see planted.py."""

COMPLETION = [
    ("the first message of a conversation", "completion[-1].get", "completion[0].get"),
]

WORDS = [
    ("a hyphen parts words", "(?:['-][^\\W_]+)*", "(?:'[^\\W_]+)*"),
    ("an underscore is a letter", '"[^\\W_]+(?:', '"\\w+(?:'),
    ("the apostrophe of typography is another", '"\\u2019": "\'"', '"\\u2019": "\\u2019"'),
    ("case always matters", "word if self.case_sensitive else word.casefold()", "word"),
    ("case never matters", "word if self.case_sensitive else word.casefold()", "word.casefold()"),
    ("'s is part of a word", "word[:-2] if word[-2:] in", "word if word[-2:] in"),
    ("no stems", 'return word if self.stemmer == "none" else _stem', "return word if True else _stem"),
    ("all forms are one", 'text.split("|")', '[text.replace("|", " ")]'),
    ("a term begins anywhere", "not found or found[0].start() > 0 or", "not found or"),
    ("a term ends anywhere", " or found[-1].end() < len(form)", ""),
    ("any gap between a term's words", " and tuple(text.gaps[start + 1:end]) == form.gaps[1:]", ""),
    ("the first word is the term", "if tuple(text.keys[start:end]) == form.keys and", "if"),
    ("letters that look alike differ", 'unicodedata.normalize("NFKC", text)', "text"),
    ("two spaces are not one", 'SPACE.sub(" ", gap)', "gap"),
]

STATEMENTS = [
    ("a short form ends a sentence", 'SHORT_FORMS = ("dr", ', 'SHORT_FORMS = ('),
    ("e.g. ends a sentence", '"e.g", ', ""),
    ("runs of dots are read from each dot", "(?<![.!?])", ""),
    ("a quotation mark hides the end", "[\"')\\]*_", "[\"'\\]*_"),
    ("a number's dot ends a sentence", "*+(?=\\s|$)", "*+"),
    ("a question states something", 'if "?" not in end[0]:', "if True:"),
    ("a question goes on", "            start = end.end()\n",
     '            start = start if "?" in end[0] else end.end()\n'),
    ("a sentence goes over lines", '"[^\\n\\r\\u2028\\u2029]+"', '"(?s:.)+"'),
    ("all words are in sentences", "statements, inside, number = [-1] *", "statements, inside, number = [0] *"),
    ("one sentence for all", "next(inside, (len(text), len(text))), number + 1",
     "next(inside, (len(text), len(text))), number"),
]

CONTEXTS = [
    ("one other word is enough", "MIN_OTHERS, MAX_WORDS = 2, 60", "MIN_OTHERS, MAX_WORDS = 1, 60"),
    ("a sentence may be shorter only", "MIN_OTHERS, MAX_WORDS = 2, 60", "MIN_OTHERS, MAX_WORDS = 2, 59"),
    ("a sentence without end", " and length[number] <= MAX_WORDS", ""),
    ("the same word counts again", "different.setdefault(number, set()).add(word)",
     "different.setdefault(number, set()).add((word, len(different[number])))"),
    ("and is a word between", 'JOINING = {"and", "or"}', 'JOINING = {"or"}'),
    ("terms are words between", "word not in JOINING and index not in covered", "word not in JOINING"),
    ("a list is a context", "return self.others_before[right.start] > self.others_before[left.end]", "return True"),
    ("a label's colon does not matter", 'any(": " in gap for', "any(False for"),
    ("a clock's colon matters", 'any(": " in gap for', 'any(":" in gap for'),
    ("bare terms are sound", "place for place in places if text.statements[place.start] in sound",
     "place for place in places if True"),
    ("negated terms count", "            and not any(negated[place.start:place.end])]", "            ]"),
    ("any two sentences", "return self.text.statements[left.start] != self.text.statements[right.start]",
     "return False"),
    ("one word more between", "right.start - left.end > self.within", "right.start - left.end > self.within + 1"),
    ("one word less between", "right.start - left.end > self.within", "right.start - left.end >= self.within"),
    ("the order never matters", "[(first, second)] if self.in_order else", "[] if False else"),
    ("the order always matters", "[(first, second)] if self.in_order else", "[(first, second)] if True else"),
]

NEGATIONS = [
    ("four words", "SCOPE = 5", "SCOPE = 4"),
    ("six words", "SCOPE = 5", "SCOPE = 6"),
    ("no is no negation", 'FORWARD = {"no", ', "FORWARD = {"),
    ("nothing is ruled out", 'BACKWARD = {"ruled out", ', "BACKWARD = {"),
    ("not only denies", 'NO_NEGATION = {"not only", ', "NO_NEGATION = {"),
    ("but ends nothing", 'BORDER = {"but", ', "BORDER = {"),
    ("a bracket ends nothing", 'set(";:()', 'set(";:'),
    ("a semicolon ends nothing", 'set(";:()', 'set(":()'),
    ("what a term says is denied", "if index in covered or two in NO_NEGATION:", "if two in NO_NEGATION:"),
    ("n't is no negation", "word.endswith(\"n't\") or ", ""),
    ("not covers one side", 'word in ("not", "never") and not border[index] and text', "False and text"),
    ("never covers one side", 'word in ("not", "never") and not', 'word == "not" and not'),
    ("not covers what is in front of any word", "and not border[index] and text.words[index - 1] in AUXILIARY",
     "and not border[index]"),
    ("a negation goes on over a border", "                if border[place]:\n                    break\n", ""),
    ("a negation goes back over a border", "                if border[place + 1]:\n                    break\n", ""),
    ("only one-word negations", "word in FORWARD or two in FORWARD", "word in FORWARD"),
    ("only one-word negations behind", "word in BACKWARD or two in BACKWARD", "word in BACKWARD"),
    ("a negation goes on in the next sentence", "word in BORDER or number != before or gap", "word in BORDER or gap"),
]

TEXT = [
    ("a group is half", "PARTIAL = 0.5", "PARTIAL = 1.0"),
    ("all groups are halved", "share if share in (1.0, None) else", "share if share is None else"),
    ("terms earn each time", "len({place.name for place in there}) / len(wanted)", "len(there) / len(wanted)"),
    ("a row without terms earns none", "place in there}) / len(wanted) if wanted else None)",
     "place in there}) / len(wanted) if wanted else 0.0)"),
    ("a pair is all", "sum(there.has(*pair) for pair in asked) / len(asked)",
     "any(there.has(*pair) for pair in asked)"),
    ("no pair but the first", "list(pairwise(wanted)) if pairs is None", "list(pairwise(wanted))[:1] if pairs is None"),
    ("pairs are not looked at", "        if wanted:\n            _check_names(asked, list(wanted))\n", ""),
    ("a group may pair with itself", "pair[0] == pair[1] or names is not None", "names is not None"),
    ("any pair of names", " or names is not None and not {*pair} <= {*names}", ""),
    ("a group that a table leaves empty", " if terms is not None}\n", "}\n"),
    ("the last row's terms for all", "return option if isinstance(option, list) else [option] * len(completions)",
     "return [option[-1] if isinstance(option, list) else option] * len(completions)"),
    ("no terms pass", "if not isinstance(terms, list) or not terms:", "if not isinstance(terms, list):"),
    ("a text is a list of letters", "if not isinstance(terms, list) or not terms:", "if not terms:"),
    ("what is no term passes", "    if None in found:\n", "    if False:\n"),
    ("terms are what YAML says", "term_of(term, matching) if isinstance(term, str) else None",
     "term_of(str(term), matching)"),
    ("any truth", "    if not isinstance(value, bool):\n", "    if False:\n"),
    ("one group is enough", "if names and len(names) < 2:", "if False:"),
    ("any distance", "if is_number and not 0 <= within <= NEAREST:", "if False:"),
    ("any unit", 'if within != "sentence" and not is_number:', "if False:"),
    ("true is a number of words", "isinstance(within, int) and not isinstance(within, bool)",
     "isinstance(within, int)"),
    ("any stemmer", "if stemmer not in languages:", "if False:"),
    ("a column may be an option", '{"pairs": pairs, "within"', '{"within"'),
]

SEMANTIC = [
    ("above the threshold only", "alike >= threshold and", "alike > threshold and"),
    ("the similarity itself", "float(alike >= threshold and bool(text)) if gold", "float(alike) if gold"),
    ("no text is alike at 0", "alike >= threshold and bool(text)", "alike >= threshold"),
    ("a row without reference earns none", "bool(text)) if gold else None", "bool(text)) if gold else 0.0"),
    ("a text and itself are below 1", "round(float(vector_of[text] @ vector_of[gold]), 6)",
     "float(vector_of[text] @ vector_of[gold]) - 1e-7"),
    ("longer texts are more alike", "normalize_embeddings=True), strict", "normalize_embeddings=False), strict"),
    ("each text for itself", "list(dict.fromkeys(text for pair in pairs for text in pair if text))",
     "[text for pair in pairs for text in pair if text]"),
    ("half a letter is sent to the model", 'text.encode("utf-8", "replace").decode().strip()', "text.strip()"),
    ("nothing is logged", "        if gold and log_metric:\n", "        if False:\n"),
    ("rows without reference are logged", "if gold and log_metric:", "if log_metric:"),
    ("any threshold", "if not is_number or not 0 <= threshold <= 1:", "if not is_number:"),
    ("true is a threshold", "isinstance(threshold, (int, float)) and not isinstance(threshold, bool)",
     "isinstance(threshold, (int, float))"),
    ("a folder that is not there is asked of the Hub", 'folder.startswith((".", "/", "~")) and not', "False and not"),
]

READERS = [
    ("options go to the function as they are", "(reader(**options) if reader else options)", "options"),
    ("a reader's arguments are options", "_named(reader or function)", "_named(function)"),
]

LOADING = [
    ("a reader is asked only where options are given", 'if name in given or hasattr(function, "read_options") else',
     "if name in given else"),
]

CLINICAL = [
    ("splits are not kept apart", "if _tenth(page, symptoms) in SPLITS[split]:", "if True:"),
    ("a page without its illness", "illness = rng.choice(page)", "illness = rng.choice(ILLNESSES)"),
    ("any split", "if split not in SPLITS:", "if False:"),
    ("solved examples are passed over in silence", "    if num_shots:\n", "    if False:\n"),
    ("any number of examples", "    check_num_shots(num_shots)\n", ""),
    ("a message is a text", "prompt=converse(question) if chat else", "prompt=question if chat else"),
]

PROBLEMS = [
    ("a note is no gold answer", " or example.answer and not example.final_answer:", ":"),
]

_WORDS = ("test_text_rewards.py",)
_OPTIONS = ("test_text_rewards.py", "test_text_options.py")
TEXT_GROUPS = [
    ("rewards/completion.py", ("test_rewards.py",), COMPLETION),
    ("rewards/words.py", _OPTIONS, WORDS),
    ("rewards/words.py", _WORDS, STATEMENTS),
    ("rewards/words.py", _WORDS, CONTEXTS),
    ("rewards/words.py", _WORDS, NEGATIONS),
    ("rewards/text.py", _OPTIONS, TEXT),
    ("rewards/text.py", ("test_semantic.py", "test_text_options.py"), SEMANTIC),
    ("rewards/arguments.py", ("test_text_options.py",), READERS),
    ("rewards/loading.py", _WORDS, LOADING),
    ("data/clinical.py", ("test_clinical.py",), CLINICAL),
    ("grpo/doctor/problems.py", ("test_doctor_recipes.py",), PROBLEMS),
]
