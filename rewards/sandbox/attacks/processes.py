"""Other processes: making them, reaching them, outliving one's own end."""

from rewards.sandbox.attacks import Attack, tried

OS = "__import__('os')"
LINES = {
    "fork": f"{OS}.fork()", "forkpty": f"{OS}.forkpty()",
    "a shell by system": f"1 // ({OS}.system('echo') == 0)",
    "a shell by popen": f"{OS}.popen('echo')", "subprocess": "__import__('subprocess').run(['/bin/sh', '-c', 'id'])",
    "posix_spawn": f"{OS}.posix_spawn({OS}.__file__, [], {{}})", "exec of a shell": f"{OS}.execv('/bin/sh', ['sh'])",
    "multiprocessing": "__import__('multiprocessing').Process(target=print).start()",
    "the parent signalled": f"{OS}.kill({OS}.getppid() or 1, 0)", "everyone signalled": f"{OS}.kill(-1, 0)",
    "the first process signalled": f"{OS}.kill(1, 0)", "a group signalled": f"{OS}.killpg(0, 0)",
    "a higher priority": f"{OS}.setpriority(0, 0, -5)", "a better nice": f"{OS}.nice(-5)",
    "real time": f"{OS}.sched_setscheduler(0, 1, {OS}.sched_param(10))",
    "another core": f"{OS}.sched_setaffinity(0, {{0}})",
    "a handle of a process": f"{OS}.pidfd_open(1)", "another session": f"{OS}.setsid()",
    "another user": f"{OS}.setuid(0)", "another group": f"{OS}.setgid(0)", "other groups": f"{OS}.setgroups([0])",
    "memory limits raised": "__import__('resource').setrlimit(9, (-1, -1))",
    "processor limits raised": "__import__('resource').setrlimit(0, (-1, -1))",
}

SEEN = """
import os
found = []
for number in range(2, 40000):
    try:
        os.getsid(number)
        found.append(number)
    except OSError:
        pass
print("ESCAPED" if found or os.getppid() != 0 else "held", found, os.getppid(), os.getpid())
"""

OUTLIVED = """
import os, threading, time
print("held", flush=True)
def later():
    time.sleep(0.5)
    os.write(1, b"ESCAPED: still here")
threading.Thread(target=later, daemon=True).start()
"""

ENVIRONMENT = """
import os, sys
print("ESCAPED" if os.environ or len(sys.argv) > 2 or sys.orig_argv[2:] and "SECRET" in str(sys.orig_argv) else "held")
"""

DESCRIPTORS = """
import os, stat
for number in range(4096):
    try:
        kind = stat.S_IFMT(os.fstat(number).st_mode)
    except OSError:
        continue
    # stdin, stdout, stderr, requests, answers: five pipes, and nothing else.
    print("held" if number < 5 and kind == stat.S_IFIFO else "ESCAPED", number, oct(kind))
"""

MANY = """
import _thread, time
n = 0
try:
    while n < 5000:
        _thread.start_new_thread(time.sleep, (5,))
        n += 1
except BaseException as error:
    print("held", n, error)
else:
    print("ESCAPED", n, "threads")
"""

ATTACKS = [
    *(Attack(name, tried(line)) for name, line in LINES.items()),
    Attack("other processes seen", SEEN), Attack("a thread that outlives the program", OUTLIVED),
    Attack("the environment", ENVIRONMENT), Attack("inherited descriptors", DESCRIPTORS),
    Attack("thousands of threads", MANY),
]
