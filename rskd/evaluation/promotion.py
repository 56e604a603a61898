"""May a student take the champion's place? One verdict, with its reason and a ledger of every metric.

champion, challenger: values of the same held-out windows ─► paired bootstrap ─► rows of a ledger ─► Decision

REJECT   a metric of the challenger is not finite or misses its floor; or a guarded metric is shown to be worse than
         its margin allows: the whole interval of the paired difference lies beyond the margin
HOLD     it cannot be said: the interval of a guarded metric straddles its margin; the improvement that is asked for
         is not shown; there are too few windows; or champion and challenger cannot be compared, because they have
         another tokenizer, teacher or held-out set, other windows or bins, or the champion's values are not finite
PROMOTE  otherwise: every floor holds, each guarded metric is shown to be no worse than its margin allows, and the one
         that has to improve is shown to be better by more than its margin. Without a champion the floors alone count

Intervals are two-sided, of `confidence` 1-α, so that each claim is wrong in at most α/2 of all cases. Several metrics
need no correction: PROMOTE needs all of them, and a challenger that is truly too bad in one must pass in that one
(intersection-union test, Berger 1982). The metric to improve is one, named beforehand. REJECT and HOLD both leave the
champion where it is; only the words differ.

Windows weigh by their tokens that have a loss, and those without any count for nothing.

What this does not say: windows are taken as independent, though two may come from one document, which makes intervals
a little too narrow. It is about these weights, not about the recipe with another seed. And each promotion may lose up
to a margin: the floors bound the sum.

Shapes: W windows, R resamples, M bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from rskd.config import PromotionConfig
from rskd.evaluation.window_values import MEANS, METRICS, WindowValues

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]
MetricVerdict = Literal[
    "not finite",
    "floor missed",
    "worse",
    "unclear",
    "not better",
    "better",
    "not worse",
    "floor held",
    "not guarded",
    "not compared",
]
HIGHER_IS_BETTER = {"acceptance", "top1_agreement"}
MIN_WINDOWS = 20  # below it a bootstrap interval is not to be relied on
_REJECTED = {"not finite", "floor missed", "worse"}
_HELD = {"unclear", "not better"}
_DRAWS_AT_ONCE = 2**20  # window numbers drawn at a time: bounds the memory to some 30 MiB


@dataclass(frozen=True)
class Measured:
    """What was measured of one model. Two are comparable if tokenizer, teacher and held-out set are the same.

    The first three are fingerprints. Give a champion those that it was distilled with: it may have been evaluated
    again with another teacher, or on windows of another tokenizer.
    """

    tokenizer: str
    teacher: str
    held_out: str
    values: WindowValues


def named_teacher(fingerprint: str, dtype: str) -> str:
    """How a teacher is called in Measured and wherever two evaluations are compared."""
    return f"{fingerprint} in {dtype}"


class LedgerRow(TypedDict):
    """One metric. `difference` is challenger - champion, [`low`, `high`] its interval; None where there is none.

    `margin` is that of the metric to improve, else how much worse it may be; None where neither is asked.
    """

    metric: str
    champion: float | None
    challenger: float | None
    difference: float | None
    low: float | None
    high: float | None
    margin: float | None
    verdict: MetricVerdict


@dataclass(frozen=True)
class Decision:
    """The verdict, why in one line, and a row for each of METRICS."""

    verdict: Verdict
    reason: str
    ledger: tuple[LedgerRow, ...]


def decide(champion: Measured | None, challenger: Measured, gates: PromotionConfig) -> Decision:
    """The rule at the top of this file; the same values and `gates` give the same decision."""
    obstacle = None if champion is None else _why_incomparable(champion, challenger)
    intervals: dict[str, tuple[float, float]] = {}
    if champion is not None and obstacle is None and not _not_finite(challenger):
        intervals = _intervals(champion.values, challenger.values, gates)
    ledger = tuple(_row(metric, champion, challenger, intervals.get(metric), gates) for metric in METRICS)
    rejected = [_explanation(row, gates) for row in ledger if row["verdict"] in _REJECTED]
    if rejected:
        return Decision("REJECT", "; ".join(rejected), ledger)
    held = [_explanation(row, gates) for row in ledger if row["verdict"] in _HELD]
    if obstacle or held:
        return Decision("HOLD", obstacle or "; ".join(held), ledger)
    return Decision("PROMOTE", _why_promoted(ledger, champion, gates), ledger)


def _why_incomparable(champion: Measured, challenger: Measured) -> str | None:
    """What forbids to compare the two; None if nothing does."""
    for what in ("tokenizer", "teacher", "held_out"):
        theirs, own = getattr(champion, what), getattr(challenger, what)
        if theirs != own:
            name = what.replace("held_out", "held-out set")
            return f"another {name} than the champion's: {own}, not {theirs}"
    old, new = champion.values, challenger.values
    if not np.array_equal(old.window, new.window) or not np.array_equal(old.tokens, new.tokens):
        return (
            f"other windows than the champion's ({len(new.window)}, not {len(old.window)}, or not the same ones): "
            "evaluate both on the same"
        )
    if old.count.shape != new.count.shape:
        bins, others = new.count.shape[1], old.count.shape[1]
        return f"the ECE has {bins} bins, the champion's {others}: evaluate both with the same"
    if wrong := _not_finite(champion):
        return f"{', '.join(wrong)} of the champion is not finite: evaluate it again, or roll it back"
    num_windows = np.count_nonzero(new.tokens)
    if num_windows < MIN_WINDOWS:
        return f"{num_windows} held-out windows, of {MIN_WINDOWS} needed at least: raise corpus.eval_windows"
    return None


def _not_finite(model: Measured) -> list[str]:
    return [metric for metric in METRICS if not math.isfinite(model.values.metric(metric))]


def _intervals(
    champion: WindowValues, challenger: WindowValues, gates: PromotionConfig
) -> dict[str, tuple[float, float]]:
    """Interval of challenger - champion for each of METRICS, by a paired bootstrap over the windows.

    The percentile interval, expanded to the width that Student's t asks of W windows (Hesterberg 2015). The ECE, a sum
    of absolute values, is too high in a sample, by an unknown amount up to `_largest_bias`: its interval covers all of
    that, for either model. Resamples are weighed a few at a time, so that memory does not grow with windows times
    resamples.
    """
    has_tokens = challenger.tokens > 0
    tokens_W = challenger.tokens[has_tokens].astype(float)
    difference_WK = np.stack([challenger.means[metric] - champion.means[metric] for metric in MEANS], axis=1)
    sums_WK = difference_WK[has_tokens] * tokens_W[:, None]
    gaps_WM = [(values.correct - values.confidence)[has_tokens] for values in (challenger, champion)]

    def statistics(weights_RW: np.ndarray) -> np.ndarray:
        """[R, 6]: the differences of MEANS, then the ECE of the challenger and of the champion."""
        sums = [weights_RW @ sums_WK, *(np.abs(weights_RW @ gap_WM).sum(1, keepdims=True) for gap_WM in gaps_WM)]
        return np.hstack(sums) / (weights_RW @ tokens_W)[:, None]

    num_windows = len(tokens_W)
    observed = statistics(np.ones((1, num_windows)))[0]
    resampled = np.concatenate([statistics(weights) for weights in _resamples(num_windows, gates)])
    new_ece, old_ece = resampled[:, -2], resampled[:, -1]
    ends = _ends(np.column_stack([resampled[:, :-2], new_ece - old_ece]), num_windows, gates.confidence)
    added_by_resampling = (new_ece - old_ece).mean() - (observed[-2] - observed[-1])
    new_bias, old_bias = (_largest_bias(gap_WM, tokens_W) / tokens_W.sum() for gap_WM in gaps_WM)
    ends[:, -1] += np.array([-new_bias, old_bias]) - added_by_resampling
    return {metric: (float(low), float(high)) for metric, low, high in zip((*MEANS, "ece"), *ends, strict=True)}


def _ends(resampled: np.ndarray, num_windows: int, confidence: float) -> np.ndarray:
    """Low and high end [2, K] of what was resampled, [R, K]."""
    quantile = student_t.ppf((1 + confidence) / 2, num_windows - 1)
    tail = norm.cdf(-quantile * math.sqrt(num_windows / (num_windows - 1)))
    return np.quantile(resampled, [tail, 1 - tail], axis=0)


def _largest_bias(gap_WM: np.ndarray, tokens_W: np.ndarray) -> float:
    """By how much the sum of the bins' absolute gaps is too high in a sample, on average and at most.

    A bin that is calibrated in truth has a gap of E|X| = √(2/π) standard errors by chance; one whose gap is more than
    two standard errors is taken for truly off, where this bias is nearly 0. The errors are those of the gap a token.
    """
    gap_M = gap_WM.sum(0)
    error_M = (gap_WM - tokens_W[:, None] * gap_M / tokens_W.sum()).std(0) * math.sqrt(len(gap_WM))
    return math.sqrt(2 / math.pi) * float(error_M[np.abs(gap_M) <= 2 * error_M].sum())


def _resamples(num_windows: int, gates: PromotionConfig) -> Iterator[np.ndarray]:
    """How often each window is in a resample, [r, W], until there are `gates.resamples` of them."""
    random = np.random.default_rng(gates.seed)
    at_once = max(1, _DRAWS_AT_ONCE // num_windows)
    for start in range(0, gates.resamples, at_once):
        rows = min(at_once, gates.resamples - start)
        drawn = random.integers(num_windows, size=(rows, num_windows)) + num_windows * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _row(
    metric: str,
    champion: Measured | None,
    challenger: Measured,
    interval: tuple[float, float] | None,
    gates: PromotionConfig,
) -> LedgerRow:
    new = challenger.values.metric(metric)
    old = math.nan if champion is None else champion.values.metric(metric)
    low, high = interval or (None, None)
    return LedgerRow(
        metric=metric,
        champion=old if math.isfinite(old) else None,
        challenger=new if math.isfinite(new) else None,
        difference=None if interval is None else new - old,
        low=low,
        high=high,
        margin=_margin(metric, gates),
        verdict=_verdict(metric, new, interval, gates, alone=champion is None),
    )


def _verdict(
    metric: str, value: float, interval: tuple[float, float] | None, gates: PromotionConfig, *, alone: bool
) -> MetricVerdict:
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    floor, margin = getattr(gates.floors, metric), getattr(gates.margins, metric)
    if not math.isfinite(value):
        return "not finite"
    if floor is not None and sign * value > sign * floor:
        return "floor missed"
    if alone:
        return "not guarded" if floor is None else "floor held"
    if interval is None:
        return "not compared"
    least, most = sorted(sign * end for end in interval)  # how much worse it is
    if margin is not None and least > margin:
        return "worse"
    if gates.improve is not None and gates.improve.metric == metric:
        return "better" if -most > gates.improve.margin else "not better"
    if margin is None:
        return "not guarded"
    return "not worse" if most <= margin else "unclear"


def _margin(metric: str, gates: PromotionConfig) -> float | None:
    improve = gates.improve
    return improve.margin if improve is not None and improve.metric == metric else getattr(gates.margins, metric)


def _explanation(row: LedgerRow, gates: PromotionConfig) -> str:
    """Why a metric has the verdict that it has."""
    metric, verdict = row["metric"], row["verdict"]
    if verdict == "not finite":
        return f"{metric} is not finite"
    if verdict == "floor missed":
        return f"{metric} {row['challenger']:.4g} misses its floor of {getattr(gates.floors, metric):g}"
    found = f"{row['difference']:+.3g}, {gates.confidence:.4g} interval {row['low']:+.3g} to {row['high']:+.3g}"
    if verdict in ("better", "not better"):
        shown = "is" if verdict == "better" else "is not shown to be"
        return f"{metric} {shown} better by more than {row['margin']:g}: {found}"
    said = {"worse": "is", "unclear": "may be"}[verdict]
    return f"{metric} {said} worse than its margin of {getattr(gates.margins, metric):g} allows: {found}"


def _why_promoted(ledger: tuple[LedgerRow, ...], champion: Measured | None, gates: PromotionConfig) -> str:
    floors = [metric for metric, floor in gates.floors if floor is not None]
    reasons = [] if champion is not None else ["there is no champion"]
    if floors:
        reasons.append(f"every floor holds ({', '.join(floors)})")
    elif champion is None:
        reasons.append("no floor is set")
    reasons += [_explanation(row, gates) for row in ledger if row["verdict"] == "better"]
    if guarded := [row["metric"] for row in ledger if row["verdict"] == "not worse"]:
        reasons.append(f"{', '.join(guarded)} no worse than allowed")
    return "; ".join(reasons)
