"""The sandbox's first process: for each order it makes a new process, confines it and lets it run a program.

Orders and reports go over one socket, with the descriptors that the new process gets: stdin, stdout, stderr, requests,
answers. The sixth is kept here and tells how it ended. No program ever has it, or the socket.
"""

import array
import json
import os
import select
import signal
import socket
import sys

import confine
import judge
import program

FOLDER = "/tmp"
KINDS = {"script": program.script, "functions": program.functions, "test": judge.test}


def main() -> None:
    """Serve until the other side closes the socket."""
    sys.path.pop(0)
    os.environ.clear()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(b"ready")
    children: dict[int, tuple[int, int, int]] = {}  # by the descriptor that tells the end: number, process, report
    while True:
        ready, _, _ = select.select([control, *children], [], [])
        for ended in children.keys() & {*ready}:
            bury(ended, *children.pop(ended)[1:])
        if control in ready:
            text, files, _, _ = socket.recv_fds(control, 2**16, 8)
            if not text:
                return
            order = json.loads(text)
            if "kill" in order:
                for _, child, _ in [one for one in children.values() if one[0] == order["kill"]]:
                    os.kill(child, signal.SIGKILL)
                continue
            *files, report = files
            child = start(order, files)
            for file in files:
                os.close(file)
            children[os.pidfd_open(child)] = order["number"], child, report


def bury(ended: int, child: int, report: int) -> None:
    """Tell how a child ended; it has ended."""
    os.close(ended)
    try:
        os.killpg(child, signal.SIGKILL)  # what it started, where no namespace ended with it
    except ProcessLookupError:
        pass
    _, status = os.waitpid(child, 0)
    os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(report)


def start(order: dict, files: list[int]) -> int:
    """The process id of a new, confined process that carries out an order."""
    if "namespaces" not in order["layers"]:
        child = os.fork()
        if child == 0:
            run(order, files)
        return child
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        # Only a child is in the new process namespace; this one ends, and process 1 of the sandbox adopts it.
        confine.leave_namespaces()
        child = os.fork()
        if child == 0:
            run(order, files)
        os.write(tell, array.array("i", [child]).tobytes())
        os._exit(0)
    os.close(tell)
    os.waitpid(between, 0)
    number = array.array("i", os.read(told, 4))
    os.close(told)
    return number[0]


def run(order: dict, files: list[int]) -> None:
    """Confine this process and carry out the order; never returns."""
    code = 1
    try:
        confine_by(order, files)
        for ours in ("confine", "judge", "plain", "program"):
            del sys.modules[ours]  # a program's `import plain` does not give it ours
        KINDS[order["kind"]]()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException as error:
        try:
            os.write(2, f"{type(error).__name__}: {error}\n"[:1000].encode())
        except BaseException:
            pass
    finally:
        try:
            sys.stdout.flush()
        except BaseException:
            code = code or 1
        os._exit(code & 255)


def confine_by(order: dict, files: list[int]) -> None:
    """Take from this process what the order's layers say."""
    layers, limits = order["layers"], order["limits"]
    confine.keep_only(files)
    os.setsid()
    if "namespaces" in layers:
        confine.empty_folder(FOLDER, limits["disk"])
        confine.drop_capabilities()
        os.chdir(FOLDER)
    else:
        os.chdir(order["folder"])
    if "limits" in layers:
        confine.limit(limits["cpu_s"], limits["memory"], limits["disk"])
    if "seccomp" in layers:
        confine.filter_calls(bytes.fromhex(order["filter"]))


main()
