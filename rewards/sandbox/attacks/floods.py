"""Programs that take what there is: memory, processor, time, disk, output. Each must end soon, and leave nothing."""

from rewards.sandbox.attacks import Attack

SOURCES = {
    "memory at once": "x = bytearray(8 * 2**30); print('ESCAPED')",
    "memory bit by bit": "x = []\nwhile len(x) < 4000: x.append(bytearray(2**20))\nprint('ESCAPED')",
    "a mapping": "import mmap; mmap.mmap(-1, 8 * 2**30); print('ESCAPED')",
    "a long list": "x = [0] * 10**10; print('ESCAPED')", "a long text": "x = 'a' * 10**10; print('ESCAPED')",
    "a bomb of exponents": "x = 9**9**9; print('ESCAPED')",
    "a bomb of zeros": "import zlib\nx = zlib.decompress(zlib.compress(bytes(300 * 2**20)) * 1)\n"
                       "y = [bytes(x) for _ in range(9)]\nprint('ESCAPED')",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x) + 1\nf(0)\nprint('ESCAPED')",
    "deep lists": "x = []\nfor _ in range(10**7): x = [x]\nprint(repr(x)[:1])\nprint('ESCAPED')",
    "an endless loop": "while True: pass", "an endless sleep": "import time\ntime.sleep(10**6)",
    "a wait for input": "import os\nos.read(3, 10**6)\nos.read(3, 10**6)\nimport time\ntime.sleep(10**6)",
    "a long sum in C": "sum(range(10**13))", "a long regular expression": "import re; re.match('(a+)+b', 'a' * 50)",
    "a long multiplication": "x = 3**(10**7)\nfor _ in range(100): x * x",
    "deaf to signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
                       "    except (OSError, ValueError): pass\nwhile True: pass",
    "catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "endless stdout": "while True: print('x' * 10**4)",
    "endless stderr": "import sys\nwhile True: print('x' * 10**4, file=sys.stderr)",
    "endless answers": "import os\nwhile True: os.write(4, b'x' * 10**4)",
    "a full disk": "f = open('/tmp/x', 'wb')\nfor _ in range(4000): f.write(bytes(2**20))\nprint('ESCAPED')",
    "many full files": "for n in range(40): open(f'/tmp/{n}', 'wb').write(bytes(2**20))\nprint('ESCAPED')",
    "a sparse file": "f = open('/tmp/x', 'wb')\nf.seek(2**40)\nf.write(b'x')\nf.flush()\nprint('ESCAPED')",
    "thousands of files": "for n in range(2000): open(f'/tmp/{n}', 'w').close()\nprint('ESCAPED')",
    "thousands of folders": "import os\nfor n in range(2000): os.mkdir(f'/tmp/{n}')\nprint('ESCAPED')",
    "deep folders": "import os\nfor n in range(2000):\n    os.mkdir('a')\n    os.chdir('a')\nprint('ESCAPED')",
    "many open files": "x = [open('/sandbox/plain.py') for _ in range(100)]\nprint('ESCAPED')",
    "many pipes": "import os\nx = [os.pipe() for _ in range(100)]\nprint('ESCAPED')",
    "a core file": "import ctypes\nctypes.string_at(0)\nprint('ESCAPED')",
    "busy threads": "import threading\nfor _ in range(8): threading.Thread(target=lambda: sum(range(10**12))).start()",
    "closed pipes and a sleep": "import os, time\nfor n in range(5): os.close(n)\ntime.sleep(10**6)",
    "a stopped self": "import os, signal, threading\nsignal.pthread_kill(threading.get_ident(), signal.SIGSTOP)\n"
                      "import time\ntime.sleep(10**6)",
    "many exceptions": "def f():\n    try: f()\n    finally: f()\nf()",
    "a long source": "exec('x = ' + '(' * 10**5 + ')' * 10**5)\nprint('ESCAPED')",
}

ATTACKS = [Attack(name, source) for name, source in SOURCES.items()]
