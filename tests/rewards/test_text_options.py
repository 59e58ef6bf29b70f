"""Options of the rewards for words that are refused in one line when they are loaded, before any model. 1 second."""

import re
import sys

import pytest
from reward_pools import starting

from rewards.arguments import check_columns
from rewards.loading import load

AB = {"a": ["fever"], "b": ["flu"]}
TERM = "must be words, its forms between bars; each begins and ends in a letter or a digit; " \
       "nearest valid value: 'diagnosis|diagnoses'"
TERMS = "must be a list of at least one term; nearest valid value: [fever, 'diagnosis|diagnoses']"
NAMED = "must be lists of terms by name; nearest valid value: {symptoms: [fever, cough], treatment: [rest]}"


@pytest.mark.parametrize(("name", "options", "line"), [
    ("keywords", {"terms": []}, f"terms=[] {TERMS}"),
    ("keywords", {"terms": "fever"}, f"terms='fever' {TERMS}"),
    ("keywords", {"terms": ["flu", ""]}, f"terms='' {TERM}"),
    ("keywords", {"terms": ["flu", "fever|"]}, f"terms='fever|' {TERM}"),
    ("keywords", {"terms": ["C++"]}, f"terms='C++' {TERM}"),
    ("keywords", {"terms": ["-5"]}, f"terms='-5' {TERM}"),
    ("keywords", {"terms": [False]}, f"terms=False {TERM}"),  # what YAML makes of an unquoted no
    ("keywords", {"case_sensitive": "yes"},
     "case_sensitive='yes' must be true or false; nearest valid value: false"),
    ("keyword_groups", {"groups": {}}, f"groups={{}} {NAMED}"),
    ("keyword_groups", {"groups": [["fever"]]}, f"groups=[['fever']] {NAMED}"),
    ("keyword_groups", {"groups": {1: ["fever"]}}, f"groups={{1: ['fever']}} {NAMED}"),
    ("keyword_groups", {"groups": {"a": []}}, f"groups of a=[] {TERMS}"),
    ("contexts", {"groups": {"a": ["fever"]}},
     "groups={'a': ['fever']} must be at least two; nearest valid value: {first: [fever], second: [rest]}"),
    ("contexts", {"groups": AB, "within": "paragraph"},
     "within='paragraph' must be sentence or a number of words; nearest valid value: sentence"),
    ("contexts", {"within": 2.5}, "within=2.5 must be sentence or a number of words; nearest valid value: sentence"),
    ("contexts", {"within": True}, "within=True must be sentence or a number of words; nearest valid value: sentence"),
    ("contexts", {"within": 101}, "within=101 must be from 0 to 100 words; nearest valid value: 100"),
    ("contexts", {"within": -1}, "within=-1 must be from 0 to 100 words; nearest valid value: 0"),
    ("contexts", {"in_order": 1}, "in_order=1 must be true or false; nearest valid value: false"),
    ("contexts", {"groups": AB, "pairs": []},
     "pairs=[] must be lists of two groups' names; nearest valid value: [['a', 'b']]"),
    ("contexts", {"pairs": ["ab"]},
     "pairs=['ab'] must be lists of two groups' names; nearest valid value: [['first', 'second']]"),
    ("contexts", {"groups": AB, "pairs": [["a", "c"]]},
     "pairs=['a', 'c'] must be two of the groups: a, b; nearest valid value: ['a', 'b']"),
    ("contexts", {"pairs": [["a", "a"]]},
     "pairs=['a', 'a'] must be two of the groups; nearest valid value: ['first', 'second']"),
    ("semantic", {"model": "x", "threshold": 1.5}, "threshold=1.5 must be from 0 to 1; nearest valid value: 1"),
    ("semantic", {"model": "x", "threshold": -0.1}, "threshold=-0.1 must be from 0 to 1; nearest valid value: 0"),
    ("semantic", {"model": "x", "threshold": float("nan")},
     "threshold=nan must be from 0 to 1; nearest valid value: 0"),
    ("semantic", {"model": "x", "threshold": "high"},
     "threshold='high' must be from 0 to 1; nearest valid value: 0.7"),
    ("semantic", {"model": "x", "threshold": True}, "threshold=True must be from 0 to 1; nearest valid value: 0.7"),
    ("semantic", {}, "model=None must be a folder that is there, or a Hub name; nearest valid value: "
     "sentence-transformers/all-MiniLM-L6-v2"),
    ("semantic", {"model": "./nowhere"}, "model='./nowhere' must be a folder that is there, or a Hub name; nearest "
     "valid value: sentence-transformers/all-MiniLM-L6-v2"),
])
def test_a_value_that_is_none_is_refused_with_what_is_near(name: str, options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'reward_options of {name}: {line}')}$"):
        load([name], None, {name: options})


@pytest.mark.parametrize(("name", "options", "known"), [
    ("keywords", {"term": ["flu"]}, "terms, stemmer, case_sensitive; nearest valid value: terms"),
    ("keywords", {"matching": 1}, "terms, stemmer, case_sensitive"),
    ("contexts", {"unit": "words"}, "groups, pairs, within, in_order, stemmer, case_sensitive"),
    ("semantic", {"reference": "x"}, "model, threshold, device"),  # each row has its own
])
def test_an_option_that_the_reader_does_not_take_is_refused_with_those_it_takes(
    name: str, options: dict, known: str
) -> None:
    option, = options
    line = f"reward_options={{{name}: {{{option}: ...}}}}: must be one of {known}"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        load([name], None, {name: options})


def test_a_stemmer_that_is_not_installed_or_not_known_is_refused() -> None:
    pytest.importorskip("snowballstemmer", reason="snowballstemmer is not installed")
    with pytest.raises(ValueError, match="stemmer='klingon' must be none or one of .*english, .*; nearest valid"):
        load(["keywords"], None, {"keywords": {"stemmer": "klingon"}})
    german = load(["keywords"], None, {"keywords": {"stemmer": "german", "terms": ["Haus"]}})
    assert german["keywords"](["Hauses"]) == [1.0]


@pytest.mark.parametrize(("name", "options", "package"), [
    ("keywords", {"stemmer": "english"}, "snowballstemmer"),
    ("semantic", {"model": "a/b"}, "sentence-transformers"),
])
def test_a_package_that_is_missing_is_named_in_one_line(
    name: str, options: dict, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)  # as if it were not there
    with pytest.raises(ValueError, match=f"^reward_options of {name}: .* needs the package {package}, which is not "
                                         "installed here; nearest valid value: .*$"):
        load([name], None, {name: options})


def test_terms_that_neither_options_nor_data_have_are_refused() -> None:
    with pytest.raises(ValueError, match="reward function 'keywords': missing a required argument: 'terms'"):
        check_columns(load(["keywords"]), ["prompt"])
    check_columns(load(["keywords"], None, {"keywords": {"terms": ["fever"]}}), ["prompt"])
    check_columns(load(["keywords"]), ["prompt", "terms"])


@pytest.mark.parametrize(("row", "words"), [("fever", "terms='fever' must be a list"), ([5], "terms=5 must be words")])
def test_a_row_with_what_are_no_terms_is_named_when_it_comes(row, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        load(["keywords"])["keywords"](["fever"], terms=[row])


def test_a_row_without_the_groups_of_a_pair_is_named_when_it_comes() -> None:
    one = load(["contexts"], None, {"contexts": {"pairs": [["a", "c"]]}})["contexts"]
    with pytest.raises(ValueError, match=r"^pairs=\['a', 'c'\] must be two of the groups: a, b;"):
        one(["fever"], groups=[AB])


def test_a_run_is_refused_when_its_rewards_start() -> None:
    with starting() as start, pytest.raises(ValueError, match=r"reward_options of keywords: terms=\[\] must be a list"):
        start("rewards.text:keywords", reward_options={"keywords": {"terms": []}})
