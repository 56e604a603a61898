"""The rubric's points, computed by hand."""

import importlib.util

import pytest

from rskd.errors import ConfigError
from rskd.evaluation import rubric
from rskd.evaluation.answers import Answered
from rskd.evaluation.generation import Answer
from rskd.evaluation.prompts import Prompt


def answered(reference: str, text: str, prompt: int = 0) -> Answered:
    asked = Prompt(({"role": "user", "content": "Why?"},), reference, "raw")
    return Answered(prompt, 0, asked, Answer(text, 3, "stop"))


@pytest.mark.parametrize(
    ("reference", "text", "f1"),
    [
        ("the cat sat on the mat", "The cat sat on the mat.", 1),
        ("the cat sat on the mat", "a dog", 0),
        ("the cat sat on the mat", "", 0),
        ("the cat sat on the mat", "the cat on the mat", 10 / 11),  # 5 of 6 recalled, 5 of 5 right
        ("one two three", "three two one", 1 / 3),  # in order
        ("Größe ☃ naïve", "größe naïve", 1),
        ("snake_case", "snake case", 1),
        ("☃", "☃", 0),  # no words
    ],
)
def test_an_answer_has_one_point_and_nine_for_the_words_that_it_shares(reference: str, text: str, f1: float):
    pytest.importorskip("rouge_score")
    verdict = rubric.rate([answered(reference, text)])
    assert verdict.mean_answer == pytest.approx(1 + 9 * f1)
    assert verdict.mean_reference == 10
    assert verdict.score == pytest.approx(10 * (1 + 9 * f1))


def test_the_interval_is_over_prompts():
    pytest.importorskip("rouge_score")
    verdict = rubric.rate([answered("one two", text, index) for index, text in enumerate(["one two", "three"] * 20)])
    assert verdict.score == pytest.approx(55)
    assert verdict.low is not None
    assert verdict.high is not None
    assert 35 < verdict.low < 45 < 65 < verdict.high < 75
    assert (verdict.prompts, verdict.ratings, verdict.unparsed, verdict.first_place_gain) == (40, 40, 0, None)


def test_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rskd\[downstream\]'"):
        rubric.rate([])
