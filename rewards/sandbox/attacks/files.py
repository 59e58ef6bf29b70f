"""What a program might read, write or reach through the file system."""

from rewards.sandbox.attacks import Attack, tried

READ = """/etc/passwd /etc/shadow /etc/hostname /etc/resolv.conf /root/.ssh/id_rsa /proc/self/environ /proc/1/environ
/proc/self/maps /proc/self/mem /proc/1/mem /proc/1/cmdline /proc/kcore /proc/kallsyms /proc/sys/kernel/core_pattern
/proc/self/root/etc/passwd /proc/1/root/etc/passwd /proc/self/fd/0 /sys/kernel/uevent_seqnum /sys/fs/cgroup/cgroup.procs
/dev/mem /dev/kmem /dev/sda /dev/vda /dev/null /dev/zero /dev/tty /dev/ptmx /dev/random /dev/fuse /dev/kvm /dev/kmsg
/dev/net/tun /var/run/docker.sock /run/docker.sock /var/log/syslog""".split()

LISTED = "/proc /sys /dev /etc /home /var /run /opt /srv /mnt /media /boot /work /usr/bin /usr/share /dev/shm".split()

WHOLE = """
import os, sys
ours = {os.path.dirname(os.__file__), "/sandbox", "/tmp"}
for place, folders, files in os.walk("/"):
    if any(place == one or place.startswith(one + "/") for one in ours):
        folders[:] = []
        continue
    for name in files:
        path = os.path.join(place, name)
        if not os.path.islink(path) and ".so" not in name and not name.startswith("python"):
            print("ESCAPED", place, name)
print("held")
"""

WRITE = {
    "into the root": "open('/new.tmp', 'w')",
    "into the interpreter": "open(__import__('sys').executable or '/none', 'r+b')",
    "into the standard library": "open(__import__('os').__file__, 'a')",
    "into its cache": "open(__import__('json').__cached__, 'ab')",
    "into the sandbox's own code": "open('/sandbox/judge.py', 'a')",
    "a new module beside it": "open('/sandbox/plain2.py', 'w')",
    "a library touched": "__import__('os').utime(__import__('json').__file__)",
    "a library opened for writing": "__import__('os').open(__import__('json').__file__, 2)",
    "a folder in a library": "__import__('os').mkdir(__import__('json').__path__[0] + '/new')",
    "a file of devices": "__import__('os').mknod('/tmp/d', 0o60666, __import__('os').makedev(8, 0))",
    "a device": "__import__('os').mknod('/tmp/z', 0o20666, __import__('os').makedev(1, 5))",
    "a set-user-id file": "__import__('os').chmod(open('/tmp/s', 'w').name, 0o4755)",
    "another owner": "__import__('os').chown(open('/tmp/o', 'w').name, 0, 0)",
    "an attribute": "__import__('os').setxattr(open('/tmp/a', 'w').name, 'security.capability', b'x')",
    "a hard link out": "__import__('os').link(__import__('os').__file__, '/tmp/link')",
    "another root": "__import__('os').chroot('/tmp')",
}

LINKED = """
import os
for target in ("/etc/passwd", "/proc/1/root/etc/passwd", "../../../../etc/passwd", "/proc/self/root/etc/shadow"):
    try:
        os.symlink(target, "/tmp/link")
        print("ESCAPED", open("/tmp/link").read(50))
    except OSError as error:
        print("held", error)
"""

RACED = """
import os, threading, time
open("/tmp/a", "w").write("x")
try:
    os.symlink("/etc/passwd", "/tmp/b")
except OSError as error:
    print("held", error)
    raise SystemExit
stop = time.time() + 0.2
def swap():
    while time.time() < stop:
        os.rename("/tmp/a", "/tmp/c"); os.rename("/tmp/b", "/tmp/a"); os.rename("/tmp/c", "/tmp/b")
thread = threading.Thread(target=swap); thread.start()
while time.time() < stop:
    try:
        text = open("/tmp/a").read()
        if "root" in text:
            print("ESCAPED", text[:50])
    except OSError:
        pass
thread.join(); print("held")
"""

IMPORTED = """
import sys
for name in ("numpy", "torch", "pip", "rewards", "grpo", "data", "train", "psutil", "yaml", "plain", "judge"):
    try:
        __import__(name)
        print("ESCAPED", name)
    except ImportError:
        print("held", name)
"""

ATTACKS = [
    *(Attack(f"read {path}", tried(f"open({path!r}, 'rb').read(64)")) for path in READ),
    *(Attack(f"open for writing {path}", tried(f"open({path!r}, 'r+b')"))
      for path in ("/etc/passwd", "/proc/self/mem", "/proc/sys/kernel/core_pattern", "/dev/mem", "/dev/null")),
    *(Attack(f"list {path}", tried(f"__import__('os').listdir({path!r})[0]")) for path in LISTED),
    *(Attack(name, tried(line)) for name, line in WRITE.items()),
    Attack("list installed packages", tried("__import__('os').listdir(__import__('json').__path__[0] + "
                                            "'/../site-packages')[0]")),
    Attack("every file that can be seen", WHOLE), Attack("through a symbolic link", LINKED),
    Attack("a link that changes while it is opened", RACED), Attack("import what is not Python's", IMPORTED),
]
