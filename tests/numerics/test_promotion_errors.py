"""How often the gate errs: simulated pairs of models, of which the truth is known.

A window is hard or easy for both models alike; on top, their difference has heavy-tailed noise that the metrics share,
of 0.05 nats a window. Tokens fall into bins of the confidence, and are right with a
probability that is off by a known gap, and shifts from window to window. Run as a
program, this file prints the rates.

Shapes: W windows, M bins.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from rskd.config import PromotionConfig
from rskd.evaluation.promotion import HIGHER_IS_BETTER, Decision, Measured, decide
from rskd.evaluation.window_values import MEANS, METRICS, WindowValues

TOKENS, MIDDLES = 256, (np.arange(15) + 0.5) / 15
SHARES = np.array([2, 6, 8, 8, 7, 7, 6, 6, 6, 6, 6, 7, 8, 9, 18]) / 110  # of the tokens, by bin
HUMP = MIDDLES * (1 - MIDDLES)
TYPICAL = {"lm_loss": 3.0, "top1_agreement": 0.6, "acceptance": 0.6, "kl_to_teacher": 0.5}
NOISE = {"lm_loss": 0.05, "top1_agreement": 0.04, "acceptance": 0.02, "kl_to_teacher": 0.05}  # of a window's difference
MARGINS = {"lm_loss": 0.02, "kl_to_teacher": 0.02, "acceptance": 0.01, "ece": 0.01}  # the defaults
ECE = 0.03  # of the champion
CASES = 500


def pairs(
    num_cases: int, num_windows: int, worse: dict[str, float], ece: float = ECE
) -> Iterator[tuple[Measured, Measured]]:
    """Champion and challenger; the challenger is truly worse by `worse`, and else as good."""
    rng = np.random.default_rng(num_windows)
    for _ in range(num_cases):
        hard, shared = rng.normal(size=num_windows), rng.standard_t(5, num_windows)
        shift = rng.uniform(-1, 1, num_windows)
        means, changed = {}, {}
        for metric in MEANS:
            noise = np.sqrt(3 / 5) * (0.8 * shared + 0.6 * rng.standard_t(5, num_windows))  # of variance 1
            sign = -1 if metric in HIGHER_IS_BETTER else 1
            means[metric] = TYPICAL[metric] * (1 + 0.15 * hard)
            changed[metric] = means[metric] + sign * worse.get(metric, 0.0) + NOISE[metric] * noise
        yield (
            measured(means, *bins(rng, ece, shift)),
            measured(changed, *bins(rng, ece + worse.get("ece", 0.0), shift)),
        )


def bins(rng: np.random.Generator, ece: float, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count and correct [W, M] of a model whose true calibration error is `ece`."""
    own = 0.8 * shift + 0.2 * rng.uniform(-1, 1, len(shift))
    right = MIDDLES - ece * HUMP / (SHARES @ HUMP) + 0.3 * HUMP * own[:, None]
    count = rng.multinomial(TOKENS, SHARES, size=len(shift))
    return count, rng.binomial(count, right)


def measured(means: dict[str, np.ndarray], count: np.ndarray, correct: np.ndarray) -> Measured:
    values = WindowValues(np.arange(len(count)), means, count, count * MIDDLES, correct)
    return Measured("tokenizer", "teacher", "held-out", values)


def decisions(gates: PromotionConfig, **options) -> list[Decision]:
    return [decide(champion, challenger, gates) for champion, challenger in pairs(**options)]


def gates(**sections) -> PromotionConfig:
    return PromotionConfig.model_validate({"resamples": 1000, **sections})


def rate(found: list[Decision]) -> float:
    """The share that is promoted. A gate that errs in 8% of all cases shows 5% of 500 once in a hundred runs."""
    return sum(decision.verdict == "PROMOTE" for decision in found) / len(found)


def copies_taken_for_better(metric: str, num_cases: int = CASES) -> float:
    """The challenger is as good as the champion, and everything but the metric to improve lets it pass."""
    wanted = gates(improve={"metric": metric, "margin": 1e-6}, margins=dict.fromkeys(METRICS))
    return rate(decisions(wanted, num_cases=num_cases, num_windows=128, worse={}))


def worse_promoted(metric: str, margins: float, num_cases: int = CASES, **options) -> float:
    """The challenger is worse by so many margins in one metric, which alone is guarded."""
    guarded = gates(margins=dict.fromkeys(METRICS) | {metric: MARGINS[metric]})
    worse = {metric: margins * MARGINS[metric]}
    return rate(decisions(guarded, num_cases=num_cases, worse=worse, **{"num_windows": 128} | options))


def missed(num_cases: int = CASES, **options) -> dict[str, tuple[float, float]]:
    """How often the interval lies above, and below, the true difference of an equal challenger: 0."""
    found = [decision.ledger for decision in decisions(gates(), num_cases=num_cases, worse={}, **options)]
    ends = {metric: [(row["low"], row["high"]) for row in rows] for metric, *rows in zip(METRICS, *found, strict=True)}
    return {
        metric: (float(np.mean([low > 0 for low, _ in of])), float(np.mean([high < 0 for _, high in of])))
        for metric, of in ends.items()
    }


@pytest.mark.parametrize("metric", ["lm_loss", "ece"])
def test_a_copy_with_noise_is_hardly_ever_taken_for_better(metric: str):
    assert copies_taken_for_better(metric) <= 0.05


@pytest.mark.parametrize(("metric", "ece"), [("lm_loss", ECE), ("ece", ECE), ("ece", 0.0)])
def test_a_challenger_worse_by_its_margin_hardly_ever_passes(metric: str, ece: float):
    assert worse_promoted(metric, 1, ece=ece) <= 0.05


@pytest.mark.parametrize(("metric", "ece"), [("acceptance", ECE), ("ece", 0.0)])
def test_a_challenger_worse_by_two_margins_never_passes(metric: str, ece: float):
    assert worse_promoted(metric, 2, num_cases=200, ece=ece) == 0


def test_an_equal_challenger_passes_with_windows_enough():
    assert rate(decisions(gates(), num_cases=60, num_windows=512, worse={})) >= 0.9


def test_intervals_hold_the_truth_as_often_as_they_say():
    for metric, (above, below) in missed(num_windows=64).items():
        assert above + below <= 0.08, metric
        assert metric == "ece" or above + below >= 0.02, metric  # that of the ECE is too wide rather than too narrow


if __name__ == "__main__":
    for name in METRICS:
        print("copy taken for better:", name, copies_taken_for_better(name), flush=True)
    for name, ece in [*((name, ECE) for name in MARGINS), ("ece", 0.0)]:
        rates = [worse_promoted(name, margins, ece=ece) for margins in (1, 2)]
        print(f"worse by one margin, by two, champion's ece {ece}:", name, rates, flush=True)
    for windows in (32, 64, 128, 256, 512):
        found = decisions(gates(), num_cases=100, num_windows=windows, worse={})
        print("equal challenger promoted:", windows, rate(found), flush=True)
    for windows in (20, 64, 128):
        print("interval above and below the truth:", windows, missed(num_windows=windows), flush=True)
