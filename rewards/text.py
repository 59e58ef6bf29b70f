"""Rewards for words in texts: required terms, groups of terms, terms in context, and likeness to a reference.

All have TRL's signature and never raise for any text; the rules are in docs/text-rewards.md. What `reward_options` say
is read once by the reader that each function carries. `terms` and `groups` may be left out there: then each row of the
dataset has its own, in a column of that name. None is the reward of a row that asks for nothing.
"""

import os
from functools import cache
from itertools import pairwise
from typing import Any

from rewards.arguments import reads_options
from rewards.completion import text_of
from rewards.values import blame, refuse
from rewards.words import NEAREST, Contexts, Matching, Term, find, read, term_of

PARTIAL = 0.5  # of the share of groups, where one is missing
AS_WRITTEN = Matching()
Groups = dict[str, frozenset[Term]]


def read_keywords(terms: Any = None, stemmer: str = "none", case_sensitive: bool = False) -> dict[str, Any]:
    """The options of `keywords` as its arguments; ValueError for what is none.

    Args:
        terms: texts, each with its forms as in "diagnosis|diagnoses"; None: the column has them.
        stemmer: a language of Snowball, so that words with the same stem are the same; none: as they are written.
        case_sensitive: whether "US" and "us" are two words.
    """
    matching = _matching(stemmer, case_sensitive)
    return {"matching": matching} | ({} if terms is None else {"terms": _terms("terms", terms, matching)})


def read_groups(groups: Any = None, stemmer: str = "none", case_sensitive: bool = False) -> dict[str, Any]:
    """The options of `keyword_groups` as its arguments: groups are terms by name, the rest is as in `keywords`."""
    matching = _matching(stemmer, case_sensitive)
    return {"matching": matching} | ({} if groups is None else {"groups": _groups(groups, matching)})


def read_contexts(groups: Any = None, pairs: Any = None, within: Any = "sentence", in_order: bool = False,
                  stemmer: str = "none", case_sensitive: bool = False) -> dict[str, Any]:
    """The options of `contexts` as its arguments.

    Args:
        groups: as in `keyword_groups`, at least two.
        pairs: lists of two groups' names; None: each group with the next one.
        within: sentence, or how many words may stand between two terms, 0 to NEAREST.
        in_order: whether the first of a pair has to stand in front of the second.
    """
    is_number = isinstance(within, int) and not isinstance(within, bool)
    if within != "sentence" and not is_number:
        refuse("within", within, "must be sentence or a number of words", "sentence")
    if is_number and not 0 <= within <= NEAREST:
        refuse("within", within, f"must be from 0 to {NEAREST} words", min(max(within, 0), NEAREST))
    found = read_groups(groups, stemmer, case_sensitive)
    names = list(found.get("groups", ()))
    if names and len(names) < 2:
        refuse("groups", groups, "must be at least two", "{first: [fever], second: [rest]}")
    if pairs is not None:
        is_right = isinstance(pairs, list) and pairs and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs)
        if not is_right:
            refuse("pairs", pairs, "must be lists of two groups' names", f"[{names[:2] or ['first', 'second']}]")
        _check_names(pairs, names or None)
    return found | {"pairs": pairs, "within": None if within == "sentence" else within,
                    "in_order": _truth("in_order", in_order)}


def read_semantic(model: Any = None, threshold: Any = 0.7, device: str = "cpu") -> dict[str, Any]:
    """The options of `semantic` as its arguments; loads the model.

    Args:
        model: folder or Hub name of a model of sentence-transformers.
        threshold: the smallest cosine similarity that is rewarded, 0 to 1.
        device: where the model computes.
    """
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= 1:  # NaN neither
        refuse("threshold", threshold, "must be from 0 to 1", int(threshold > 1) if is_number else 0.7)
    folder = os.path.expanduser(model) if isinstance(model, str) else ""
    if not folder or folder.startswith((".", "/", "~")) and not os.path.isdir(folder):
        refuse("model", model, "must be a folder that is there, or a Hub name",
               "sentence-transformers/all-MiniLM-L6-v2")
    return {"model": _encoder(folder, device), "threshold": threshold}


@reads_options(read_keywords)
def keywords(completions: list[Any], terms: Any, matching: Matching = AS_WRITTEN, **columns: Any) -> list[float | None]:
    """The share of the required terms that a completion has; a term counts once, wherever it stands.

    Args:
        terms: what `read_keywords` made of the option, or a list of terms for each completion.
    """
    values = []
    for completion, row in zip(completions, _by_row(terms, completions), strict=True):
        wanted = row if isinstance(row, frozenset) else _terms("terms", row, matching) if row else frozenset()
        there = find(read(text_of(completion), matching), {str(n): frozenset([one]) for n, one in enumerate(wanted)})
        values.append(len({place.name for place in there}) / len(wanted) if wanted else None)
    return values


@reads_options(read_groups)
def keyword_groups(completions: list[Any], groups: Any, matching: Matching = AS_WRITTEN,
                   **columns: Any) -> list[float | None]:
    """1.0 for a completion with a term of every group, else half of the share of groups that it has a term of.

    Args:
        groups: what `read_groups` made of the option, or terms by group for each completion.
    """
    values = []
    for completion, row in zip(completions, _by_row(groups, completions), strict=True):
        wanted = _row_groups(row, matching)
        there = {place.name for place in find(read(text_of(completion), matching), wanted)}
        share = len(there) / len(wanted) if wanted else None
        values.append(share if share in (1.0, None) else PARTIAL * share)
    return values


@reads_options(read_contexts)
def contexts(completions: list[Any], groups: Any, pairs: list[list[str]] | None = None, within: int | None = None,
             in_order: bool = False, matching: Matching = AS_WRITTEN, **columns: Any) -> list[float | None]:
    """The share of the pairs of groups of which two terms stand in one context, neither of them negated.

    Args:
        groups: what `read_contexts` made of the option, or terms by group for each completion.
        within: how many words may stand between two terms; None: any number within one sentence.
    """
    values = []
    for completion, row in zip(completions, _by_row(groups, completions), strict=True):
        wanted = _row_groups(row, matching)
        asked = list(pairwise(wanted)) if pairs is None else pairs
        if wanted:
            _check_names(asked, list(wanted))
        there = Contexts(read(text_of(completion), matching), wanted, within=within, in_order=in_order)
        values.append(sum(there.has(*pair) for pair in asked) / len(asked) if wanted and asked else None)
    return values


@reads_options(read_semantic)
def semantic(completions: list[Any], reference: list[Any], model: Any, threshold: float = 0.7, log_metric: Any = None,
             **columns: Any) -> list[float | None]:
    """1.0 for a completion whose cosine similarity to its row's reference is at least the threshold, else 0.0.

    Args:
        reference: a text for each completion; None, or no text, asks for nothing.
        model: what `read_semantic` loaded; encode(texts, normalize_embeddings=True) gives a vector of each text.
    """
    pairs = [(_sayable(text_of(completion)), _sayable(gold if isinstance(gold, str) else ""))
             for completion, gold in zip(completions, reference, strict=True)]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text))  # G completions share a reference
    vector_of = dict(zip(texts, model.encode(texts, normalize_embeddings=True), strict=True)) if texts else {}
    values: list[float | None] = []
    for text, gold in pairs:
        alike = round(float(vector_of[text] @ vector_of[gold]), 6) if text and gold else 0.0  # a text and itself: 1
        if gold and log_metric:
            log_metric("similarity", alike)
        values.append(float(alike >= threshold and bool(text)) if gold else None)
    return values


def _matching(stemmer: Any, case_sensitive: Any) -> Matching:
    if stemmer != "none":
        try:
            import snowballstemmer
        except ImportError:
            refuse("stemmer", stemmer, "needs the package snowballstemmer, which is not installed here", "none")
        languages = snowballstemmer.algorithms()
        if stemmer not in languages:
            refuse("stemmer", stemmer, f"must be none or one of {', '.join(sorted(languages))}", "none")
    return Matching(stemmer, _truth("case_sensitive", case_sensitive))


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        refuse(name, value, "must be true or false", "false")
    return value


def _terms(name: str, terms: Any, matching: Matching) -> frozenset[Term]:
    """Terms as they are written; one that is written twice is one."""
    if not isinstance(terms, list) or not terms:
        refuse(name, terms, "must be a list of at least one term", "[fever, 'diagnosis|diagnoses']")
    found = [term_of(term, matching) if isinstance(term, str) else None for term in terms]
    if None in found:
        refuse(name, terms[found.index(None)], "must be words, its forms between bars; each begins and ends in a "
               "letter or a digit", "'diagnosis|diagnoses'")
    return frozenset(found)


def _groups(groups: Any, matching: Matching) -> Groups:
    if not isinstance(groups, dict) or not groups or not all(isinstance(name, str) for name in groups):
        refuse("groups", groups, "must be lists of terms by name", "{symptoms: [fever, cough], treatment: [rest]}")
    return {name: _terms(f"groups of {name}", terms, matching) for name, terms in groups.items()}


def _row_groups(row: Any, matching: Matching) -> Groups:
    """The groups of one row; empty where it asks for nothing."""
    if isinstance(row, dict):  # a table gives each row the groups of all rows, with None in those that it lacks
        row = {name: terms for name, terms in row.items() if terms is not None}
        if all(isinstance(terms, frozenset) for terms in row.values()):
            return row
    return _groups(row, matching) if row else {}


def _check_names(pairs: Any, names: list[str] | None) -> None:
    """Refuse a pair of groups that are not there or one and the same; None: the groups are in a column."""
    for pair in pairs:
        if pair[0] == pair[1] or names is not None and not {*pair} <= {*names}:
            refuse("pairs", list(pair), f"must be two of the groups{': ' if names else ''}{', '.join(names or ())}",
                   (names or ["first", "second"])[:2])


def _by_row(option: Any, completions: list[Any]) -> Any:
    """A column as it is; an option for each completion."""
    return option if isinstance(option, list) else [option] * len(completions)


def _sayable(text: str) -> str:
    """A text without spaces around it, and without halves of letters, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode().strip()


@cache
def _encoder(model: str, device: str) -> Any:
    """The model, loaded once in a process."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        refuse("model", model, "needs the package sentence-transformers, which is not installed here",
               "reward_funcs without semantic")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(model, device=device)
    except Exception as error:  # whatever a file or the Hub does
        refuse("model", model, f"cannot be loaded on {device}: {blame(error)}",
               "a folder that holds modules.json" if device == "cpu" else "device=cpu")
