"""How a process takes from itself, layer by layer, what a program must not have. Nothing here can be undone."""

import ctypes
import os
import resource

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACES = 0x20000000 | 0x00020000 | 0x08000000  # CLONE_NEWPID, CLONE_NEWNS, CLONE_NEWIPC
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION = 0x20080522
MAX_FILES = 1000  # in the writable folder; each takes memory even when it is empty
MAX_OPEN = 64


def leave_namespaces() -> None:
    """The next child is process 1 of a world of its own: no other processes, mounts that concern nobody else."""
    _call("unshare", NEW_NAMESPACES)


def empty_folder(path: str, size: int) -> None:
    """A new, empty file system in memory on a folder, of this mount namespace only."""
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    options = f"size={size},nr_inodes={MAX_FILES},mode=0700".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)


def limit(cpu_s: float, memory: int, file_size: int) -> None:
    """Limits that the kernel keeps for this process, in seconds and bytes."""
    seconds = max(1, int(-(-cpu_s // 1)))
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: file_size,
              resource.RLIMIT_NOFILE: MAX_OPEN, resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0,
              resource.RLIMIT_MSGQUEUE: 0}
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


def drop_capabilities() -> None:
    """What root may do in the sandbox's own user namespace is not for programs."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel has no more
    LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    head, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _call("capset", head, nothing)


def filter_calls(program: bytes) -> None:
    """From now on the kernel refuses the system calls that the filter does not allow (rewards/sandbox/seccomp.py)."""
    code = ctypes.create_string_buffer(program, len(program))
    shown = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(code))  # struct sock_fprog, little endian
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(shown), 0, 0)


def keep_only(files: list[int]) -> None:
    """Descriptors 0, 1, 2, ... become these, and every other one is closed."""
    high = [os.dup2(file, 200 + index) for index, file in enumerate(files)]
    for index, file in enumerate(high):
        os.dup2(file, index)
    os.closerange(len(files), os.sysconf("SC_OPEN_MAX"))


def _call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
