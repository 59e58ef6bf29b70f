"""System calls that no program here needs, made directly."""

from rewards.sandbox import seccomp
from rewards.sandbox.attacks import Attack

# By name: the numbers on x86_64 and aarch64, and arguments. Where a call is permitted, these tell something, fail for
# another reason than a lack of rights, or do something to this process alone.
CALLS = {
    "ptrace": (101, 117, "0, 0, 0, 0"), "process_vm_readv": (310, 270, "1, buffer, 1, buffer, 1, 0"),
    "process_vm_writev": (311, 271, "1, buffer, 1, buffer, 1, 0"), "kcmp": (312, 272, "1, 1, 0, 0, 0"),
    "pidfd_open": (434, 434, "1, 0"), "pidfd_getfd": (438, 438, "3, 0, 0"),
    "pidfd_send_signal": (424, 424, "3, 0, 0, 0"), "process_madvise": (440, 440, "3, buffer, 1, 4, 0"),
    "move_pages": (279, 239, "0, 0, 0, 0, 0, 0"), "get_mempolicy": (239, 236, "0, 0, 0, 0, 0"),
    "mount": (165, 40, "b'x', b'/tmp', b'nothing', 0, 0"), "umount2": (166, 39, "b'/', 0"),
    "pivot_root": (155, 41, "b'/none', b'/none'"), "open_tree": (428, 428, "-100, b'/', 1"),
    "move_mount": (429, 429, "-100, b'/', -100, b'/tmp', 0"), "fsopen": (430, 430, "b'tmpfs', 0"),
    "fsmount": (432, 432, "3, 0, 0"), "mount_setattr": (442, 442, "-100, b'/', 0, buffer, 32"),
    "chroot": (161, 51, "b'/tmp'"), "name_to_handle_at": (303, 264, "-100, b'/', buffer, buffer, 0"),
    "open_by_handle_at": (304, 265, "-100, buffer, 0"), "unshare user": (272, 97, "0x10000000"),
    "unshare mounts": (272, 97, "0x00020000"), "unshare network": (272, 97, "0x40000000"),
    "setns": (308, 268, "0, 0"), "clone a process": (56, 220, "17, 0, 0, 0, 0"),
    "clone a user namespace": (56, 220, "0x10000011, 0, 0, 0, 0"), "clone3": (435, 435, "buffer, 88"),
    "execve": (59, 221, "b'/bin/sh', 0, 0"), "execveat": (322, 281, "-100, b'/bin/sh', 0, 0, 0"),
    "keyctl": (250, 219, "0, -3, 1"), "add_key": (248, 217, "b'user', b'a', b'b', 1, -3"),
    "request_key": (249, 218, "b'user', b'a', 0, -3"), "bpf": (321, 280, "0, buffer, 48"),
    "perf_event_open": (298, 241, "buffer, 0, -1, -1, 0"), "userfaultfd": (323, 282, "1"),
    "io_uring_setup": (425, 425, "1, buffer"), "io_uring_enter": (426, 426, "3, 1, 0, 0, 0, 0"),
    "io_setup": (206, 0, "1, buffer"), "memfd_create": (319, 279, "b'x', 0"), "memfd_secret": (447, 447, "0"),
    "shmget": (29, 194, "0, 4096, 0o1600"), "msgget": (68, 186, "0, 0o1600"), "semget": (64, 190, "0, 1, 0o1600"),
    "mq_open": (240, 180, "b'x', 66, 0o600, 0"), "inotify_init1": (294, 26, "0"), "fanotify_init": (300, 262, "0, 0"),
    "signalfd4": (289, 74, "-1, buffer, 8, 0"), "timerfd_create": (283, 85, "1, 0"), "eventfd2": (290, 19, "0, 0"),
    "splice": (275, 76, "0, 0, 1, 0, 1, 0"), "vmsplice": (278, 75, "1, buffer, 1, 0"), "tee": (276, 77, "0, 1, 1, 0"),
    "personality": (135, 92, "0x0040000"), "prctl": (157, 167, "4, 1, 0, 0, 0"),
    "seccomp": (317, 277, "1, 0, buffer"), "capset": (126, 91, "buffer, buffer"), "capget": (125, 90, "buffer, 0"),
    "sethostname": (170, 161, "b'x', 999"),
    "setdomainname": (171, 162, "b'x', 999"), "reboot": (169, 142, "0, 0, 0, 0"),
    "swapon": (167, 224, "b'/none', 0"), "acct": (163, 89, "0"), "syslog": (103, 116, "3, buffer, 64"),
    "init_module": (175, 105, "buffer, 0, b''"), "finit_module": (313, 273, "3, b'', 0"),
    "delete_module": (176, 106, "b'x', 0"), "kexec_load": (246, 104, "0, 99, 0, 0"),
    "clock_settime": (227, 112, "99, buffer"), "adjtimex": (159, 171, "buffer"), "quotactl": (179, 60, "0, 0, 0, 0"),
    "mlockall": (151, 230, "1"), "landlock": (444, 444, "0, 0, 1"), "kill": (62, 129, "-1, 0"),
    "tkill": (200, 130, "1, 0"), "rt_sigqueueinfo": (129, 138, "1, 0, buffer"), "ioprio_set": (251, 30, "1, 0, 0"),
    "sched_setattr": (314, 274, "0, buffer, 0"), "set a limit": (302, 261, "0, 7, buffer, 0"),
    "steal a terminal": (16, 29, "0, 0x540E, 0"), "type into a terminal": (16, 29, "0, 0x5412, b'x'"),
    "own a descriptor's signals": (72, 25, "0, 8, 1"), "sysinfo": (99, 179, "buffer"),
    "socket": (41, 198, "2, 1, 0"), "socketpair": (53, 199, "1, 1, 0, buffer"),
}

DIRECT = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(4096)
value = libc.syscall({number}, {arguments})
number = ctypes.get_errno()
held = value == -1 and number in (errno.EPERM, errno.ENOSYS)
print("held" if held else "ESCAPED", value, errno.errorcode.get(number))
"""

# Every number that the filter does not list, also of calls that are newer than this file; but for two of x86_64 (uprobe
# and uretprobe) that the kernel does not show to filters and answers with the end of the program.
EVERY = f"""
import ctypes, errno, os
allowed = {{number for pair in {seccomp.CALLS!r}.values() for number in pair}}
libc = ctypes.CDLL(None, use_errno=True)
for number in range(600):
    if number not in allowed and number not in (335, 336) and not (libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and
                                      ctypes.get_errno() == errno.EPERM):
        print("ESCAPED", number, ctypes.get_errno())
print("held")
"""

# mov eax, 20 (getpid of the table for 32 bits); int 0x80; ret
OLD_TABLE = """
import ctypes, mmap, os, platform
print("held", flush=True)
if platform.machine() == "x86_64":
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    print("ESCAPED", call())
"""

X32 = """
import ctypes, platform
print("held", flush=True)
if platform.machine() == "x86_64":
    print("ESCAPED", ctypes.CDLL(None).syscall(0x40000000 + 39))
"""

ATTACKS = [
    *(Attack(f"the call {name}", DIRECT.format(number=f"{{'x86_64': {x86}, 'aarch64': {arm}}}[os.uname().machine]",
                                               arguments=arguments))
      for name, (x86, arm, arguments) in CALLS.items()),
    Attack("every other call", EVERY), Attack("the table for 32 bits", OLD_TABLE), Attack("the x32 table", X32),
]
