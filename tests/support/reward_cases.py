"""Reward functions as a worker meets them: some good ones, and every way to be bad; for test_reward_pool.py."""

import ctypes
import os
import random
import re
import signal
import sys
import threading
import time

calls = 0
kept = []


def counts(completions, **columns):
    global calls
    calls += 1
    return [None if text == "none" else calls for text in completions]


def lengths(completions, **columns):
    return [len(text) for text in completions]


def draws(completions, **columns):
    return [random.random() for _ in completions]


def draws_one(completions, **columns):
    (_,) = completions
    return [random.random()]


def forges(completions, line, **columns):
    if line[0]:
        os.write(int(sys.argv[1]), line[0].encode())  # the runner's pipe; its own answer comes later
        time.sleep(0.3)
    return [1.0 for _ in completions]


def reads(completions, when, raw, deep, **columns):
    return [when[0].year + raw[0][1] + deep[0]["a"][0] for _ in completions]


def waits(completions, **columns):
    time.sleep(1.3)
    return [1.0 for _ in completions]


def notes(completions, log, **columns):
    with open(log[0], "a") as file:
        file.write(f"{len(completions)}\n")
    raise KeyError("no\nsuch key")


def one_by_one(completions, **columns):
    return [1.0 if len(completions) == 1 else {}["key"] for _ in completions]


def swells_later(completions, **columns):
    threading.Timer(0.1, lambda: kept.append(bytearray(b"x") * 2**30)).start()
    return [1.0 for _ in completions]


def few(completions, **columns):
    return [1.0]


def word(completions, **columns):
    return "1.0"


def not_a_number(completions, **columns):
    return [float("nan") for _ in completions]


def lazy(completions, **columns):
    return (1.0 for _ in completions)


def prints(completions, **columns):
    for _ in range(512):
        os.write(1, b"o" * 2**20)
        os.write(2, b"e" * 2**20)
    return [1.0 for _ in completions]


def daemon(completions, pids, **columns):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(pids[0], "w") as file:
                file.write(str(os.getpid()))
            time.sleep(1000)
        os._exit(0)
    os.wait()
    return [1.0 for _ in completions]


def comes_back_twice(completions, **columns):
    os.fork()
    return [1.0 for _ in completions]


def only_for_bad(misbehave):
    """A reward function that gives 1.0 unless there is "bad" among the completions."""

    def function(completions, **columns):
        if "bad" in completions:
            misbehave()
        return [1.0 for _ in completions]

    return function


@only_for_bad
def spins():
    while True:
        pass


@only_for_bad
def backtracks():
    re.fullmatch("(a+)+b", "a" * 60)


@only_for_bad
def forks():
    for _ in range(200):
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
    time.sleep(1000)


@only_for_bad
def storms():
    if os.fork():
        time.sleep(1000)
    for _ in range(7):
        os.fork()
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:  # 128 processes that each live too short to be caught one by one
        time.sleep(0.02)  # or nobody else gets a core on a busy machine
        if os.fork():
            os._exit(0)


@only_for_bad
def swells():
    kept = bytearray(b"x") * 2**31
    time.sleep(1000)
    return kept


@only_for_bad
def raises():
    return 1 / 0


@only_for_bad
def leaves():
    sys.exit("enough")


@only_for_bad
def exits():
    os._exit(7)


@only_for_bad
def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@only_for_bad
def breaks():
    ctypes.string_at(0)


@only_for_bad
def kills_its_keeper():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


@only_for_bad
def stops_its_keeper():
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(1000)


@only_for_bad
def lies():
    for descriptor in range(3, 30):
        try:
            os.write(descriptor, b'{"values": [Infinity, "x"]}\n')
        except OSError:
            pass
    time.sleep(1000)
