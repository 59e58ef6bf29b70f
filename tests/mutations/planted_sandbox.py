"""Mistakes planted in the sandbox: layers that do not hold, verdicts that can be forged, things that are left."""

CONFINE = [
    ("programs share the process namespace", "NEW_NAMESPACES = 0x20000000 | 0x00020000", "NEW_NAMESPACES = 0x00020000"),
    ("programs share their mounts", "0x20000000 | 0x00020000 | 0x08000000", "0x20000000 | 0x08000000"),
    ("any number of files", ",nr_inodes={MAX_FILES}", ""),
    ("a folder without a limit", "size={size},", ""),
    ("no limit of processor time", "resource.RLIMIT_CPU: seconds, ", ""),
    ("no limit of memory", "resource.RLIMIT_AS: memory, ", ""),
    ("no limit of a file", "resource.RLIMIT_FSIZE: file_size", "resource.RLIMIT_CORE: 0"),
    ("no limit of open files", "              resource.RLIMIT_NOFILE: MAX_OPEN, ", "              "),
    ("root's rights stay", '    _call("capset", head, nothing)\n', ""),
    ("the filter is not installed",
     '    _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(shown), 0, 0)\n', ""),
    ("descriptors stay open", '    os.closerange(len(files), os.sysconf("SC_OPEN_MAX"))\n', ""),
]

SERVER = [
    ("the environment stays", "    os.environ.clear()\n", ""),
    ("no new folder for a program", '        confine.empty_folder(FOLDER, limits["disk"])\n', ""),
    ("rights are not dropped", "        confine.drop_capabilities()\n", ""),
    ("no limits", '    if "limits" in layers:', "    if False:"),
    ("no filter of calls", '    if "seccomp" in layers:', "    if False:"),
    ("a program is not ended", "                    os.kill(child, signal.SIGKILL)\n", "                    pass\n"),
    ("every exit code is 0", "os.waitstatus_to_exitcode(status)", "0"),
    ("our modules are a program's", "            del sys.modules[ours]", "            pass"),
    ("our folder is a program's", "    sys.path.pop(0)\n", ""),
]

SECCOMP = [
    ("other tables of calls", "(EQUAL, 1, 0, MACHINES[machine]), (RETURN, 0, 0, KILL),",
     "(EQUAL, 0, 0, MACHINES[machine]),"),
    ("the x32 table", "(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]", "(AT_LEAST, 0, 0, X32)]"),
    ("everything else is allowed", "    code.append((RETURN, 0, 0, EPERM))", "    code.append((RETURN, 0, 0, ALLOW))"),
    ("processes are allowed", "(EQUAL, 0, 1, THREAD), allow, refuse]", "allow]"),
    ("clone3 is allowed", "return [(RETURN, 0, 0, ENOSYS)]", "return [(RETURN, 0, 0, ALLOW)]"),
    ("limits can be set", "(EQUAL, 0, 3, 0), (LOAD, 0, 0, high), (EQUAL, 0, 1, 0), allow, refuse]", "allow]"),
    ("every ioctl and fcntl", "    return [*code, refuse]", "    return [allow]"),
]

BOX = [
    ("the network stays", '"--unshare-net", ', ""),
    ("another hash seed each time", '"--setenv", "PYTHONHASHSEED", "0",', ""),
    ("a box that does not start is used", '        if ready != b"ready":', "        if False:"),
]

VIEW = [
    ("all of the file system is seen", 'view = ["--tmpfs", "/"]', 'view = ["--ro-bind", "/", "/"]'),
    ("installed packages are seen", 'HIDDEN = ("site-packages", "dist-packages", ', 'HIDDEN = ('),
    ("the sandbox's code can be written", '"--ro-bind", str(INSIDE), PLACE', '"--bind", str(INSIDE), PLACE'),
]

PROGRAM = [
    ("no limit of time", "        if time.monotonic() > self.deadline:", "        if False:"),
    ("no limit of output", "elif len(self.read[file]) + len(data) <= self.limits.output:",
     "else:\n                self.read[file] += data\n            if False:"),
    ("stdin is never closed", "self.last = {stdin_w}", "self.last = set()"),
]

VERDICT = [
    ("an old answer counts", '            if said.get("nonce") != self.nonce:', "            if False:"),
    ("a wrong output is right", "_lines(output) == _lines(expected)", "output"),
    ("blanks in front do not count", "[line.rstrip() for line", "[line.strip() for line"),
    ("an exit code does not matter", 'if ended.code != 0 else ""', 'if False else ""'),
    ("a test that ends early is passed", 'return Verdict(False, f"the test', 'return Verdict(True, f"the test'),
]

INSIDE = [
    ("any object leaves the sandbox", '    raise TypeError(f"a {type(value)',
     '    return str(value)\n    raise TypeError(f"a {type(value)'),
    ("tuples become lists", '{"tuple": tuple, ', "{"),
]

JUDGE = [
    ("a program's own functions count as Python's", "        if hasattr(builtins, name):", "        if False:"),
    ("what fails in a test is passed", '        link.tell({"passed": False,', '        link.tell({"passed": True,'),
]

CODE = [
    ("the first block counts", "textwrap.dedent(blocks[-1])", "textwrap.dedent(blocks[0])"),
    ("several blocks have the format", "(completion))) == 1) for", "(completion))) > 0) for"),
    ("what does not compile earns a part", "return COMPILES if compiled.passed else 0.0", "return COMPILES"),
    ("a share instead of all", "return float(passed == len(task.tests)) if all_or_nothing else", "return"),
    ("tests go on after the time is up", "(all_or_nothing or OUT_OF_TIME in verdict.why)", "all_or_nothing"),
    ("a test knows no context", 'f"{task.context}\\n{test}"', "test"),
    ("a row without tests earns all", "        if not row:", "        if False:"),
]

LAYERS = [
    ("a layer that does not hold is used", "    if lost:", "    if False:"),
    ("a machine without bubblewrap is not told so", 'if kind == "full" and (why := _lacking()):', "if False:"),
]

FORMS = [
    ("a prompt of one's own is replaced", "if _own_prompt(row, form) else", "if False else"),
    ("columns of one's own are replaced", '{**made, **row, "prompt"', '{**row, **made, "prompt"'),
    ("clean MBPP's own text is somebody's", '"text" in row or not', "True or not"),
    ("messages of MBPP are its text", '"text" in row or not isinstance(row["prompt"], str)', '"text" in row'),
    ("messages of HumanEval are read as code", "or form is _human_eval and not", "or False and not"),
    ("no context from the prompt", "splitlines()[:start - 1]", "splitlines()[:0]"),
    ("HumanEval's test is not called", '{row[\'test\']}\\ncheck({name})"', '{row[\'test\']}"'),
    ("the last function of MBPP", "next(name for name in defined if name in called)", "defined[-1] + '2'"),
    ("no set-up code of MBPP", 'row.get("test_setup_code") or ', "None or "),
    ("no class of APPS", '"Solution." if "class Solution" in start else ""', '""'),
    ("a broken row is left in", "    for number, row in enumerate(rows, start=1):\n        try:\n",
     "    for number, row in enumerate(rows, start=1):\n        if number == 1: return rows\n        try:\n"),
]

PROGRAMS = [
    ("splits share numbers", "% 10 in SPLITS[split]", "% 10 >= 0"),
    ("one test of all inputs", 'return ["\\n".join(lines[::2]), "\\n".join(lines[1::2])]',
     'return ["\\n".join(lines)]'),
    ("no mistakes in the warm-up", "SLIP_RATE = 0.4", "SLIP_RATE = 0.0"),
]

SCORING = [
    ("programs run in the full sandbox, whatever is asked", '{"code_sandbox": config.code_sandbox}',
     '{"code_sandbox": "full"}'),
    ("a part is right", "value >= RIGHT for value", "value > 0 for value"),
    ("numbers are compared whatever the outcome", 'return config.outcome_reward not in (None, "correctness")',
     "return False"),
]

DOCTOR = [
    ("solutions that fail are no failure", "few = known and 2 * whole < len(gold_N)", "few = False"),
    ("nonsense that is paid is no failure", 'fail=f"a {name} that gives nonsense nothing" if paid else',
     'fail="" if paid else'),
    ("a missing sandbox is not told", 'alone = run.config.code_sandbox == "process"', "alone = False"),
]

SANDBOX_GROUPS = [
    ("data/code.py", ("test_programs.py",), FORMS),
    ("data/programs.py", ("test_programs.py",), PROGRAMS),
    ("grpo/run/scoring.py", ("test_program_runs.py",), SCORING),
    ("grpo/doctor/programs.py", ("test_program_runs.py",), DOCTOR),
    ("rewards/sandbox/inside/confine.py", ("test_attacks.py", "test_sandbox.py"), CONFINE),
    ("rewards/sandbox/inside/__main__.py", ("test_attacks.py", "test_sandbox.py"), SERVER),
    ("rewards/sandbox/seccomp.py", ("test_attacks.py",), SECCOMP),
    ("rewards/sandbox/box.py", ("test_attacks.py", "test_sandbox.py"), BOX),
    ("rewards/sandbox/view.py", ("test_attacks.py",), VIEW),
    ("rewards/sandbox/program.py", ("test_attacks.py", "test_sandbox.py"), PROGRAM),
    ("rewards/sandbox/verdict.py", ("test_attacks.py", "test_code.py"), VERDICT),
    ("rewards/sandbox/inside/plain.py", ("test_attacks.py", "test_code.py"), INSIDE),
    ("rewards/sandbox/inside/judge.py", ("test_attacks.py", "test_code.py"), JUDGE),
    ("rewards/code.py", ("test_code.py",), CODE),
    ("rewards/sandbox/layers.py", ("test_sandbox.py",), LAYERS),
]
