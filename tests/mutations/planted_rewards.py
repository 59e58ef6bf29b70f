"""Mistakes in which values of a reward function count, and in what passes between its processes; see planted.py.
"""

VALUES = [
    ("float32's largest as the largest reward", "LARGEST_REWARD = 1e15", "LARGEST_REWARD = 3.4e38"),
    ("anything finite in float64", "not abs(number) <= limit", "not isfinite(number)"),
    ("NaN is a reward", "not abs(number) <= limit", "abs(number) > limit"),
    ("values looked at without their weight", "LARGEST_REWARD / max(1.0, abs(weight))", "LARGEST_REWARD"),
    ("a negative weight allows any value", "max(1.0, abs(weight))", "max(1.0, weight)"),
    ("a small weight allows larger values", "max(1.0, abs(weight))", "max(1e-300, abs(weight))"),
]

DEPTH = [
    ("columns too deep for pickle", "MAX_DEPTH = 100", "MAX_DEPTH = 1000"),
    ("mappings do not count as depth", "isinstance(one, (dict, list, tuple))", "isinstance(one, (list, tuple))"),
]

POOL = [
    ("no seed in the calls of one completion", '{**job, "arguments": one}', '{**job, "seed": "", "arguments": one}'),
    ("an answer to any call", 'call != b"%d" % self._call or line', "line"),
    ("more than one line is an answer", r' or line.find(b"\n") != len(line) - 1', ""),
    ("every call waits as if functions were loaded", "self._exchange(job, self.timeout_s + GRACE_S",
     "self._exchange(job, self.timeout_s + IMPORT_S + GRACE_S"),
    ("no time to load functions again", "time.monotonic() + IMPORT_S + limit_s", "time.monotonic() + limit_s"),
    ("values of the worker not checked", 'check_values(reply["values"], count=count, weight=job.get("weight", 1.0))',
     'reply["values"]'),
]

PROCESSES = [
    ("of all processes", "count += os.getsid(number) == leader", "count += 1"),
    ("only the leader counts", "count += os.getsid(number) == leader", "count += number == leader"),
]

WORKER = [
    ("those that left the session do not count", "or len(processes := self._found()) > 1 + MAX_PROCESSES:",
     "or not (processes := self._found()):"),
    ("limits not looked at between two calls", "reason = self._broken_limit() if self.runner else None",
     "reason = None"),
    ("any line is the answer", "if reply.startswith(head) and reply", "if reply"),
    ("several lines are the answer", r'reply.find(b"\n") == len(reply) - 1', r'reply.endswith(b"\n")'),
    ("a call pays for an earlier one's line", "if reply is not MISLED or is_new:", "if reply:"),
    ("loading is not told", "_tell(call, LOADS)", "pass"),
]

REQUESTS = [
    ("half a request accepted", "return (call, request) if len(request) == length else None", "return call, request"),
]
RUNNER = [
    ("every answer has the number of loading", r'b"%d %s\n" % (call, json', r'b"%d %s\n" % (LOADING, json'),
    ("no seed", '    random.seed(job["seed"])', '    random.seed("")'),
    ("the weight is not looked at where the value arises", ', weight=job["weight"])', ")"),
]
