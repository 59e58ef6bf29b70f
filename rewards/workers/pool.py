"""The trainer's side of the rewards: a worker process scores, and whatever goes wrong there costs only rewards.

Requests are pickles, since columns may have values of any type. Answers are JSON, so that nothing from a reward
function is ever unpickled here. The limits are in `rewards.workers.keeper`.
"""

import json
import os
import pickle
import selectors
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import isnan, nan
from typing import Any, NamedTuple

from rewards.arguments import check_json, check_notes
from rewards.loading import metric_name
from rewards.values import check_values
from rewards.workers.keeper import ANSWER_BYTES, LOADS, MISLED
from rewards.workers.processes import TOKEN, bearers, command, end
from rewards.workers.requests import HEAD, LOADING

IMPORT_S = 300  # for the user's files; on a network drive a big library takes minutes to import first
GRACE_S = 15  # after a limit, for the worker to kill what broke it
FAILURES = ("zero", "exclude")  # what a completion gets from a function that failed on it
MAX_RETRIES_FAILED = 3  # after this many completions that fail alone, no further one is tried


class Scored(NamedTuple):
    """Rewards of N completions, by function name."""

    # [N] sum over functions of weight * part, without the parts that are NaN. NaN itself where all are, or where the
    # completion is left out because a function failed on it.
    total: list[float]
    # [N] before the weight. NaN where the function returned None; where it failed 0.0, or with "exclude" NaN.
    parts: dict[str, list[float]]
    failures: dict[str, tuple[int, str]]  # of a function that failed: on how many completions, and why
    metrics: dict[str, list[float]] = {}  # what each call of log_metric gave, by name
    extra: dict[str, list[Any]] = {}  # [N] what log_extra gave, by column; None where it gave nothing

    def take(self, rows: list[int]) -> "Scored":
        """The rewards of these completions; failures and metrics stay those of all."""
        parts, extra = ({name: [values[n] for n in rows] for name, values in columns.items()}
                        for columns in (self.parts, self.extra))
        return self._replace(total=[self.total[n] for n in rows], parts=parts, extra=extra)


def join(several: list[Scored]) -> Scored:
    """The rewards of several calls of the same functions, one after the other."""
    joined = Scored([], {name: [] for name in several[0].parts}, {}, {}, {})
    for scored in several:
        before, count = len(joined.total), len(scored.total)
        joined.total.extend(scored.total)
        for name, values in scored.parts.items():
            joined.parts[name].extend(values)
        for name, (failed, reason) in scored.failures.items():
            joined.failures[name] = (joined.failures.get(name, (0, ""))[0] + failed, reason)
        for name, numbers in scored.metrics.items():
            joined.metrics.setdefault(name, []).extend(numbers)
        for name in {**joined.extra, **scored.extra}:  # a call may log a column that another one does not
            joined.extra.setdefault(name, [None] * before).extend(scored.extra.get(name, [None] * count))
    return joined


class Answered(NamedTuple):
    """One function's answer on N completions."""

    values: list[float | None]  # [N]; None also where it failed
    failed: set[int]  # completions
    reason: str | None  # of the first failure
    metrics: dict[str, list[float | None]]
    extra: dict[str, list[Any]]

    def fill(self, index: int, reply: dict[str, Any]) -> None:
        """Put in the reply to a call with this completion alone."""
        (self.values[index],) = reply["values"]
        self.failed.remove(index)
        for name, numbers in reply["metrics"].items():
            self.metrics.setdefault(name, []).extend(numbers)
        for column, (value,) in reply["extra"].items():
            self.extra.setdefault(column, [None] * len(self.values))[index] = value


class RewardPool:
    """The reward functions of a run, in a worker process; the reward_ arguments are those of `rewards.loading.load`.

    Args:
        timeout_s: a function may take it for a call.
        memory_bytes: resident memory of the worker's processes together.
        failure: "zero": a function that fails on a completion gives it 0; "exclude": its total is NaN.
        taken: metrics of the trainer, whose names no function may log.

    Raises:
        ValueError: the functions cannot be loaded.
    """

    def __init__(self, reward_funcs: list[str], reward_weights: list[float] | None, *, timeout_s: float,
                 memory_bytes: int, reward_options: dict[str, dict[str, Any]] | None = None, failure: str = "zero",
                 taken: Iterable[str] = ()) -> None:
        check_json(reward_options or {})
        self.names = [metric_name(name) for name in reward_funcs]
        self.weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
        self.timeout_s, self.failure = timeout_s, failure
        self._settings = {"parent": os.getpid(), "wanted": [reward_funcs, reward_weights, reward_options],
                          "taken": list(taken), "import_s": IMPORT_S, "timeout_s": timeout_s,
                          "memory_bytes": memory_bytes}
        self._token = uuid.uuid4().hex
        self._keeper: subprocess.Popen | None = None
        self._or_refuse(self._start(None))

    def check_columns(self, columns: list[str]) -> None:
        """Refuse with ValueError a dataset that lacks a column which a function needs."""
        self._or_refuse(self._ask({"columns": columns}, None))

    def score(self, *, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]],
              columns: dict[str, list[Any]], trainer_state: dict[str, Any], seed: str = "",
              on_wait: Callable[[], None] | None = None) -> Scored:
        """Score N completions, given N prompts, N lists of tokens and N values per column: see `rewards.arguments`.

        A function is called once with all of them. If that call fails, it is called again for each one alone, so that
        only those at fault lose their reward; after three more failures the rest is not tried.

        `seed` is that of Python's and NumPy's random numbers in each call, so that a resumed run draws the same.
        `on_wait` is called about once a second while a function runs.
        """
        arguments = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        total, scored = [0.0] * len(completions), Scored([], {}, {}, {}, {})
        left_out: set[int] = set()
        for name, weight in zip(self.names, self.weights, strict=True):
            job = {"name": name, "weight": weight, "seed": seed, "state": trainer_state}
            values, failed, reason, metrics, extra = self._answered(job, arguments, on_wait)
            if reason:
                scored.failures[name] = (len(failed), reason)
            if self.failure == "zero":
                values = [0.0 if index in failed else value for index, value in enumerate(values)]
            elif weight:  # what a function of weight 0 says is never part of the reward
                left_out |= failed
            total = [t + (0.0 if v is None else weight * v) for t, v in zip(total, values, strict=True)]
            scored.parts[name] = [nan if v is None else v for v in values]
            scored.extra.update(extra)
            for metric, numbers in metrics.items():
                scored.metrics.setdefault(metric, []).extend(nan if one is None else one for one in numbers)
        # Of no function a value: not 0, which would count as a reward.
        left_out |= {index for index, parts in enumerate(zip(*scored.parts.values())) if all(map(isnan, parts))}
        return scored._replace(total=[nan if index in left_out else value for index, value in enumerate(total)])

    def close(self) -> None:
        """End the worker and everything that it started."""
        if self._keeper is None:
            return
        self._keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(GRACE_S)
        self._end()

    def _answered(self, job: dict[str, Any], arguments: dict[str, list[Any]],
                  on_wait: Callable[[], None] | None) -> Answered:
        """One function's answer: for all completions together or, where that fails, for each alone."""
        count = len(arguments["completions"])
        reply = self._ask({**job, "arguments": arguments}, on_wait)
        if "values" in reply:
            return Answered(reply["values"], set(), None, reply["metrics"], reply["extra"])
        found = Answered([None] * count, set(range(count)), reply["failure"], {}, {})
        if not reply["alone"] or count == 1:
            return found
        reasons = []
        for index in range(count):
            one = {column: value[index:index + 1] for column, value in arguments.items()}
            reply = self._ask({**job, "arguments": one}, on_wait)
            if "values" in reply:
                found.fill(index, reply)
                continue
            reasons.append(reply["failure"])
            if len(reasons) == MAX_RETRIES_FAILED:
                break
        return found._replace(reason=reasons[0] if reasons else f"{found.reason} when called with all of them")

    def _or_refuse(self, reply: dict[str, Any]) -> None:
        if "failure" in reply:
            self.close()
            raise ValueError(reply["failure"])

    def _start(self, on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """Start a worker, not as a fork: this process has threads and perhaps a GPU. Returns the answer to loading."""
        self._keeper = subprocess.Popen(
            command("keeper", json.dumps(self._settings)), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, TOKEN: self._token}, start_new_session=True)
        os.set_blocking(self._keeper.stdin.fileno(), False)
        self._call = LOADING  # calls are numbered since this keeper was started
        return self._exchange({}, IMPORT_S + GRACE_S, on_wait)

    def _ask(self, job: dict[str, Any], on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """The worker's answer to a job; a lost worker is started again first."""
        if self._keeper is None:
            reply = self._start(on_wait)
            if "failure" in reply:
                return {**reply, "alone": False}
        self._call += 1
        return self._exchange(job, self.timeout_s + GRACE_S, on_wait)

    def _exchange(self, job: dict[str, Any], limit_s: float, on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """Send a job, if any, and wait for its answer; end a worker that died, hangs or answers nonsense.

        Returns {"values": [N], "metrics", "extra"}, each checked, or {"failure": why, "alone": bool}.
        """
        request = pickle.dumps(job)
        request = HEAD.pack(self._call, len(request)) + request if job else b""
        try:
            line = self._talk(request, limit_s, on_wait)
        except BaseException:  # from on_wait; the answer to this request must not count for the next one
            self._end()
            raise
        try:
            call, _, text = line.partition(b" ")
            if call != b"%d" % self._call or line.find(b"\n") != len(line) - 1:
                raise ValueError("not one line, or of another call")
            reply = json.loads(text)
            if "failure" in reply:
                return {"failure": str(reply["failure"]), "alone": reply["alone"] is True}
            count = len(job["arguments"]["completions"]) if "arguments" in job else 0
            values = check_values(reply["values"], count=count, weight=job.get("weight", 1.0))
            metrics, extra = reply.get("metrics", {}), reply.get("extra", {})
            check_notes(metrics, extra, count)
            return {"values": values, "metrics": metrics, "extra": extra}
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            self._end()
            return dict(MISLED)

    def _talk(self, request: bytes, limit_s: float, on_wait: Callable[[], None] | None) -> bytes:
        """Write a request and read one line; b"" if the worker is lost or silent for too long."""
        give_up, line, loads = time.monotonic() + limit_s, b"", b"%d %s\n" % (self._call, LOADS)
        with selectors.DefaultSelector() as selector:
            selector.register(self._keeper.stdout, selectors.EVENT_READ)
            if request:
                selector.register(self._keeper.stdin, selectors.EVENT_WRITE)
            while not line.endswith(b"\n"):
                ready = {key.fileobj for key, _ in selector.select(min(1.0, give_up - time.monotonic()))}
                if time.monotonic() > give_up:
                    return b""
                if not ready and on_wait:
                    on_wait()
                if self._keeper.stdin in ready:
                    try:
                        request = request[os.write(self._keeper.stdin.fileno(), request):]
                    except BrokenPipeError:
                        return b""
                    if not request:
                        selector.unregister(self._keeper.stdin)
                if self._keeper.stdout in ready:
                    part = self._keeper.stdout.read(2**16)
                    if not part or len(line) > ANSWER_BYTES:
                        return b""
                    line += part
                    if line.startswith(loads):  # the time for loading comes on top
                        give_up, line = time.monotonic() + IMPORT_S + limit_s, line[len(loads):]
        return line

    def _end(self) -> None:
        """Kill the worker and every process that descends from it."""
        end(lambda: bearers(self._token))
        self._keeper.wait()
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper = None
