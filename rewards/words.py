"""Words, terms, statements and negations of a text, and whether two terms stand in one context.

docs/text-rewards.md has the rules, and a test holds its rows against this file. The lists are English. Whatever the
text is, the time is linear in its length.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

NEAREST = 100  # words; the largest distance of a context, so that the time stays linear
MIN_OTHERS, MAX_WORDS = 2, 60  # of a statement: different words that belong to no term, and words together
SCOPE = 5  # words that a negation covers, as in NegEx (Chapman et al. 2001)

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
SPACE = re.compile(r"\s+")
ALIKE = str.maketrans({"\u2018": "'", "\u2019": "'", "\u2010": "-"})  # NFKC makes the no-break hyphen a \u2010
LINE = re.compile("[^\n\r\u2028\u2029]+")
SHORT_FORMS = ("dr", "mr", "mrs", "ms", "prof", "st", "vs", "approx", "e.g", "i.e")  # their full stop ends nothing
END = re.compile("(?=[.!?])(?<![.!?])" + "".join(rf"(?<!\b{re.escape(one)})" for one in SHORT_FORMS)
                 + r"""[.!?]++["')\]*_\u201d\u00bb]*+(?=\s|$)""", re.IGNORECASE)

JOINING = {"and", "or"}  # between two terms they make a list
FORWARD = {"no", "not", "never", "without", "neither", "nor", "none", "deny", "denies", "denied", "lacks", "lacked",
           "avoid", "free of", "absence of", "negative for", "instead of", "rather than"}
BACKWARD = {"ruled out", "absent", "excluded", "unlikely", "denied", "refused", "contraindicated"}
AUXILIARY = {"is", "are", "was", "were", "be", "been", "has", "have", "had", "do", "does", "did", "can", "could",
             "will", "would", "should", "may", "might", "must"}  # a "not" or "never" behind them covers both sides
NO_NEGATION = {"not only", "not just", "no doubt", "without doubt"}
BORDER = {"but", "however", "although", "though", "yet", "except", "because", "therefore", "so", "while"}
BORDER_MARKS = set(";:()\u2013\u2014")


class Matching(NamedTuple):
    """When two words are the same."""

    stemmer: str = "none"  # a language of Snowball
    case_sensitive: bool = False

    def key(self, word: str) -> str:
        """What the word has in common with those that are the same."""
        word = word if self.case_sensitive else word.casefold()
        word = word[:-2] if word[-2:] in ("'s", "'S") else word
        return word if self.stemmer == "none" else _stem(self.stemmer, word)


class Form(NamedTuple):
    """One way to write a term: its words, and what stands in front of each; in front of the first, nothing."""

    keys: tuple[str, ...]
    gaps: tuple[str, ...]


Term = frozenset[Form]  # its forms: any one of them is the term


class Text(NamedTuple):
    """A text of W words; each list has W entries."""

    words: list[str]  # in lower case
    keys: list[str]
    gaps: list[str]  # what stands between a word and the one before it; spaces and line breaks are one space
    statements: list[int]  # which statement a word is in; -1: none


class Place(NamedTuple):
    """Where a term stands in a text: its words are start, ..., end - 1."""

    start: int
    end: int
    name: str  # of its group


@lru_cache(maxsize=2**12)
def term_of(text: str, matching: Matching) -> Term | None:
    """The term that "fever|fevers" names, by its forms; None if one of them does not begin and end in a word."""
    forms = []
    for written in text.split("|"):
        form = " ".join(_plain(written).split())
        found = list(WORD.finditer(form))
        if not found or found[0].start() > 0 or found[-1].end() < len(form):
            return None
        forms.append(Form(tuple(matching.key(word[0]) for word in found), ("", *_gaps(form, found)[1:])))
    return frozenset(forms)


def read(text: str, matching: Matching) -> Text:
    """A text by its words."""
    text = _plain(text)
    found = list(WORD.finditer(text))
    statements, inside, number = [-1] * len(found), _statements(text), 0
    start, end = next(inside, (len(text), len(text)))
    for index, word in enumerate(found):
        while word.start() >= end and end < len(text):
            (start, end), number = next(inside, (len(text), len(text))), number + 1
        if start <= word.start() and word.end() <= end:
            statements[index] = number
    return Text([word[0].casefold() for word in found], [matching.key(word[0]) for word in found], _gaps(text, found),
                statements)


def find(text: Text, groups: dict[str, frozenset[Term]]) -> list[Place]:
    """Every place of every term, from left to right."""
    by_first: dict[str, list[tuple[Form, str]]] = {}
    for name, terms in groups.items():
        for form in frozenset().union(*terms):
            by_first.setdefault(form.keys[0], []).append((form, name))
    places = []
    for start, key in enumerate(text.keys):
        for form, name in by_first.get(key, ()):
            end = start + len(form.keys)
            if tuple(text.keys[start:end]) == form.keys and tuple(text.gaps[start + 1:end]) == form.gaps[1:]:
                places.append(Place(start, end, name))
    return places


class Contexts:
    """Which groups stand in one context in a text.

    Args:
        within: how many words may stand between two terms; None: any number within one statement.
    """

    def __init__(self, text: Text, groups: dict[str, frozenset[Term]], *, within: int | None, in_order: bool) -> None:
        places = find(text, groups)
        covered = {index for place in places for index in range(place.start, place.end)}
        others = [word not in JOINING and index not in covered for index, word in enumerate(text.words)]
        negated, sound = _negated(text, covered), _sound(text, others)
        self.text, self.within, self.in_order = text, within, in_order
        self.others_before = [0, *accumulate(others)]
        self.places = [
            place for place in places if text.statements[place.start] in sound
            and text.statements[place.start] == text.statements[place.end - 1]
            and not any(negated[place.start:place.end])]

    def has(self, first: str, second: str) -> bool:
        """Whether a term of one group stands in one context with a term of the other."""
        orders = [(first, second)] if self.in_order else [(first, second), (second, first)]
        places = [place for place in self.places if place.name in (first, second)]
        for index, left in enumerate(places):
            for following in range(index + 1, len(places)):
                right = places[following]
                if self._is_far(left, right):
                    break
                if (left.name, right.name) in orders and self._is_joined(left, right):
                    return True
        return False

    def _is_far(self, left: Place, right: Place) -> bool:
        if self.within is None:
            return self.text.statements[left.start] != self.text.statements[right.start]
        return right.start - left.end > self.within

    def _is_joined(self, left: Place, right: Place) -> bool:
        """Whether they are no list: between them a word besides terms, "and" and "or", and no label's colon."""
        return self.others_before[right.start] > self.others_before[left.end] \
            and not any(": " in gap for gap in self.text.gaps[left.end:right.start + 1])


def _sound(text: Text, others: list[bool]) -> set[int]:
    """The statements that are no list of terms: few enough words, and enough different ones besides terms."""
    length: dict[int, int] = {}
    different: dict[int, set[str]] = {}
    for word, number, is_other in zip(text.words, text.statements, others, strict=True):
        length[number] = length.get(number, 0) + 1
        if is_other:
            different.setdefault(number, set()).add(word)
    return {number for number, words in different.items()
            if number >= 0 and len(words) >= MIN_OTHERS and length[number] <= MAX_WORDS}


def _negated(text: Text, covered: set[int]) -> list[bool]:
    """[W] whether a negation covers a word; a word of a term, as in "do not resuscitate", is no negation."""
    border = [word in BORDER or number != before or gap != " " and not BORDER_MARKS.isdisjoint(gap)
              for word, gap, number, before in zip(text.words, text.gaps, text.statements, [None, *text.statements])]
    border.append(True)
    negated = [False] * len(text.words)
    for index, word in enumerate(text.words):
        two = "" if border[index + 1] else f"{word} {text.words[index + 1]}"
        if index in covered or two in NO_NEGATION:
            continue
        both = word.endswith("n't") or word == "cannot" or \
            word in ("not", "never") and not border[index] and text.words[index - 1] in AUXILIARY
        if both or word in FORWARD or two in FORWARD:
            first = index + (2 if two in FORWARD else 1)
            for place in range(first, min(first + SCOPE, len(negated))):
                if border[place]:
                    break
                negated[place] = True
        if both or word in BACKWARD or two in BACKWARD:
            for place in range(index - 1, max(index - 1 - SCOPE, -1), -1):
                if border[place + 1]:
                    break
                negated[place] = True
    return negated


def _statements(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each statement; it stands on one line, and its last mark is no question mark."""
    for line in LINE.finditer(text):
        start = line.start()
        for end in END.finditer(text, line.start(), line.end()):
            if "?" not in end[0]:
                yield start, end.end()
            start = end.end()


def _gaps(text: str, found: list[re.Match]) -> list[str]:
    """What stands between each word and the one before it."""
    starts = [0, *(word.end() for word in found)]
    gaps = [text[start:word.start()] for start, word in zip(starts, found)]
    return [gap if gap == " " else SPACE.sub(" ", gap) for gap in gaps]


def _plain(text: str) -> str:
    """One way to write letters, apostrophes and hyphens that look alike."""
    return unicodedata.normalize("NFKC", text).translate(ALIKE)


@lru_cache(maxsize=2**16)
def _stem(language: str, word: str) -> str:
    return _stemmer(language).stemWord(word)


@cache
def _stemmer(language: str) -> Any:
    import snowballstemmer  # here: it is an extra

    return snowballstemmer.stemmer(language)
