"""A large model as judge: it rates a reference and an answer to the same question, from 1 to 10 each (paper, E.3).

    question, reference, answer ─► request in one order, or in both ─► judge ─► scores_of ─► Rated ─► Verdict

The score is the total of the answers over the total of the references, in percent. What judges are known to be biased
by is measured beside it: the place of a text (both orders), its length, and kinship of judge and teacher.

Shapes: P prompts, R resamples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from scipy.stats import bootstrap

from rskd.config import JudgeConfig
from rskd.evaluation.answers import Answered

Order = Literal["reference first", "answer first"]
LOWEST, HIGHEST = 1.0, 10.0
_RESAMPLES, _CONFIDENCE, _SEED, _RESAMPLES_AT_ONCE = 10_000, 0.95, 0, 100
_SYSTEM = "You are a careful and impartial judge of the answers of assistants."
# After the review prompt of Vicuna, as MiniLLM asks. That goes on to ask for an explanation after the scores, which
# cannot change them and would be most of the price.
_REQUEST = """[Question]
{question}

[The Start of Assistant 1's Answer]
{first}
[The End of Assistant 1's Answer]

[The Start of Assistant 2's Answer]
{second}
[The End of Assistant 2's Answer]

[Task]
Rate the helpfulness, relevance, accuracy and level of detail of both answers to the question above. Give each \
assistant an overall score on a scale of 1 to 10, where a higher score means a better answer. Do not let the order of \
the answers influence you. Output a single line with only two numbers, the scores of Assistant 1 and of Assistant 2, \
separated by a space."""
_NUMBER = r"(\d+(?:\.\d+)?)(?:\s*/\s*10)?"
_PAIR = re.compile(rf"{_NUMBER}\s*(?:[\s,;|]|and)\s*{_NUMBER}\.?")
_NAMED = re.compile(
    rf"assistant\s*([12])(?:'s)?(?:\s*score)?\s*[:=]\s*{_NUMBER}(?!\.?\d|\s*[/%-]|\s*out of)", re.IGNORECASE
)


@dataclass(frozen=True)
class Rated:
    """Scores of a reference and of an answer by one request; None where the judge's reply is no rating."""

    order: Order
    reference: float | None
    answer: float | None

    @classmethod
    def read(cls, order: Order, reply: str) -> Rated:
        """What a reply of the judge says."""
        scores = scores_of(reply)
        if scores is None:
            return cls(order, None, None)
        return cls(order, *(scores if order == "reference first" else reversed(scores)))


def orders(config: JudgeConfig) -> tuple[Order, ...]:
    """In which orders each answer is rated."""
    return ("reference first", "answer first") if config.both_orders else ("reference first",)


def request(config: JudgeConfig, answered: Answered, order: Order) -> dict[str, Any]:
    """The body of a chat completion that asks for a rating; a pure function, so that equal requests are one."""
    texts = (answered.prompt.reference, answered.answer.text)
    first, second = texts if order == "reference first" else reversed(texts)
    asked = _REQUEST.format(question=answered.prompt.question, first=first, second=second)
    return {
        "model": config.model,
        "messages": [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}],
        "temperature": 0,
        "max_tokens": config.max_new_tokens,
    }


def scores_of(reply: str) -> tuple[float, float] | None:
    """The scores of Assistant 1 and 2 in a judge's reply; None unless it gives two, from 1 to 10, without doubt.

    Its first line with text has both and nothing else, or each is named once (Assistant 1: 8). Thoughts before
    </think> do not count; without their end there is no rating.
    """
    said = reply.rpartition("</think>")[2].replace("*", "").replace("`", "").strip()
    if "<think>" in said:
        return None
    found = _PAIR.fullmatch(said.partition("\n")[0].strip())
    if found is not None:
        scores = (float(found[1]), float(found[2]))
    else:
        named = {who: float(score) for who, score in _NAMED.findall(said)}
        if len(named) < 2 or len(_NAMED.findall(said)) > 2:
            return None
        scores = (named["1"], named["2"])
    return scores if all(LOWEST <= score <= HIGHEST for score in scores) else None


@dataclass(frozen=True)
class Verdict:
    """How one model did on one set of prompts. Scores are in percent of the references' total.

    An answer counts in `score` if it was rated in every order, so that no place is favoured. `worst` and `best` are
    what the score would be had each missing rating given the answer 1 and the reference 10, or the reverse.
    """

    score: float | None
    low: float | None  # bootstrap over prompts, 95%
    high: float | None
    worst: float | None
    best: float | None
    by_generation: list[float | None]
    by_order: dict[str, float | None]
    first_place_gain: float | None  # points of the ten that a text gains by standing first
    mean_answer: float | None  # points of the ten
    mean_reference: float | None
    prompts: int
    answers: int
    answers_counted: int
    ratings: int
    unparsed: int  # replies that are no rating
    refused: int  # requests that the endpoint refuses
    answer_words: float  # mean lengths
    reference_words: float
    empty: int  # answers
    cut: int  # answers of max_new_tokens, or without room for as many


def judge(answers: Sequence[Answered], ratings: Sequence[Sequence[Rated | None]]) -> Verdict:
    """The verdict on `answers`, each with its ratings; None for a request that the endpoint refuses."""
    flat = [rated for of_answer in ratings for rated in of_answer]
    parsed = [rated for rated in flat if rated is not None and rated.answer is not None]
    whole = [
        (answered, of_answer)
        for answered, of_answer in zip(answers, ratings, strict=True)
        if all(rated is not None and rated.answer is not None for rated in of_answer)
    ]
    counted = [(answered, rated) for answered, of_answer in whole for rated in of_answer if rated is not None]
    scored = [rated for _, rated in counted]
    generations = 1 + max((answered.generation for answered in answers), default=0)
    finishes = Counter(answered.answer.finish for answered in answers)
    replies = [rated for rated in flat if rated is not None]
    low, high = _interval(counted)
    return Verdict(
        score=_ratio(scored),
        low=low,
        high=high,
        worst=_ratio([_filled(rated, answer=LOWEST, reference=HIGHEST) for rated in flat]),
        best=_ratio([_filled(rated, answer=HIGHEST, reference=LOWEST) for rated in flat]),
        by_generation=[
            _ratio([rated for answered, rated in counted if answered.generation == index])
            for index in range(generations)
        ],
        by_order={
            order: _ratio([rated for rated in scored if rated.order == order])
            for order in dict.fromkeys(rated.order for rated in replies)
        },
        first_place_gain=_first_place_gain([of_answer for _, of_answer in whole]),
        mean_answer=_mean([rated.answer for rated in scored]),
        mean_reference=_mean([rated.reference for rated in scored]),
        prompts=len({answered.prompt_index for answered in answers}),
        answers=len(answers),
        answers_counted=len(whole),
        ratings=len(parsed),
        unparsed=len(replies) - len(parsed),
        refused=len(flat) - len(replies),
        answer_words=_mean([len(answered.answer.text.split()) for answered in answers]) or 0.0,
        reference_words=_mean([len(answered.prompt.reference.split()) for answered in answers]) or 0.0,
        empty=sum(not answered.answer.text.strip() for answered in answers),
        cut=finishes["length"] + finishes["no room"],
    )


def _filled(rated: Rated | None, *, answer: float, reference: float) -> Rated:
    """A rating, or in its place one with these scores."""
    if rated is None or rated.answer is None:
        return Rated("reference first", reference, answer)
    return rated


def _ratio(ratings: Sequence[Rated]) -> float | None:
    """Total of the answers over that of the references, in percent; None without a rating."""
    if not ratings:
        return None
    return 100 * sum(rated.answer or 0 for rated in ratings) / sum(rated.reference or 0 for rated in ratings)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _interval(counted: Sequence[tuple[Answered, Rated]]) -> tuple[float | None, float | None]:
    """The ends of the score's 95% interval, by resampling prompts with all their answers; None below two prompts."""
    totals: dict[int, list[float]] = {}
    for answered, rated in counted:
        of_prompt = totals.setdefault(answered.prompt_index, [0.0, 0.0])
        of_prompt[0] += rated.answer or 0
        of_prompt[1] += rated.reference or 0
    if len(totals) < 2:
        return None, None
    answers_P, references_P = np.array(list(totals.values())).T

    def ratio(answers_RP: np.ndarray, references_RP: np.ndarray, axis: int = -1) -> np.ndarray:
        return 100 * answers_RP.sum(axis) / references_RP.sum(axis)

    ends = bootstrap(
        (answers_P, references_P),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(ends.low), float(ends.high)


def _first_place_gain(answers: Sequence[Sequence[Rated | None]]) -> float | None:
    """Mean points that a text has where it stands first above those that it has where it stands second."""
    gains = []
    for of_answer in answers:
        by_order = {rated.order: rated for rated in of_answer if rated is not None}
        if len(by_order) == 2:
            first, second = by_order["reference first"], by_order["answer first"]
            gains += [(first.reference or 0) - (second.reference or 0), (second.answer or 0) - (first.answer or 0)]
    return _mean(gains)
