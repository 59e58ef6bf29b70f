"""Rewards for words: every row of docs/text-rewards.md, and what no table can hold. 3 seconds.

Likeness to a reference is in test_semantic.py, options that are refused in test_text_options.py.
"""

import functools
import inspect
import random
import re
import time

import pytest
from reward_page import PAGE, Row, rows
from reward_pools import score, starting

from rewards import words
from rewards.arguments import chosen
from rewards.loading import load
from rewards.text import contexts, keyword_groups, keywords, semantic

TABLES = rows()
ROWS = [pytest.param(row, id=ascii(f"{title}: {row.text}")) for title, table in TABLES.items() for row in table]
WORDS = (keywords, keyword_groups, contexts)
GROUPS = {"symptoms": ["fever", "cough"], "diagnosis": ["flu"], "treatment": ["syrup"]}
SOUND = "The fever points to flu, and the flu is treated with syrup."


def told(name: str, **options):
    """A reward function as a run calls it."""
    return load([name], None, {name: options})[name]


@pytest.mark.parametrize("row", ROWS)
def test_a_text_of_the_page_earns_what_the_page_says(row: Row) -> None:
    if "stemmer" in str(row.options):
        pytest.importorskip("snowballstemmer", reason="snowballstemmer is not installed")
    for name, value in row.rewards.items():
        assert told(name, **row.options[name])([row.text]) == pytest.approx([float(value)]), name


def test_the_page_judges_more_than_sixty_texts_and_none_twice() -> None:
    judged = [(title, row.text) for title, table in TABLES.items() for row in table]
    assert len(judged) == len(set(judged)) > 100
    assert len(TABLES["Negations"]) > 20 and len(TABLES["Contexts"]) > 30
    assert {name for table in TABLES.values() for name in table[0].rewards} == {one.__name__ for one in WORDS}


def test_the_page_has_the_options_that_the_readers_take_and_their_defaults() -> None:
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \| (.*) \|$", PAGE.partition("| option of")[2], re.M)[:10]
    of = {"the first three": [one.__name__ for one in WORDS]}
    said = {(function, option): default.partition(":")[0] for option, where, _, default in lines
            for function in of.get(where, re.findall(r"`(\w+)`", where))}
    read = {(one.__name__, name): parameter.default for one in (*WORDS, semantic)
            for name, parameter in inspect.signature(one.read_options).parameters.items()}
    assert said.keys() == read.keys()
    for key, default in read.items():
        if key[1] == "pairs":
            assert default is None and said[key] == "each group with the next one"
        elif default is None and key[1] != "model":
            assert said[key] == f"the column `{key[1]}`" + ", a list in each row" * (key[1] == "terms")
        else:
            assert said[key].strip("`") == str(default).lower()


def test_the_page_has_the_lists_and_the_numbers_of_the_code() -> None:
    def quoted(start: str, end: str) -> set[str]:
        return set(re.findall(r"`([^`]+)`", PAGE.partition(start)[2].partition(end)[0]))

    assert quoted("- The words behind: ", "\n- ") == words.FORWARD
    assert quoted("- The words in front: ", "\n- ") == words.BACKWARD
    assert quoted("- None: ", "\n\n") == words.NO_NEGATION
    assert quoted("and in front of ", ".\n") == words.BORDER
    assert quoted("The full stop of ", " ends none") == {f"{one.capitalize()}." for one in words.SHORT_FORMS[:6]} | {
        f"{one}." for one in words.SHORT_FORMS[6:]}
    assert quoted("a word that is no term, nor ", ";") == words.JOINING
    assert (words.SCOPE, words.MIN_OTHERS, words.MAX_WORDS, words.NEAREST) == (5, 2, 60, 100)
    assert "the next five words" in PAGE and "at least two different ones" in PAGE and "at most 60 words" in PAGE


@pytest.mark.parametrize(("count", "value"), [(60, 1.0), (61, 0.0)])
def test_a_sentence_of_sixty_words_is_one_and_a_longer_one_is_none(count: int, value: float) -> None:
    text = " ".join(["The fever", *["really"] * (count - 4), "means flu."])  # two words in front, two behind
    assert told("contexts", groups={"a": ["fever"], "b": ["flu"]})([text]) == [value]


def test_a_negation_that_belongs_to_a_term_denies_nothing() -> None:
    groups = {"order": ["do not resuscitate"], "place": ["chart"]}
    text = "A do not resuscitate stands in the chart."
    assert told("contexts", groups=groups)([text]) == [1.0]
    assert told("contexts", groups={"order": ["resuscitate"], "place": ["chart"]})([text]) == [0.0]


def test_a_question_parts_the_sentences_around_it() -> None:
    pair = {"a": ["fever"], "b": ["flu"]}
    assert told("contexts", groups=pair)(["She has a fever. Is it hot? It is a flu."]) == [0.0]
    assert told("contexts", groups=pair)(["Is it a fever? It is a flu."]) == [0.0]
    assert told("contexts", groups=pair, within=100)(["She has a fever. Is it hot? It is a flu."]) == [1.0]


def test_within_counts_the_words_of_what_is_no_sentence() -> None:
    near = told("contexts", groups={"a": ["fever"], "b": ["flu"]}, within=6)  # is here, one two, it is a
    assert near(["The fever is here.\none\nIt is a flu."]) == [1.0]
    assert near(["The fever is here.\none two\nIt is a flu."]) == [0.0]


def test_of_two_pairs_that_are_asked_for_one_is_half() -> None:
    asked = told("contexts", groups=GROUPS, pairs=[["symptoms", "treatment"], ["diagnosis", "treatment"]])
    assert asked(["The flu is treated with syrup.", "For fever we give syrup.", SOUND]) == [0.5, 0.5, 1.0]


def test_two_terms_in_the_same_words_are_no_context() -> None:
    groups = {"a": ["sore throat"], "b": ["throat"]}
    assert told("contexts", groups=groups)(["The sore throat is really bad."]) == [0.0]
    assert told("contexts", groups=groups)(["The sore throat is a bad throat."]) == [1.0]


def test_each_row_of_a_dataset_may_have_terms_and_groups_of_its_own() -> None:
    share = load(["keywords"])["keywords"]
    assert share(["fever", "fever", "fever"], terms=[["fever"], ["fever", "flu|influenza"], ["flu"]]) == [1.0, 0.5, 0.0]
    for name, value in (("keyword_groups", 1.0), ("contexts", 1.0)):
        found = load([name])[name]([SOUND, SOUND], groups=[GROUPS, {"x": ["rain"], "y": ["flu"]}])
        assert found == [value, 0.25 if name == "keyword_groups" else 0.0]


def test_a_row_that_asks_for_nothing_has_no_reward() -> None:
    assert load(["keywords"])["keywords"](["fever"] * 2, terms=[None, []]) == [None, None]
    for name in ("keyword_groups", "contexts"):
        empty = [None, {}, {"symptoms": None}]  # the last one is how a table writes a row without that group
        assert load([name])[name](["fever"] * 3, groups=empty) == [None] * 3
    assert load(["contexts"])["contexts"](["fever"], groups=[{"symptoms": ["fever"]}]) == [None]  # no pair


def test_columns_that_are_named_like_options_change_nothing() -> None:
    columns = {"case_sensitive": [True], "stemmer": ["english"], "within": [0], "in_order": [True], "matching": [None],
               "pairs": [[["treatment", "symptoms"]]], "terms": [["FEVER"]], "groups": [GROUPS], "completions": [SOUND],
               "prompts": ["p"]}
    for name in ("keywords", "contexts"):
        one = load([name])[name]
        assert one(**chosen(one, columns)) == [1.0]


def test_terms_that_are_written_twice_are_one() -> None:
    assert told("keywords", terms=["fever", "Fever", "flu"])(["fever"]) == [0.5]
    assert told("keywords", terms=["fever", "Fever", "flu"], case_sensitive=True)(["fever"]) == pytest.approx([1 / 3])


def test_the_last_message_of_a_conversation_is_scored_and_what_is_no_text_earns_nothing() -> None:
    said = [{"role": "user", "content": "flu"}, {"role": "assistant", "content": SOUND}]
    odd = [said, [{"role": "assistant"}], None, 7, []]
    assert told("contexts", groups=GROUPS)(odd) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert told("keywords", terms=["fever"])(odd) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_run_s_process_calls_them_with_options_and_columns() -> None:
    names = [f"rewards.text:{one.__name__}" for one in WORDS]
    options = {"contexts": {"pairs": [["symptoms", "diagnosis"], ["diagnosis", "treatment"]]}}
    with starting() as start:
        pool = start(*names, weights=[0.5, 0.5, 1.0], reward_options=options)
        pool.check_columns(["prompt", "terms", "groups"])
        found = score(pool, SOUND, "fever, flu, syrup", terms=[["fever", "flu"]] * 2, groups=[GROUPS] * 2)
    assert found.total == [2.0, 1.0] and not found.failures  # 0.5 + 0.5 + 1; a list has all words, in no context


PIECES = ["fever", "flu", "no", "not", "isn't", "is", "ruled out", ".", "!", "?", ";", ": ", "\n", "\u2028", "Dr.",
          "'s", "\u2019", "-", "**", "\ud800", "\u0301", "\u202e", "\x00", "ﬁ", "İ", "9.5", "and", "the", "\U0001f912"]


def test_no_text_raises_and_every_reward_is_a_share() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randrange(40)))
             for _ in range(500)]
    pair = {"a": ["fever"], "b": ["flu"]}
    for one in (told("keywords", terms=["fever", "flu"]), told("keyword_groups", groups=pair),
                told("contexts", groups=pair), told("contexts", groups=pair, within=3)):
        values = one(texts)
        assert all(0 <= value <= 1 for value in values) and len({*values}) > 1


@pytest.mark.parametrize("piece", [
    ".", ".)", "a's-", "dr. ", "e.g.", "not ", "isn't was ", "fever ", "the fever a flu ", "The fever is not a flu. ",
    "\n", "?! ", ": "], ids=ascii)
def test_a_text_of_four_times_the_length_takes_about_four_times_as_long(piece: str) -> None:
    one = told("contexts", groups={"a": ["fever"], "b": ["flu"]}, within=100)

    def seconds(length: int) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            one([piece * (length // len(piece)) + "x"])
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(20_000) < 8 * seconds(5_000) + 0.01  # a square would be 16


def test_in_python_a_partial_holds_the_options() -> None:
    one = functools.partial(keywords, **keywords.read_options(terms=["fever", "flu"]))
    assert one(["a flu"], terms_of_another_kind=[1]) == [0.5]
