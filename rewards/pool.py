"""The trainer's side of the rewards: a worker process beside this rank scores, and whatever it does costs only rewards.

To the worker go pickles, since columns hold any values; from it comes JSON alone, so that nothing a reward function
says is ever unpickled here. See `rewards.worker` for what it is held to.
"""

import json
import os
import pickle
import selectors
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from math import nan
from typing import Any, NamedTuple

from rewards import check_values, metric_name
from rewards.processes import TOKEN, bearers, command, end
from rewards.runner import HEAD, LOADING
from rewards.worker import ANSWER_BYTES, LOADS, MISLED

IMPORT_S = 300  # for the user's files; a first import of a big library takes minutes on a network drive
GRACE_S = 15  # beyond its limits, for the worker to kill what it has to
MAX_RETRIES_FAILED = 3  # completions that fail alone, after which no further one is tried


class Scored(NamedTuple):
    """Rewards of N completions.

    Args:
        total: [N] sum over functions of weight * part, leaving out parts that do not apply.
        parts: [N] by function name, before its weight: NaN where the function returned None, 0.0 where it failed.
        failures: by name of each function that failed, on how many completions, and why.
    """

    total: list[float]
    parts: dict[str, list[float]]
    failures: dict[str, tuple[int, str]]


class RewardPool:
    """The reward functions of a run, in a worker process.

    Args:
        reward_funcs: each "format", "correctness" or "path/to/file.py:function".
        reward_weights: one factor per function; None means 1.0 for each.
        timeout_s: seconds that a function may take for its completions.
        memory_bytes: resident memory of the worker's processes together.

    Raises:
        ValueError: the functions cannot be loaded, as `rewards.load` says, or loading them crashes or hangs.
    """

    def __init__(
        self, reward_funcs: list[str], reward_weights: list[float] | None, *, timeout_s: float, memory_bytes: int
    ) -> None:
        self.names = [metric_name(name) for name in reward_funcs]
        self.weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
        self.timeout_s = timeout_s
        self._settings = {
            "parent": os.getpid(), "wanted": [reward_funcs, reward_weights], "import_s": IMPORT_S,
            "timeout_s": timeout_s, "memory_bytes": memory_bytes}
        self._token = uuid.uuid4().hex
        self._keeper: subprocess.Popen | None = None
        self._or_refuse(self._start(None))

    def check_columns(self, columns: list[str]) -> None:
        """Refuse a dataset that lacks a column which a function needs; worth doing before any model loads.

        Raises:
            ValueError: names the function and the columns there are.
        """
        self._or_refuse(self._ask({"columns": columns}, None))

    def score(
        self, *, prompts: list[str], completions: list[str], columns: dict[str, list[Any]], seed: str = "",
        on_wait: Callable[[], None] | None = None,
    ) -> Scored:
        """Score N completions.

        A function is called once with all of them. Where that call fails it is called again for each alone, so that
        only those at fault lose their reward; after three further failures the rest is not tried.

        Args:
            prompts: N prompts.
            completions: N completions of them.
            columns: N values per column of the dataset; each reaches the functions by its name.
            seed: of Python's and NumPy's random numbers in each call, so that a resumed run draws what it would have.
            on_wait: called about once a second while a function runs.
        """
        rows = {**columns, "prompts": prompts, "completions": completions}
        total, parts, failures = [0.0] * len(completions), {}, {}
        for name, weight in zip(self.names, self.weights, strict=True):
            job = {"name": name, "weight": weight, "seed": seed}
            values, num_failed, reason = self._values(job, rows, on_wait)
            if reason:
                failures[name] = (num_failed, reason)
            total = [t + (0.0 if v is None else weight * v) for t, v in zip(total, values, strict=True)]
            parts[name] = [nan if v is None else v for v in values]
        return Scored(total, parts, failures)

    def close(self) -> None:
        """End the worker and everything it started; a second time does nothing."""
        if self._keeper is None:
            return
        self._keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(GRACE_S)
        self._end()

    def _values(
        self, job: dict[str, Any], rows: dict[str, list[Any]], on_wait: Callable[[], None] | None
    ) -> tuple[list[float | None], int, str | None]:
        """One function's values, on how many completions it failed (they have 0.0), and why the first of them."""
        count = len(rows["completions"])
        said = self._ask({**job, "arguments": rows}, on_wait)
        if "values" in said:
            return said["values"], 0, None
        if not said["alone"] or count == 1:
            return [0.0] * count, count, said["failure"]
        reason, values, failed = f"{said['failure']} when called with all of them", [0.0] * count, []
        for index in range(count):
            one = {column: value[index:index + 1] for column, value in rows.items()}
            said = self._ask({**job, "arguments": one}, on_wait)
            if "values" in said:
                (values[index],) = said["values"]
                continue
            failed.append(said["failure"])
            if len(failed) == MAX_RETRIES_FAILED:
                return values, len(failed) + count - index - 1, failed[0]
        return values, len(failed), failed[0] if failed else reason

    def _or_refuse(self, said: dict[str, Any]) -> None:
        if "failure" in said:
            self.close()
            raise ValueError(said["failure"])

    def _start(self, on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """Start a worker: never a fork of this process, which has threads and perhaps a GPU; what loading said."""
        self._keeper = subprocess.Popen(
            command("worker", json.dumps(self._settings)), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, TOKEN: self._token}, start_new_session=True)
        os.set_blocking(self._keeper.stdin.fileno(), False)
        self._call = LOADING  # the number of a call, since this keeper was started
        return self._exchange({}, IMPORT_S + GRACE_S, on_wait)

    def _ask(self, job: dict[str, Any], on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """What the worker says to a job; a lost worker is started anew first."""
        if self._keeper is None:
            said = self._start(on_wait)
            if "failure" in said:
                return {**said, "alone": False}
        self._call += 1
        return self._exchange(job, self.timeout_s + GRACE_S, on_wait)

    def _exchange(self, job: dict[str, Any], limit_s: float, on_wait: Callable[[], None] | None) -> dict[str, Any]:
        """Send a job, if any, and wait for its answer; a worker that died, hangs or talks nonsense is ended.

        Returns:
            {"values": [N]} as `rewards.check_values` has them, or {"failure": why, "alone": bool}.
        """
        request = pickle.dumps(job)
        request = HEAD.pack(self._call, len(request)) + request if job else b""
        try:
            line = self._talk(request, limit_s, on_wait)
        except BaseException:  # from on_wait: the answer would be taken for that of the next request
            self._end()
            raise
        try:
            call, _, text = line.partition(b" ")
            if call != b"%d" % self._call or line.find(b"\n") != len(line) - 1:
                raise ValueError("not one line, or of another call")
            said = json.loads(text)
            if "failure" in said:
                return {"failure": str(said["failure"]), "alone": said["alone"] is True}
            count = len(job["arguments"]["completions"]) if "arguments" in job else 0
            return {"values": check_values(said["values"], count=count, weight=job.get("weight", 1.0))}
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            self._end()
            return dict(MISLED)

    def _talk(self, request: bytes, limit_s: float, on_wait: Callable[[], None] | None) -> bytes:
        """Write a request and read one line; no whole line when the worker is lost or says nothing for too long.

        Where the worker says that it loads the functions first, it gets the time for that besides.
        """
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
                    if line.startswith(loads):
                        give_up, line = time.monotonic() + IMPORT_S + limit_s, line[len(loads):]
        return line

    def _end(self) -> None:
        """Kill the worker and every process that was started below it, then forget them."""
        end(lambda: bearers(self._token))
        self._keeper.wait()
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper = None
