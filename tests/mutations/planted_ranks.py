"""Mistakes in how ranks begin, meet and end together; see planted.py."""

DISTRIBUTED = [
    ("DeepSpeed imports MLflow", 'sys.modules.setdefault("mlflow", None) is None', "False"),
    ("MLflow can never be imported", '    del sys.modules["mlflow"]', "    pass"),
    ("large tensors in small pages", 'os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")', "pass"),
]

LAUNCHER = [
    ("a rank outlives torchrun", "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)", "pass"),
    ("a signal that ends nothing", "signal.SIGKILL", "signal.SIGCONT"),
    ("a plain run ends with its shell", ' or "TORCHELASTIC_RUN_ID" not in os.environ', ""),
    ("an end before the first line is not noticed", "not has_torch(os.getppid())", "False"),
    ("any parent is a launcher", 'return b"libtorch" in', 'return b"" in'),
    ("no script between torchrun and a rank", "os.getsid(0) == os.getpid() and ", ""),
]

DOOR = [
    ("anything as long as a token is one", "if secrets.compare_digest(received, self.tokens[number]):",
     "if len(received) == LENGTH:"),
    ("a rank comes twice", "for number in self.missing:", "for number in range(1, len(self.tokens)):"),
    ("rank 0 comes to itself", "set(range(1, num_ranks))", "set(range(num_ranks))"),
    ("what follows a token is read with it", "connection.recv(LENGTH - len(received))", "connection.recv(4096)"),
    ("a token comes in one piece", "received += more", "received[:] = more"),
    ("a port open to other machines for nothing", '"127.0.0.1", "127.0.0.1"', '"127.0.0.1", ""'),
    ("a port closed to ranks of other machines", '["MASTER_ADDR"], ""', '["MASTER_ADDR"], "127.0.0.1"'),
    ("a port that stays open", "key.fileobj.close()", "pass"),
    ("ten times the patience", "time.monotonic() + HELLO_S", "time.monotonic() + 10 * HELLO_S"),
    ("a port that is not named where it cannot be reached", "except OSError as error:", "except EOFError as error:"),
]

HEARTBEAT = [
    ("a cut line ends the beat", "contextlib.suppress(ValueError)", "contextlib.nullcontext()"),
    ("a list is a message", "[message for message in messages if isinstance(message, dict)]", "messages"),
    ("a cut line takes the next one along", r'b"\n" + json.dumps', "json.dumps"),
    ("a rank that does not come is missed by nobody", "if ours and ours.missing:", "if False:"),
    ("the wrong process is killed", "everyone[number][0]", "everyone[0][0]"),
]

AFTERWARDS = [
    ("a run that is over is in its last step", 'pulse.begin(0, float("inf"), tell=lambda: None)', "pass"),
    ("the advice of a run that is over goes on", '        last_words.advise("")\n        pulse.begin(0',
     "        pulse.begin(0"),
]

FAREWELL = [
    ("the only rank forgets its advice before it speaks",
     "        code = last_words.fail(text, code)\n        stop()\n",
     "        stop()\n        code = last_words.fail(text, code)\n"),
    ("no farewell", "        farewell.start()\n        farewell.join(FAREWELL_S)\n", ""),
    ("a farewell without end", "farewell.join(FAREWELL_S)", "farewell.join()"),
    ("nobody waits for the farewell", "farewell.join(FAREWELL_S)", "pass"),
]

LAST_WORDS = [
    ("torchrun's page without the message", 'if record := os.environ.get("TORCHELASTIC_ERROR_FILE"):', "if False:"),
    ("a message that torchrun cannot read", '"extraInfo": {"timestamp"', '"extra": {"timestamp"'),
]

SURROUNDINGS = [
    ("half a launcher's environment is none", 'if given in ({}, {"WORLD_SIZE": "1"}):', "if len(given) < 2:"),
    ("ranks that are no number", 'if not given.get(name, "").isdecimal():', "if name not in given:"),
]

TOY = [
    ("the toy recipe for one's own model", "None if mine else TOY_RECIPE", "TOY_RECIPE"),
    ("the defaults for nobody's model", "None if mine else TOY_RECIPE", "None"),
    ("a model by another name is nobody's", "{foreign.RENAMED.get(name, name) for name in given}", "{*given}"),
]

RANK_GROUPS = [
    ("grpo/health/heartbeat.py", ("test_heartbeat.py",), FAREWELL),
    ("grpo/health/heartbeat.py", ("test_python.py",), AFTERWARDS),
    ("grpo/health/last_words.py", ("test_heartbeat.py",), LAST_WORDS),
    ("grpo/options/surroundings.py", ("test_config.py",), SURROUNDINGS),
    ("grpo/run/command.py", ("test_config.py",), TOY),
]
