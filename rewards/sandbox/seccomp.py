"""The system calls that a program in the sandbox may make, as a filter that the kernel runs (seccomp, classic BPF).

Everything that is not listed fails with EPERM: no sockets, no processes, no mounts, no signals to others, no tracing. A
call of another architecture's table ends the program.
"""

import struct

# By name, the numbers on x86_64 and aarch64 (Linux's tables); None where a machine lacks the call.
CALLS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "open": (2, None),
    "openat": (257, 56), "access": (21, None), "faccessat": (269, 48), "stat": (4, None), "lstat": (6, None),
    "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "truncate": (76, 45), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "mmap": (9, 222),
    "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "getrlimit": (97, 163), "uname": (63, 160), "pause": (34, None),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
    "clone": (56, 220), "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261), "tgkill": (234, 131),
    "clone3": (435, 435),
}
ONLY_WITH_CHECK = ("clone", "clone3", "fcntl", "ioctl", "prlimit64")
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH of each, in the order of CALLS' numbers
X32 = 0x40000000  # x86_64's third table begins here

LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF: a word, &, jumps, the verdict
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; each argument has 8 bytes, low half first
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026

THREAD = 0x00010000  # CLONE_THREAD
NAMESPACES = 0x7E020080  # CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
IOCTL = (0x5451, 0x5450, 0x541B)  # FIOCLEX, FIONCLEX, FIONREAD

Code = list[tuple[int, int, int, int]]  # operation, instructions to skip if true, if false, operand


def filter_for(machine: str) -> bytes:
    """The filter as an array of struct sock_filter.

    Raises:
        KeyError: the machine (`os.uname().machine`) is none of MACHINES.
    """
    column = list(MACHINES).index(machine) if machine in MACHINES else None
    if column is None:
        raise KeyError(machine)
    code: Code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, MACHINES[machine]), (RETURN, 0, 0, KILL),
                  (LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for name, numbers in CALLS.items():
        if numbers[column] is not None:
            verdict = _checked(name) if name in ONLY_WITH_CHECK else [(RETURN, 0, 0, ALLOW)]
            code += [(EQUAL, 0, len(verdict), numbers[column]), *verdict]
    code.append((RETURN, 0, 0, EPERM))
    return b"".join(struct.pack("HBBI", *one) for one in code)


def _checked(name: str) -> Code:
    """The verdict on a call that is allowed with some arguments."""
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)
    if name == "clone3":  # its flags are in memory, which a filter cannot read; glibc then takes clone
        return [(RETURN, 0, 0, ENOSYS)]
    if name == "clone":
        return [(LOAD, 0, 0, ARGUMENTS), (AND, 0, 0, THREAD | NAMESPACES), (EQUAL, 0, 1, THREAD), allow, refuse]
    if name == "prlimit64":  # to ask, not to set: no new limits
        low, high = ARGUMENTS + 16, ARGUMENTS + 20
        return [(LOAD, 0, 0, low), (EQUAL, 0, 3, 0), (LOAD, 0, 0, high), (EQUAL, 0, 1, 0), allow, refuse]
    code: Code = [(LOAD, 0, 0, ARGUMENTS + 8)]
    for value in FCNTL if name == "fcntl" else IOCTL:
        code += [(EQUAL, 0, 1, value), allow]
    return [*code, refuse]
