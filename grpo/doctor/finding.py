"""A finding of the doctor: one line that says what was looked at and, where it is not well, what to set."""

from typing import NamedTuple

from grpo.distributed import gather_objects

LEVELS = ("ok", "warn", "fail")


class Finding(NamedTuple):
    """The result of one check."""

    level: str  # one of LEVELS
    check: str  # its name; a rank has one finding of a name
    words: str  # what was looked at, with its numbers
    cure: str = ""  # the option to set and its value, or what else to change; empty where all is well

    def __str__(self) -> str:
        return f"{self.level:<11}{self.check}: {self.words}" + (f"; cure: {self.cure}" if self.cure else "")


def judge(check: str, words: str, *, warn: str = "", fail: str = "") -> Finding:
    """A finding as bad as the worst cure that is given."""
    return Finding("fail" if fail else "warn" if warn else "ok", check, words, fail or warn)


def agree(findings: list[Finding]) -> list[Finding]:
    """Of each check the worst finding, with the ranks that have it if not all do. Collective: every rank."""
    everyone = gather_objects(findings)
    agreed = []
    for check in dict.fromkeys(one.check for part in everyone for one in part):
        found = [(rank, one) for rank, part in enumerate(everyone) for one in part if one.check == check]
        worst = max((one for _, one in found), key=lambda one: LEVELS.index(one.level))
        ranks = [rank for rank, one in found if one.level == worst.level]
        where = "" if len(ranks) == len(found) else f"[rank {', '.join(map(str, ranks))}] "
        agreed.append(worst._replace(words=where + worst.words))
    return agreed


def failures(findings: list[Finding]) -> list[Finding]:
    """Those that failed."""
    return [one for one in findings if one.level == "fail"]


def count(findings: list[Finding]) -> str:
    """The last line of the doctor."""
    numbers = {level: sum(one.level == level for one in findings) for level in LEVELS}
    return f"{len(findings)} things looked at: " + ", ".join(f"{number} {level}" for level, number in numbers.items())
