"""Mistakes in what a run keeps, whose folder it is, and how it stops; see planted.py."""

PARTS = [
    ("every rank has the first part", "whole.flatten()[parameter.ds_zero_partition_rank * size:]", "whole.flatten()"),
    ("the last part is not filled up", "return nn.functional.pad(part, (0, size - part.numel()))", "return part"),
]

OUTPUT_LOCK = [
    ("a run that ended early is written over", "                put_aside(output_dir, locked)\n",
     "                pass\n"),
    ("what a resumed run goes on from is put aside", "            if not resume:\n", "            if True:\n"),
    ("a run that may go on is put aside", "        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)\n    except",
     "        pass\n    except"),
    ("only the first file is put aside", "    for name in left:\n", "    for name in left[:1]:\n"),
    ("two may share a lock", "flock(file, fcntl.LOCK_EX", "flock(file, fcntl.LOCK_SH"),
    ("nobody looks a second time", "            check_output_dir(output_dir, resume=resume)\n", ""),
    ("nobody says who has it", 'file.write(f"process {os.getpid()} on {socket.gethostname()}\\n")', "pass"),
]

PREFLIGHT = [
    ("checkpoints alone are no run", 'RESULTS = ("checkpoints", ', "RESULTS = ("),
    ("an adapter alone is no run", '"checkpoints", "adapter", "model"', '"checkpoints", "model"'),
    ("metrics alone are a run", 'for name in RESULTS if holds', 'for name in WRITTEN if holds'),
    ("an empty folder is a run", "any(path.iterdir()) if path.is_dir() else os.path.lexists(path)",
     "os.path.lexists(path)"),
    ("a start behind a link", "Path(start).resolve().is_relative_to", "Path(start).is_relative_to"),
    ("a start adapter may be written over", '("adapter_name_or_path", "adapter") if values["use_peft"] else '
     '("model_name_or_path", "model")', '("model_name_or_path", "model")'),
]

CONTINUATION = [
    ("another adapter goes on", 'if then["adapter"] != read["adapter"]:', "if False:"),
]
EXPORT = [
    ("without held-out problems nothing is exported", "if source.config.eval_examples:", "if True:"),
    ("nobody is told why nothing is compared", "why_none:\n        print(", "why_none:\n        str("),
]

CONTENT = [
    ("the adapter's description alone", '("adapter_config.json", "adapter_model.safetensors")',
     '("adapter_config.json",)'),
]

RUN = [
    ("compared before problems are left out", "config, train_examples, test_examples, tokenizer, prompts,",
     "config, load_problems(config)[0], test_examples, tokenizer, prompts,"),
]

# A run that goes on at another place.
MOVED = [
    ("a revision must stay whatever it holds", '(BY_CONTENT if "content" in then else set())', "set()"),
    ("a revision may change though nobody knows what it held", '(BY_CONTENT if "content" in then else set())',
     "BY_CONTENT"),
    ("a tokenizer without a path has no place", "INSTEAD.get(name, name) for", "name for"),
    ("paths may not change", "    *READ,  # names", "    # names"),
    ("other content goes on", "if known is not None and known != found:", "if False:"),
    ("an older checkpoint goes on with any path", "if known is None and was[name] != now[name]:", "if False:"),
    ("an older checkpoint never goes on", "if known is None and was[name] != now[name]:", "if known is None:"),
    ("other content only at another path", "if known is not None and known != found:",
     "if known not in (None, found) and was[name] != now[name]:"),
    ("the training rows are the held-out ones too", "content.of_examples(test)", "content.of_examples(train)"),
]
MOVED_CONTENT = [
    ("prompts alone", "[one.prompt, one.final_answer, one.columns]", "[one.prompt]"),
    ("no gold answers", "[one.prompt, one.final_answer, one.columns]", "[one.prompt, one.columns]"),
    ("the order of the columns counts", "sort_keys=True, default", "default"),
    ("what only tables have is its type", "repr(value) if isinstance(value, PLAIN) else type(value).__name__",
     "type(value).__name__"),
    ("a place in memory counts", "repr(value) if isinstance(value, PLAIN) else type(value).__name__", "repr(value)"),
    ("a tokenizer without its vocabulary", "sorted(tokenizer.get_vocab().items()), ", ""),
    ("a tokenizer without its template", "         tokenizer.chat_template]", "         None]"),
    ("prompts run into each other", "[len(prompt), *prompt]", "prompt"),
]
FINGERPRINT = [
    ("a Hub that is silent has no such file", "                raise\n", "                pass\n"),
    ("settings do not count", "digest.update(json.dumps({key", "str(json.dumps({key"),
    ("where a text ends does not count", '("config.json", "generation_config.json")', '("config.json",)'),
    ("who wrote it counts", "if key not in WRITER", ""),
    ("a model in several files has no weights", "if not files and (index :=", "if False and (index :="),
    ("files count by their order", "in sorted(line for file in files for line in _samples(Path(file))):",
     "in [line for file in files for line in _samples(Path(file))]:"),
    ("the sizes alone", "                digest.update(file.read(min(BLOCK, end - place)))\n", ""),
    ("the header is the weights", "file.seek(start + place)", "file.seek(place % start)"),
]
HOME = [
    ("a moved run goes on at its old place", '        values["output_dir"] = str(home)\n', ""),
    ("a folder that is given does not count", ' and "output_dir" not in given else', " else"),
    ("a new run goes where its recipe lies", 'if file and values.get("resume") and', "if file and"),
]
PROLONGED = [
    ("the last step has no answers of its own", 'f"step-{step}" if step else "before"',
     '{0: "before", self.run.num_steps: "after"}.get(step, f"step-{step}")'),
]
HOME_OF = [("any recipe beside checkpoints is a run's", 'recipe.name == "config.yaml" and any', "any")]

FLUSH = [
    ("evaluations stay in memory", "            both.callback(heldout.flush)\n", ""),
    ("no last try for the log", "            both.callback(log.flush)\n", ""),
]
LOG = [
    ("one file that fails keeps the next from its lines", "                each.callback(file.flush)\n",
     "                file.flush()\n"),
]

JSON_LINES = [
    ("flush only asks", "        self._write()\n        if self.pending:", "        if self.pending:"),
    ("lost lines are not told", "        if self.pending:\n            raise OSError", "        if False:\n"
     "            raise OSError"),
    ("half a line is read", "return [json.loads(line) for line in whole]",
     "return [json.loads(line) for line in lines]"),
    ("half a line is left out without a word", "if len(whole) < len(lines):", "if False:"),
]

SEVERAL = [
    ("the biased pass@k", "1 - comb(num_samples - num_right, k) / comb(num_samples, k)",
     "1 - (1 - num_right / num_samples) ** k"),
    ("a tie is won", "number / (1 + ties)", "number"),
    ("a tie is lost", "number / (1 + ties)", "number * (ties == 0)"),
    ("what states nothing has a vote", "ways = _drawn(ways, num_silent, most=None)",
     "ways = _drawn(ways, num_silent, most=votes)"),
    ("all wrong answers are one", "list(wrong.values())", "[sum(wrong.values())]"),
    ("samples are not put to their problems", "setdefault(answer.index, [])", "setdefault(0, [])"),
]
EVALUATION = [
    ("half of the answers have the name", 'path.with_suffix(".tmp")', "path"),
]

ROLLOUT = [
    ("sampling goes on to its end", "            stop_request.leave()\n", ""),
]

SCORING = [
    ("a slow reward is waited for", "        stop_request.leave()\n", ""),
]

PREEMPTION = [
    ("a rank leaves alone", "with suppress(Stopped):\n            yield\n        self.check()", "yield"),
    ("asked once is asked for ever", '            self.name, self.interrupted = "", False\n            for',
     "            for"),
]

HELDOUT = [
    ("what the model was before is the best", '(record for record in self.records if record["step"] > 0)',
     "iter(self.records)"),
    ("one evaluation less than the patience", ">= len(trained) - patience:", "> len(trained) - patience:"),
    ("one more", ">= len(trained) - patience:", "> len(trained) - patience - 2:"),
    ("the newest checkpoint is kept, not the best", 'position.best = self.best["step"]',
     'position.best = self.records[-1]["step"]'),
    ("a resumed run does not know its best step", "        self._keep_best(position)  # also", "        # also"),
    ("the last weights are exported as the best", "checkpoint.take_weights(self.run.engine, folder)", "None"),
    ("what was reached is the last step's", "self._name(exported)", "self._name(done)"),
    ("shares of the other way to answer", "found |= numbers(mode, everyone)", 'found |= numbers("sampled", everyone)'),
]

MERGE = [
    ("a head that is the embedding is written twice",
     "= model.get_output_embeddings().weight is model.get_input_embeddings().weight", "= False"),
    ("the base's sampling is kept", "old, new = model.generation_config, GenerationConfig()",
     "old = new = model.generation_config"),
    ("nobody else may read it", "    make_readable(partial)\n    partial.rename", "    partial.rename"),
    ("nothing is told of what is left out", "return new, left", "return new, []"),
    ("a quantised base is refused in words of the training", 'if settings.get("quantization_config"):', "if False:"),
]
COMPARISON = [
    ("each form beside itself", "first = logprob_K if first is None else first", "first = logprob_K"),
    ("the model without its adapter", "            read_adapter(model, str(source.adapter), is_trainable=False)\n", ""),
    ("one NF4 form more", "[True, False] if config.load_in_4bit else [False]", "[True, False]"),
]
COMMAND = [
    ("every rank answers all", "mine = range(rank(), len", "mine = range(0, len"),
    ("written at the end alone", "if rank() == 0 and settings.output is not None:\n                write",
     "if rank() == 0 and len(answers) > 1 and settings.output is not None:\n                write"),
    ("the length is looked at later",
     "    check_room(prompts, [index for index, _ in enumerate(prompts)], most, context)\n", ""),
]
EXPORTED = [
    ("the weights alone are readable by their owner", "            make_readable(partial)\n            _publish",
     "            _publish"),
]
ADAPTER_NAME = [
    ("a base that is found from one folder", "os.path.abspath(config.model_name_or_path)", "config.model_name_or_path"),
]

POSITION = [
    ("what is saved is saved again", '"" if self.saved == self.done else checkpoint', "checkpoint"),
    ("what is not saved is taken as saved", "first_step, first_step or None", "first_step, first_step"),
]

SAVE = [
    ("no moments before the first step", "engine.start_optimizer(0)  # no step, no moments", "pass"),
]

TRIAL = [
    ("all that was missing is removed", "shutil.rmtree(folder, ignore_errors=True)",
     "shutil.rmtree(missing[-1] if missing else folder, ignore_errors=True)"),
    ("folders that it made stay", "                    path.rmdir()", "                    pass"),
]

CHART = [
    ("the axis begins at the smallest value", "min([0.0, *values])", "min(values, default=0.0)"),
    ("upside down", "HEIGHT - BOTTOM, TOP)", "TOP, HEIGHT - BOTTOM)"),
    ("each step on hover", "if len(values) <= MOST_POINTS:", "if True:"),
    ("the last value is left out", "{0, len(values) - 1}", "{0}"),
    ("spikes are left out", ", max(stretch, key=values.__getitem__)}", "}"),
    ("nothing but zeros is in the middle", "high if high > low else low + 1", "high"),
    ("values under the left half alone", "x_of((one + other) / 2)", "x_of(other)"),
    ("the highest is told as the lowest", '"lowest": by_value[0]', '"lowest": by_value[-1]'),
    ("means are told in words", "if index == 0 or line.intervals)", "if line.label)"),
    ("fractions of a step", "max(step, 1.0) if whole else step", "step"),
    ("the last tick is left out", "math.floor(high / step + 1e-9) + 1)", "math.floor(high / step + 1e-9))"),
    ("markup in a title", "{html.escape(title)}</text>", "{title}</text>"),
    ("bars of the first interval", "V{y_of(high):.1f}", "V{y_of(y):.1f}"),
]

PAGE = [
    ("only what was evaluated has completions", "    if completions.exists() and (rows",
     "    if evaluations and completions.exists() and (rows"),
    ("a curve of nothing", "        if points:\n", "        if True:\n"),
    ("warnings that come again are lines", "first + (f", "first + '\\n'.join(others) + (f"),
    ("half a page has the name", 'partial = path.with_suffix(".tmp")', "partial = path"),
    ("few steps of thousands", "max(WINDOW, len(records) // SMOOTH)", "WINDOW"),
    ("a run's only reward twice", "if len(rewards) > 1 else", "if rewards else"),
]
MARKUP = [
    ("no dark colors", "@media (prefers-color-scheme: dark)", "@media (prefers-color-scheme: light)"),
    ("a phone scrolls", "@media (max-width: {NARROW}px)", "@media (min-width: {NARROW}px)"),
    ("cells without a name on a phone", '<td data-label="{escaped(name)}">', "<td>"),
    ("markup in a text", "return html.escape(spelled_out(text", "return (spelled_out(text"),
    ("endless completions", "text if len(text) <= MOST else", "text if True else"),
    ("defaults are changes", "if name not in defaults or value != defaults[name]]", "]"),
]
HEADLINE = [
    ("any difference is a rise", 'way = "went" if p_value >= CHANCE else', "way ="),
    ("a fall is a rise", 'new["strict"] > old["strict"]', "True"),
    ("the end is the start", "sum(rewards[-num:])", "sum(rewards[:num])"),
    ("few steps of a long run", "max(ENDS, len(rewards) // 20)", "ENDS"),
    ("a stop goes without saying", 'history.ending != "finished"', 'history.ending == "failed"'),
    ("a failure without a step is a start", '{"failed": "The run failed before', '{"": "The run failed before'),
    ("another number of shots", ' if one["num_shots"] == number)', ")"),
]
HISTORY = [
    ("a start that goes on began there", ' if index or start["first_step"]', " if index"),
    ("a part of the time is all of it", "if not unknown and all(", "if all("),
    ("an old run never ended", 'return "finished" if self.summary else ""', 'return ""'),
    ("the newest start is the run", "sum(_seconds(start) for start in self.starts)", "_seconds(self.starts[-1])"),
    ("out of as many as are done", 'self.starts[-1]["num_steps"] if self.starts else self.done', "self.done"),
]
PROVENANCE = [
    ("a prolonged run has the end of the shorter one", "            file.unlink(missing_ok=True)", "            pass"),
    ("a run at its end loses it", "if run.first_step < run.num_steps:", "if True:"),
    ("what is changed goes without saying", "', with uncommitted changes' if changed else ''", "''"),
    ("notes are code", '"--untracked-files=no"', '"--untracked-files=all"'),
    ("earlier starts are lost", "if run.asked.resume and path.exists() else []", "if False else []"),
    ("a failure has no reason", '"failed", next(', '"failed", "" and next('),
    ("a missing report hides the failure", "except Exception as problem:", "except EOFError as problem:"),
]
STOPPED = [
    ("a run that is stopped has no report", "    if log and exported is None:\n", "    if False:\n"),
]
NEWEST = [
    ("half of the last step", 'if size >= length or len({row["step"] for row in whole}) > 1:', "if whole:"),
    ("the steps before too", ' if row["step"] == whole[-1]["step"]]', "]"),
]

OUTPUT_GROUPS = [
    ("grpo/report/page.py", ("test_page.py",), PAGE),
    ("grpo/report/markup.py", ("test_page.py",), MARKUP),
    ("grpo/report/headline.py", ("test_headline.py",), HEADLINE),
    ("grpo/report/history.py", ("test_page.py", "test_headline.py"), HISTORY),
    ("grpo/run/provenance.py", ("test_provenance.py",), PROVENANCE),
    ("grpo/report/json_lines.py", ("test_page.py",), NEWEST),
    ("train.py", ("test_stop_request.py",), STOPPED),
    ("grpo/evaluation/several.py", ("test_several.py",), SEVERAL),
    ("grpo/report/chart.py", ("test_chart.py",), CHART),
    ("grpo/trainer/engine.py", ("test_three_ranks.py",), PARTS),
    ("grpo/saving/output_lock.py", ("test_output_folder.py",), OUTPUT_LOCK),
    ("grpo/options/surroundings.py", ("test_output_folder.py",), PREFLIGHT),
    ("grpo/saving/continuation.py", ("test_output_folder.py",), CONTINUATION),
    ("grpo/saving/content.py", ("test_output_folder.py",), CONTENT),
    ("grpo/saving/continuation.py", ("test_moved.py",), MOVED),
    ("grpo/saving/content.py", ("test_moved.py",), MOVED_CONTENT),
    ("grpo/loading/fingerprint.py", ("test_moved.py",), FINGERPRINT),
    ("grpo/run/command.py", ("test_moved.py",), HOME),
    ("grpo/options/surroundings.py", ("test_moved.py",), HOME_OF),
    ("grpo/run/heldout.py", ("test_moved.py",), PROLONGED),
    ("train.py", ("test_full_disk.py",), FLUSH),
    ("grpo/report/log.py", ("test_full_disk.py",), LOG),
    ("grpo/run/build.py", ("test_resume.py",), RUN),
    ("grpo/report/json_lines.py", ("test_full_disk.py",), JSON_LINES),
    ("grpo/evaluation/answers.py", ("test_full_disk.py",), EVALUATION),
    ("grpo/sampler/generate.py", ("test_stop_request.py",), ROLLOUT),
    ("grpo/step.py", ("test_stop_request.py",), SCORING),
    ("grpo/health/stop_request.py", ("test_stop_request.py",), PREEMPTION),
    ("grpo/run/heldout.py", ("test_heldout.py",), HELDOUT),
    ("grpo/export/merge.py", ("test_export.py",), MERGE),
    ("grpo/export/__main__.py", ("test_export.py",), EXPORT),
    ("grpo/export/comparison.py", ("test_export.py",), COMPARISON),
    ("grpo/saving/checkpoint.py", ("test_export.py",), EXPORTED),
    ("eval.py", ("test_eval.py",), COMMAND),
    ("grpo/loading/adapter.py", ("test_export.py",), ADAPTER_NAME),
    ("grpo/run/position.py", ("test_stop_request.py",), POSITION),
    ("grpo/saving/checkpoint.py", ("test_stop_request.py",), SAVE),
    ("grpo/doctor/trial.py", ("test_output_folder.py",), TRIAL),
]
