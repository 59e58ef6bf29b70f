"""What the doctor asks of the problems: can a completion end, do the prompts fit, does what is right earn most?"""

import statistics
from collections.abc import Callable
from math import isnan

from data.conversation import for_rewards
from data.example import Example
from data.prompts import COMPLETION
from grpo.doctor.chat import chat_template, ends_turn
from grpo.doctor.finding import Finding, judge
from grpo.doctor.programs import PROGRAM_REWARDS, sandbox, solutions
from grpo.health.pulse import pulse
from grpo.report.measures import RIGHT
from grpo.run.parts import Run
from rewards.math import (
    ANSWER_LINE,
    CORRECTNESS_REWARD,
    FORMAT_REWARD,
    correctness_reward,
    format_reward,
    gold_number,
)
from rewards.workers.pool import Scored

SAMPLE = 64  # problems that are tokenized and scored
LEFT_OUT_SHARE = 0.1
FUNCTIONS = {"format": format_reward, "correctness": correctness_reward}  # these need no process of their own
HIGHEST = {"format": FORMAT_REWARD, "correctness": CORRECTNESS_REWARD}
NONSENSE = ("", " zq vlorp, 7 ## xx")


def of_problems(run: Run, *, own_rewards: bool) -> list[Finding]:
    """All of these checks; with `own_rewards` the user's own rewards are called too."""
    examples = sample(run)
    return [*end_of_text(run), *prompts(run, examples), chat_template(run, examples), *repetitions(run),
            *sandbox(run), *rewards(run, examples, own=own_rewards)]


def sample(run: Run) -> list[Example]:
    """Training problems, evenly spaced."""
    return run.train_examples[:: -(-len(run.train_examples) // SAMPLE)]


def end_of_text(run: Run) -> list[Finding]:
    """Can a completion end before it is cut?"""
    tokenizer, vocabulary, stops = run.tokenizer, run.decoder.config.vocab_size, run.config.stop_strings
    inside = sorted(token for token in run.stop_token_ids if token < vocabulary)
    beyond = sorted(run.stop_token_ids - set(inside))
    spelled = {stop: tokenizer.encode(stop, add_special_tokens=False) for stop in stops}
    lost = [stop for stop, ids in spelled.items()
            if stop not in tokenizer.decode(ids) or max(ids, default=vocabulary) >= vocabulary]
    other = "tokenizer_name_or_path=one with an end token that the model knows"
    doubt = {
        other: not inside or tokenizer.eos_token_id is None,
        "chat_template=one that ends an answer with an end token": not ends_turn(run),
        f"an eos_token_id in generation_config.json without {beyond}, which the head cannot produce": beyond}
    return [
        judge("end tokens", f"{inside or 'none'} of {vocabulary:,} end a text, {beyond or 'none'} lie beyond the head; "
              f"the tokenizer's is {tokenizer.eos_token_id}", warn=next(filter(doubt.get, doubt), ""),
              fail=other if not inside and len(lost) == len(stops) else ""),
        judge("stop strings", f"{len(stops) - len(lost)} of {len(stops)} can be sampled"
              + (f", but not {lost}" if lost else ""), warn="tokenizer_name_or_path=one that spells them" * bool(lost)),
    ]


def prompts(run: Run, examples: list[Example]) -> list[Finding]:
    """Do the prompts fit, and end where a completion can begin?"""
    encoded = [run.prompt_ids(example) for example in examples]
    lengths = [len(tokens) for tokens in encoded]
    completion, context = run.config.max_completion_length, run.decoder.config.max_position_embeddings
    number = len(run.train_examples)
    total = number + run.left_out
    # Not a line break: tokenizers keep it apart from the word behind it, and chat templates end in one.
    spaced = sum(example.prompt[-1] in (" ", "\t") for example in run.train_examples)
    ended = sum(tokens[-1] in run.stop_token_ids for tokens in encoded)
    return [
        judge("prompt length", f"{max(lengths):,} tokens the longest of {len(lengths)}, {statistics.median(lengths):g} "
              f"the median, with {completion:,} for a completion in a context of {context:,}; {run.left_out:,} of "
              f"{total:,} problems left out",
              warn=f"max_prompt_length={context - completion}, or fewer num_shots"
              if run.left_out > LEFT_OUT_SHARE * total else ""),
        judge("prompt end", f"{spaced:,} of {number:,} prompts end in a space, {ended} of {len(encoded)} in an end "
              "token", warn="prompts that end in a word or a line break: a space belongs to the token behind it"
              if spaced else "a tokenizer that puts no end token behind a prompt" if ended else ""),
    ]


def repetitions(run: Run) -> list[Finding]:
    """Is a problem there twice, or both learnt and held out?"""
    learnt = {example.title for example in run.train_examples}
    number, different = len(run.train_examples), len({example.prompt_text for example in run.train_examples})
    both = sum(example.title in learnt for example in run.test_examples)
    per_step = run.config.prompts_per_step
    return [
        judge("duplicates", f"{number - different:,} of {number:,} training prompts came before",
              warn="train_dataset_id_or_path=a file that has each once" if different < number else ""),
        judge("held out", f"{both:,} of {len(run.test_examples):,} held-out questions are trained on",
              warn="test_dataset_id_or_path=other problems" if both else ""),
        judge("prompts per step", f"{per_step:,} of {number:,}",
              warn=f"prompts_per_step={number}: a step draws some prompts twice" if per_step > number else ""),
    ]


def gold_completion(example: Example) -> str:
    """A completion that is right: the dataset's own where it ends in the answer line or needs none, else that line."""
    if example.columns.get("tests") and example.columns.get("solution"):
        return f" {example.columns['solution']}"
    line = ANSWER_LINE.search(example.answer)
    if line and line.end() == len(example.answer) or example.answer and not example.final_answer:
        return f" {example.answer}"
    return COMPLETION.format(reasoning="", final_answer=example.final_answer or 1)


def rewards(run: Run, examples: list[Example], *, own: bool) -> list[Finding]:
    """Does a right answer earn most, nonsense nothing, and the same text the same twice?"""
    def ask(completion: Callable[[Example], str]) -> Scored:
        """The one place where the doctor calls reward functions, with a completion of each example."""
        columns = {name: [one.columns[name] for one in examples] for name in examples[0].columns if name != "prompt"}
        texts = [completion(example) for example in examples]
        pairs = [for_rewards(example.prompt, text) for example, text in zip(examples, texts, strict=True)]
        completions = [completion for _, completion in pairs]
        if own:
            ids = [run.tokenizer.encode(text, add_special_tokens=False) for text in texts]
            return run.rewards.score(
                prompts=[prompt for prompt, _ in pairs], completions=completions, completion_ids=ids, columns=columns,
                trainer_state=run.trainer_state(0), on_wait=pulse.progress)
        parts = {name: FUNCTIONS[name](completions, **columns) for name in run.config.reward_funcs if name in FUNCTIONS}
        weight = dict(zip(run.config.reward_funcs, run.rewards.weights))
        total = [sum(weight[name] * value_N[n] for name, value_N in parts.items()) for n in range(len(examples))]
        return Scored(total, parts, {})

    gold, again, *wrong = ask(gold_completion), ask(gold_completion), *(ask(lambda _, t=text: t) for text in NONSENSE)
    findings = []
    known = any(example.final_answer or example.answer or example.columns.get("solution") for example in examples)
    failed = {name: failure for scored in (gold, again, *wrong) for name, failure in scored.failures.items()}
    for name, value_N in gold.parts.items():
        wrong_N = [value for scored in wrong for value in scored.parts[name]]
        if name in failed:
            findings.append(judge(f"reward {name}", f"failed on {failed[name][0]} of {len(examples)} completions: "
                                  f"{failed[name][1]}", fail="reward_funcs=a function that gives any text a finite "
                                  "number, or None"))
        elif name in FUNCTIONS:
            findings.append(_built_in(run, name, examples, value_N, wrong_N))
        elif name in PROGRAM_REWARDS:
            findings.append(solutions(name, value_N, wrong_N, known=known))
        else:
            findings.append(_users_own(name, value_N, again.parts[name], wrong_N, known=known))
    if not gold.parts:
        return []
    if known and run.config.outcome_reward in gold.parts:
        findings.append(_outcome(run.config.outcome_reward, gold.parts[run.config.outcome_reward]))
    mean, most = _mean(gold.total), max(_mean(scored.total) for scored in wrong)
    level = "fail" if "correctness" in gold.parts else "warn"
    cure = "reward_weights with which a right answer earns most" if known and most > mean else ""
    return [*findings, judge("rewards together", f"{mean:.3g} for gold answers, at most {most:.3g} for no text or "
                             "nonsense", **{level: cure})]


def _built_in(run: Run, name: str, examples: list[Example], value_N: list[float], wrong_N: list[float]) -> Finding:
    poor = [example.final_answer for example, value in zip(examples, value_N) if value < HIGHEST[name]]
    high = sum(value > 0 for value in wrong_N)
    cure = f"a {name} reward that gives nonsense nothing" if high else ""
    if poor:
        what = "holds no number" if gold_number(poor[0]) is None else "is not what the solution in answer ends in"
        cure = (f"train_dataset_id_or_path={run.config.train_dataset_id_or_path} with numbers in its column "
                f"final_answer, or '#### 42' behind its answer: {poor[0]!r:.40} {what}")
    return judge(f"reward {name}", f"{len(examples) - len(poor)} of {len(examples)} gold answers earn {HIGHEST[name]}, "
                 f"{high} of {len(wrong_N)} empty or nonsense texts anything", warn=cure,
                 fail=cure if high or 2 * len(poor) > len(examples) else "")


def _users_own(name: str, value_N: list[float], again_N: list[float], wrong_N: list[float], *, known: bool) -> Finding:
    means = _mean(value_N), _mean(wrong_N)
    random = str(value_N) != str(again_N)
    return judge(
        f"reward {name}", f"{means[0]:.3g} for gold answers, {means[1]:.3g} for no text and nonsense"
        + (", and another value when asked again" if random else ""),
        warn="reward_funcs=a function of its arguments alone" if random
        else f"reward_weights with little for {name}, or a right answer earns less than nonsense"
        if known and means[1] > means[0] else "")


def _outcome(name: str, value_N: list[float]) -> Finding:
    """With an outcome on another scale nothing would ever be right, and advantage_gate would take every advantage."""
    right = sum(value >= RIGHT for value in value_N)
    return judge("outcome", f"{right} of {len(value_N)} gold answers are right, {name} gives them {RIGHT:g} or more",
                 warn="" if right else f"outcome_reward=a function that gives {RIGHT:g} where an answer is right, with "
                 "reward_weights 0 if it shall only say so")


def _mean(values: list[float]) -> float:
    """Of those that are there: NaN is a None of a reward function; 0 where it said nothing of any text."""
    known = [value for value in values if not isnan(value)]
    return statistics.mean(known) if known else 0.0
