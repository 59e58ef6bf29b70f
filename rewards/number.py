r"""One number as people and models write it: on an answer line, as a gold answer, or as the last of a text.

A text is read as a number only where no other one can be meant: "2 million" is 2,000,000, but "3 dozen" and
"5 no wait seven" are no numbers, rather than 3 and 5. docs/answers.md lists both sides, and a test holds its rows
against this file. Values are exact, and whatever the text is, the time is linear in its length.
"""

import re
from fractions import Fraction

MAX_NUMBER_LENGTH = 32  # characters; no answer to a problem is longer

MINUS = "-\u2212"
MONEY = "$€£¥₹"
FIXED_SPACE = "\u00a0\u2009\u202f"  # no-break, thin, thin no-break: they never part two numbers
SPACE = " " + FIXED_SPACE

# Linear time: no two neighbouring repetitions match the same character, and no search looks far ahead from each start.
DIGITS = re.compile(
    rf"(?P<digits>(?:[0-9]{{1,3}}(?P<group>[,{FIXED_SPACE}])[0-9]{{3}}(?:(?P=group)[0-9]{{3}})*|[0-9]+)(?:\.[0-9]+)?"
    r"|\.[0-9]+)(?P<power>[eE][+-]?[0-9]{1,2})?")
ANSWER = re.compile(
    rf"(?:=[{SPACE}]*)?(?P<wrap>\*\*|\$?\\boxed\{{)?"
    rf"(?P<sign>[{MINUS}]?(?:\\?[{MONEY}][{SPACE}]?)?|\\?[{MONEY}][{MINUS}]){DIGITS.pattern}")
WRAP_END = {"**": "**", r"\boxed{": "}", r"$\boxed{": "}$"}
# Behind the number, without digits: a full stop and a sentence, or a unit ("%", "miles per hour", "sq. ft.").
WORDS = rf"[A-Za-z°%{MONEY}²³.,!/'’{SPACE}-]*"
REST = re.compile(rf"(?:\.(?:[{SPACE}]{WORDS})?|[{SPACE}]*(?:[A-Za-z°{MONEY}]|\\?%){WORDS})?")

# The number of a text: digits of any script, and what makes one number of them, or no number (12:30, 10^6, 2 1/2).
DIGIT = r"[\d²³¹⁰-⁹¼-¾⅐-⅞]"
JOINT = rf"(?:[.,:/^]|\*\*|\}}\{{|[eE][+-]?|[{SPACE}](?=[0-9]+/))?"
IN_TEXT = re.compile(
    rf"(?P<sign>(?:(?<![\w)])[{MINUS}])?(?:\\?[{MONEY}][{SPACE}]?)?)"  # in "10-7" the last number is 7
    rf"(?P<run>(?:[0-9]{{1,3}}(?:[{SPACE}][0-9]{{3}}(?!{DIGIT}))+|(?:(?<![\w.])\.)?[0-9])(?:{JOINT}{DIGIT})*+)")

# "k" only at its number: 70 k may be kelvin. No hyphen behind: "2 million-dollar houses" are 2.
SCALE = re.compile(rf"(?:k|K|[{SPACE}]*(?ai:thousand|million|billion|bn|trillion))(?![A-Za-z'’-])")
SCALES = {"k": 10**3, "thousand": 10**3, "million": 10**6, "billion": 10**9, "bn": 10**9, "trillion": 10**12}
TEENS_AND_TENS = "(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ie)"
# Anywhere behind a number, in lower case: a search that ignores case takes four times as long. Not "second", a time.
NUMBER_WORD = re.compile(
    rf"(?a)\b(?:(?:zero|one|two|three|four|five|fif|six|seven|eight?|nine?|ten|eleven|twel(?:ve|f)|{TEENS_AND_TENS}"
    r"|hundred|thousand|million|billion|trillion|lakh|crore|dozen|half|halve|third|quarter)(?:e?s|ths?)?|pi)\b")
# Right behind a number, where they may be a scale. Letters in this case: g is gram, m is metre. T-shirts are no scale.
MAYBE_SCALE = re.compile(
    rf"[{SPACE}]*(?:[kKbBMG]|MM|[eET](?!-)|(?ai:mn|mln|mio|mill?|bln|trn?|tn|grand|gross|score|squared|cubed|factorial))\b")
# Right behind an amount of money: no metre or litre then.
MAYBE_SCALE_OF_MONEY = re.compile(rf"(?ai)[{SPACE}]*(?:mm?|t|g|l|cr)\b")
MONEY_WORD = re.compile(rf"(?ai)[{MONEY}]|\b(?:dollars?|euros?|pounds?|rupees?|yen|usd|eur|gbp|inr)\b")
TAKEN_BACK = re.compile(r"(?ai)\b(?:no|not|or|wait)\b")


def parse_number(text: str) -> Fraction | None:
    """The number that a text states, if it states one and no second one can be meant; else None."""
    match = ANSWER.match(text.strip())
    if match is None:
        return None
    rest = match.string[match.end():]
    if match["wrap"]:
        inside, end, behind = rest.partition(WRAP_END[match["wrap"]])
        if not end:
            return None
        rest = inside + behind  # none of it may be a digit: "**4**2" is no number
    factor, words = _scale(rest)
    if not REST.fullmatch(words) or TAKEN_BACK.search(words) or _is_doubtful(match["sign"], words):
        return None
    return _value(match["sign"], match, factor)


def last_number(text: str) -> Fraction | None:
    """The last number in digits of a text, with a scale behind it; also as 1 234 or 3/4. None where it is doubtful."""
    match = None
    for match in IN_TEXT.finditer(text):
        pass  # only the last one counts
    if match is None:
        return None
    factor, words = _scale(text[match.end():].partition("\n")[0])
    if _is_doubtful(match["sign"], words):
        return None
    run, slash, divisor = match["run"].replace(" ", FIXED_SPACE[0]).partition("/")
    value = _value(match["sign"], DIGITS.fullmatch(run), factor)
    below = _value("", DIGITS.fullmatch(divisor), 1) if slash else Fraction(1)
    return value / below if value is not None and below else None


def _value(sign: str, match: re.Match[str] | None, factor: int) -> Fraction | None:
    if match is None or len(match["digits"]) > MAX_NUMBER_LENGTH:
        return None
    value = factor * Fraction(match["digits"].replace(match["group"] or ",", "") + (match["power"] or ""))
    return -value if set(sign) & set(MINUS) else value


def _scale(rest: str) -> tuple[int, str]:
    """The factor in the text behind a number, and the words behind that."""
    scale = SCALE.match(rest)
    return (SCALES[scale[0].strip().lower()], rest[scale.end():]) if scale else (1, rest)


def _is_doubtful(sign: str, words: str) -> bool:
    """Whether the words behind a number and its scale can mean another number, or another scale."""
    money = MAYBE_SCALE_OF_MONEY.match(words) and MONEY_WORD.search(sign + words)
    return bool(money or MAYBE_SCALE.match(words) or NUMBER_WORD.search(words.lower()))
