"""Mistakes in how reward functions are found and called, and in completions without a reward; see planted.py."""

ADVANTAGE = [
    ("the unscored are 0", "scored = reward_BG[b, scored_BG[b]]", "scored = reward_BG[b].nan_to_num()"),
    ("the unscored are 0 in the batch's std", "reward_BG[~reward_BG.isnan()].std() if",
     "reward_BG.nan_to_num().std() if"),
    ("mean of all groups' scored", "scored.mean(), scored.std()", "reward_BG[scored_BG].mean(), scored.std()"),
    ("std of all groups' scored", "scored.mean(), scored.std()", "scored.mean(), reward_BG[scored_BG].std()"),
    ("population std of the scored", "scored.mean(), scored.std()", "scored.mean(), scored.std(correction=0)"),
    ("one alone has statistics", "if scored_BG[b].sum() > 1:", "if scored_BG[b].sum() > 0:"),
    ("two are too few", "if scored_BG[b].sum() > 1:", "if scored_BG[b].sum() > 2:"),
    ("groups that lack one teach nothing", "(~scored_BG).any(dim=1)", "(scored_BG & False).any(dim=1)"),
    ("an unscored completion's advantage is no number", "torch.where(flat_B1 | reward_BG.isnan(), ",
     "torch.where(flat_B1, "),
    ("an unscored completion is the highest", "torch.where(scored_BG, reward_BG, -math.inf)",
     "torch.where(scored_BG, reward_BG, 0.0)"),
    ("an unscored completion is the lowest", "torch.where(scored_BG, reward_BG, math.inf)",
     "torch.where(scored_BG, reward_BG, 0.0)"),
    ("a group without any reward differs in itself", "highest_B1 <= lowest_B1", "highest_B1 == lowest_B1"),
]

MEASURES = [
    ("a mean reward over all", 'mean("reward", "scored")', 'mean("reward", "completions")'),
    ("accuracy over all", 'mean("right", "scored")', 'mean("right", "completions")'),
    ("the unscored are 0 in the batch's std", "global_std(reward_BG[scored_BG])",
     "global_std(reward_BG.nan_to_num().flatten())"),
    ("one alone is a group", "compared_B = scored_BG.sum(dim=1) > 1", "compared_B = scored_BG.sum(dim=1) > 0"),
    ("a mean of nothing is 0", "if sums[number] else math.nan", "if sums[number] else 0.0"),
    ("right without a reward", "return right_BG & ~reward_BG.isnan()", "return right_BG"),
    ("the unscored are wrong", "(right_BG | ~scored_BG).all(dim=1)", "right_BG.all(dim=1)"),
    ("the share of the scored", '(sums["completions"] - sums["scored"])', 'sums["scored"]'),
    ("failures over the scored", 'for name in part) / sums["sampled"]', 'for name in part) / sums["scored"]'),
    ("None counts in a function's mean", 'mean(f"sum/{name}", f"num/{name}")', 'mean(f"sum/{name}", "completions")'),
    ("metrics of this rank alone", "gather_objects(logged)", "[logged]"),
    ("the last value logged", "sum(numbers) / len(numbers)", "numbers[-1]"),
    ("a rank's mean of metrics counts once", "for value in part.get(name, [])]",
     "for value in part.get(name, [])[:1]]"),
]

WATCH = [
    ("told again and again", " and not told:", ":"),
    ("every warning once", "told = healthy.once and (name, healthy) in self.told",
     "told = (name, healthy) in self.told"),
]

TRACKER = [
    ("a tracker's error ends the run", "        except Exception as error:  # of a library",
     "        except KeyError as error:  # of a library"),
    ("a warning for each step", "            if not self.fails:", "            if True:"),
    ("one warning for all times", "            self.fails = False", "            pass"),
]

LOG = [
    ("a logged number replaces the trainer's", "{**(logged or {}), **values}", "{**values, **(logged or {})}"),
    ("what is logged is lost", "values = {**(logged or {}), **values}", "pass"),
]

POOL = [
    ("None from all functions is 0", "if all(map(isnan, parts))}", "if False}"),
    ("None from one function leaves out", "if all(map(isnan, parts))}", "if any(map(isnan, parts))}"),
    ("a failure is always 0", 'if self.failure == "zero":', "if True:"),
    ("a failure always leaves out", 'if self.failure == "zero":', "if False:"),
    ("a failed part is left out and not its completion", "left_out |= failed", "pass"),
    ("a function without weight leaves out", "elif weight:", "else:"),
    ("no failure counted", "Answered([None] * count, set(range(count)), reply",
     "Answered([None] * count, set(), reply"),
    ("what works alone failed", "        self.failed.remove(index)\n", ""),
    ("the last call's metrics", "self.metrics.setdefault(name, []).extend(numbers)", "self.metrics[name] = numbers"),
    ("notes of one completion at another", "[None] * len(self.values))[index] = value",
     "[None] * len(self.values))[0] = value"),
    ("metrics lost", "scored.metrics.setdefault(metric, []).extend(", "list("),
    ("columns lost", "            scored.extra.update(extra)\n", ""),
    ("notes of the worker not checked", "            check_notes(metrics, extra, count)\n", ""),
    ("a wrong kind of notes ends the run", "TypeError, AttributeError, ", "TypeError, "),
    ("no tokens", '"completion_ids": completion_ids}', '"completion_ids": [[] for _ in completions]}'),
    ("no state", '"state": trainer_state}', '"state": {}}'),
    ("any metric may be logged", '"taken": list(taken)', '"taken": []'),
]

RUNNER = [
    ("the trainer's metrics may be logged", "Notes(name, self.taken, self.owners)", "Notes(name, [], self.owners)"),
    ("two functions in one column", "Notes(name, self.taken, self.owners)", "Notes(name, self.taken, {})"),
    ("notes not checked where they are made", "            check_notes(notes.metrics, notes.extra, count)\n", ""),
    ("metrics not sent", '"metrics": notes.metrics', '"metrics": {}'),
    ("columns not sent", '"extra": notes.extra', '"extra": {}'),
    ("a note's mistake is tried again", 'count)\n        except ValueError as error:\n            return {"failure": '
     'str(error), "alone": False}', 'count)\n        except ValueError as error:\n            return {"failure": '
     'str(error), "alone": True}'),
]

ARGUMENTS = [
    ("every argument to every function", "if name in named}", "}"),
    ("prompt for everyone", 'named |= offered.keys() - {"prompt"}', "named |= offered.keys()"),
    ("prompt for nobody", '{**offered, "prompt": offered["prompts"]}', "{**offered}"),
    ("no arguments by name alone", "(one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)", "(one.POSITIONAL_OR_KEYWORD,)"),
    ("**kwargs gets nothing", "if any(one.kind == one.VAR_KEYWORD for one in parameters):", "if False:"),
    ("a new event loop for each call", "@functools.cache\n", ""),
    ("only functions are async", "inspect.isawaitable(values)", "inspect.iscoroutinefunction(function)"),
    ("coroutines are returned", "if inspect.isawaitable(values) else values", "if False else values"),
    ("the trainer's names of parts may be logged", " or name.startswith(PARTS)", ""),
    ("a metric that is not finite", "number if isfinite(number) else None", "number"),
    ("a metric begins with 0", "self.metrics.setdefault(name, []).append(",
     "self.metrics.setdefault(name, [0.0]).append("),
    ("a metric without a name", "if not isinstance(name, str):", "if False:"),
    ("a column's last part", "self.extra.setdefault(column, []).extend(map(as_json, values))",
     "self.extra[column] = list(map(as_json, values))"),
    ("a column's values as they are", ".extend(map(as_json, values))", ".extend(values)"),
    ("a column that is no list", "or not isinstance(values, (list, tuple)):", "or False:"),
    ("arrays are no columns", "        values = as_list(values)\n        if not isinstance(column",
     "        if not isinstance(column"),
    ("two owners of a column", "if owner != self.function:", "if False:"),
    ("metrics that are no numbers", "number is None or isinstance(number, float)", "True"),
    ("columns of any length", "or len(values) != count:", "or False:"),
    ("a text is a column", "if not isinstance(values, list) or", "if"),
    ("columns not checked", "_signature(function).bind(**chosen(function, offered))", "pass"),
    ("no nearest argument", 'f"; nearest valid value: {near[0]}" if near else ""', '""'),
    ("no signature is a mistake", "except ValueError:  # of a few", "except KeyError:  # of a few"),
    ("a state's field that is not there is None",
     """raise AttributeError(f"trainer_state has no {name!r}; it has {', '.join(vars(self))}")""", "return None"),
]

VALUES = [
    ("NaN in a column", ", parse_constant=lambda _: None)", ")"),
    ("what JSON does not know is lost", "return str(value) if found is value else found", "return found"),
    ("arrays in a column as text", "return str(value) if found is value else found", "return str(value)"),
    ("asyncio is blamed", ', STANDARD_LIBRARY / "asyncio")', ")"),
    ("we are blamed", "(ours, ours / \"workers\", STANDARD_LIBRARY", "(STANDARD_LIBRARY"),
]

LOADING = [
    ("a class is a function", "if inspect.isclass(function):", "if False:"),
    ("a notebook is not told of files", 'if getattr(own, "__name__", "") == "__main__" and', "if False and"),
    ("no modules beside the file", "        _open_folder(file.parent)\n", ""),
    ("modules of two folders mixed up", "if home in _FOLDERS and", "if False and"),
    ("modules by name are files", "if is_file else importlib.import_module(place)", "if True else None"),
    ("anything is a module", "not all(map(str.isidentifier, place.split(\".\")))", "not place"),
    ("a module of a package by its file", 'if "." in module.__name__:', "if False:"),
    ("a notebook is a file", 'if file.endswith(".py") else ""', 'if file is not None else ""'),
    ("a function of ours by its file", "        if place == f", "        if not f"),
    ("only functions of their own module", "(own, *list(sys.modules.values()))", "(own,)"),
    ("equal is the same", "if value is function and _place(module):", "if name != '' and _place(module):"),
]

STEP = [
    ("columns not written", "        if extra:  # of log_extra\n", "        if False:\n"),
    ("all are scored", "return ~self.reward_BG.flatten().isnan()",
     "return self.reward_BG.flatten() == self.reward_BG.flatten()[-1]"),
    ("metrics not kept", "logged=logged_metrics(groups.scored.metrics),", "logged={},"),
]

PARTS = [
    ("steps count from 1", '"global_step": step,', '"global_step": step + 1,'),
    ("an epoch of completions", "len(self.train_examples) / self.config.prompts_per_step", "len(self.train_examples)"),
    ("epochs rounded down", "math.ceil(epochs)", "int(epochs)"),
    ("epochs as asked for although the steps decide", "if config.max_steps > 0 else", "if False else"),
]

TRAIN = [
    ("a file may train when it is imported", "if TOKEN in os.environ:", "if False:"),
    ("what functions log is not written", ", taken.collected.logged)", ")"),
    ("only rank 0 has a summary", "return gather_objects(summary)[0]", "return summary"),
]

PYTHON = [
    ("every end is a RuntimeError", "(ValueError if code == 2 else RuntimeError)", "RuntimeError"),
    ("a stopped run is like another", "if summary is None:", "if False:"),
    ("a plan trains", '("plan", "doctor")', '("doctor",)'),
]

GROUP = [
    ("the process group stays", "if dist.is_initialized() and not before:", "if False:"),
    ("the process group stays after a mistake", """        yield
    finally:
        if dist""", """        yield
    except ImportError:
        pass
    else:
        if dist"""),
    ("a launcher's variable stays", "if given is None:", "if False:"),
]

CONFIG = [
    ("functions are no names", "name_of(one) if callable(one) else one", "one"),
    ("types are not looked at", "convert(one, getattr(self, name))", "getattr(self, name)"),
]

OPTION = [
    ("a path is no text", "isinstance(value, os.PathLike)", "isinstance(value, bytes)"),
]

DOCTOR = [
    ("the unscored count as 0", "known = [value for value in values if not isnan(value)]",
     "known = [0.0 if isnan(value) else value for value in values]"),
    ("nothing known is an error", "return statistics.mean(known) if known else 0.0", "return statistics.mean(known)"),
]

TRIAL = [
    ("completions without a reward are not named", 'number if unscored > bound("unscored_share") else ""', '""'),
    ("a step without any reward is no failure", 'fail=number if unscored == 1 else ""', 'fail=""'),
    ("the unscored are tried too", "collected.scored_N, run.config, limit)",
     "~collected.scored_N | True, run.config, limit)"),
]

TRL_GROUPS = [
    ("grpo/advantage.py", ("test_advantage.py",), ADVANTAGE),
    ("grpo/report/measures.py", ("test_metrics.py",), MEASURES),
    ("grpo/report/watch.py", ("test_watch.py",), WATCH),
    ("grpo/report/log.py", ("test_metrics.py",), LOG),
    ("grpo/report/trackers.py", ("test_trackers.py",), TRACKER),
    ("rewards/workers/pool.py", ("test_trl_calls.py", "test_reward_answers.py"), POOL),
    ("rewards/workers/runner.py", ("test_trl_calls.py",), RUNNER),
    ("rewards/arguments.py", ("test_trl_calls.py", "test_reward_answers.py"), ARGUMENTS),
    ("rewards/values.py", ("test_trl_calls.py",), VALUES),
    ("rewards/loading.py", ("test_trl_calls.py",), LOADING),
    ("grpo/step.py", ("test_own_rewards.py",), STEP),
    ("grpo/run/parts.py", ("test_doctor_rewards.py",), PARTS),
    ("train.py", ("test_trl_calls.py", "test_own_rewards.py"), TRAIN),
    ("train.py", ("test_python.py",), PYTHON),
    ("grpo/distributed.py", ("test_python.py",), GROUP),
    ("grpo/config.py", ("test_python.py",), CONFIG),
    ("grpo/options/option.py", ("test_python.py",), OPTION),
    ("grpo/doctor/problems.py", ("test_doctor_rewards.py",), DOCTOR),
    ("grpo/doctor/trial.py", ("test_doctor_rewards.py",), TRIAL),
]
