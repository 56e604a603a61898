"""A rubric in place of a judge: an answer has points for the words that it shares, in order, with its reference.

    reference, answer ─► words ─► ROUGE-L F1 (Lin 2004) ─► Rated(reference 10, answer 1 + 9 · F1) ─► judging.judge

It costs nothing and is the same everywhere, so it shows that a pipeline works; it knows nothing of what is true or
helpful, and a right answer in other words has few points. It is no judge, and is marked so wherever it is shown.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from rskd.errors import ConfigError
from rskd.evaluation.answers import Answered
from rskd.evaluation.judging import HIGHEST, LOWEST, Rated, Verdict, judge

NAME = "ROUGE-L rubric, no judge"
_WORDS = re.compile(r"[^\W_]+")


class _Words:
    """Words of any script in lower case; rouge-score's own tokenizer knows ASCII alone."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())


def check_installed() -> None:
    """Raises ConfigError where rouge-score is not installed."""
    if importlib.util.find_spec("rouge_score") is None:
        raise ConfigError(
            "generate without judge rates by ROUGE-L, and rouge-score is not installed: add a section judge, or pip "
            "install 'rskd[downstream]'"
        )


def rate(answers: Sequence[Answered]) -> Verdict:
    """The verdict of the rubric: scores in percent of the references' points, from 10 (no word shared) to 100."""
    check_installed()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())

    def points(answered: Answered) -> float:
        shared = scorer.score(answered.prompt.reference, answered.answer.text)["rougeL"].fmeasure
        return LOWEST + (HIGHEST - LOWEST) * shared

    return judge(answers, [[Rated("reference first", HIGHEST, points(answered))] for answered in answers])
