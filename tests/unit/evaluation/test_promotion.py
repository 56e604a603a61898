import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from rskd.config import PromotionConfig
from rskd.evaluation.promotion import MIN_WINDOWS, Decision, Measured, decide
from rskd.evaluation.window_values import METRICS, WindowValues

NUM_WINDOWS, TOKENS = 64, 1000
LM_LOSS = {"margins": {"lm_loss": 0.25, "kl_to_teacher": None, "acceptance": None, "ece": None}}


def measured(num_windows: int = NUM_WINDOWS, gap: float = 0.0, **changes) -> Measured:
    """A model with the same values on every window; half of its predictions are sure of 0.5 and `gap` more."""
    means = {"lm_loss": 3.0, "top1_agreement": 0.5, "acceptance": 0.625, "kl_to_teacher": 0.25}
    count = np.full((num_windows, 2), TOKENS // 2)
    values = WindowValues(
        window=np.arange(num_windows),
        means={metric: np.full(num_windows, 0.0) + changes.pop(metric, value) for metric, value in means.items()},
        count=count,
        confidence=count * np.array([0.5 + gap, 0.75]),
        correct=count * np.array([0.5, 0.75]),
    )
    return replace(Measured("tokenizer", "teacher", "held-out", values), **changes)


def noise(scale: float, num_windows: int = NUM_WINDOWS) -> np.ndarray:
    """Noise whose mean is 0 but for rounding."""
    values = np.random.default_rng(3).normal(scale=scale, size=num_windows)
    return values - values.mean()


def gates(**sections) -> PromotionConfig:
    return PromotionConfig.model_validate({"resamples": 1000} | sections)


def row(decision: Decision, metric: str) -> dict:
    [found] = [row for row in decision.ledger if row["metric"] == metric]
    return dict(found)


def test_the_same_model_is_no_worse_with_intervals_of_no_width():
    decision = decide(measured(), measured(), gates())
    assert (decision.verdict, decision.reason) == (
        "PROMOTE",
        "lm_loss, ece, acceptance, kl_to_teacher no worse than allowed",
    )
    assert [row["metric"] for row in decision.ledger] == list(METRICS)
    assert row(decision, "lm_loss") == {
        "metric": "lm_loss",
        "champion": 3.0,
        "challenger": 3.0,
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "margin": 0.02,
        "verdict": "not worse",
    }
    assert row(decision, "ece")["verdict"] == "not worse"
    assert row(decision, "top1_agreement")["verdict"] == "not guarded"
    json.dumps(asdict(decision), allow_nan=False)


@pytest.mark.parametrize(("margin", "verdict"), [(0.25, "PROMOTE"), (0.2, "REJECT"), (0.0, "REJECT")])
def test_a_constant_difference_is_allowed_up_to_its_margin(margin: float, verdict: str):
    worse = measured(lm_loss=3.25)
    assert decide(measured(), worse, gates(margins={"lm_loss": margin})).verdict == verdict


@pytest.mark.parametrize("metric", ["lm_loss", "kl_to_teacher", "acceptance", "top1_agreement"])
def test_worse_is_up_for_losses_and_down_for_agreement(metric: str):
    step = -0.125 if metric in ("acceptance", "top1_agreement") else 0.125
    champion, value = measured(), measured().values.metric(metric)
    only = gates(margins=dict.fromkeys(METRICS) | {metric: 0.0625})
    worse = decide(champion, measured(**{metric: value + step}), only)
    assert (worse.verdict, row(worse, metric)["verdict"]) == ("REJECT", "worse")
    assert row(worse, metric)["difference"] == step
    assert f"{metric} is worse than its margin of 0.0625 allows: {step:+.3g}" in worse.reason
    assert decide(champion, measured(**{metric: value - step}), only).verdict == "PROMOTE"


def test_an_interval_across_the_margin_is_held():
    decision = decide(measured(), measured(lm_loss=3.25 + noise(0.5)), gates(**LM_LOSS))
    found = row(decision, "lm_loss")
    assert (decision.verdict, found["verdict"]) == ("HOLD", "unclear")
    assert "lm_loss may be worse than its margin of 0.25 allows: +0.25, 0.95 interval +0.1" in decision.reason
    # Student's t: 1.998 standard errors to either side
    half = 1.998 * noise(0.5).std(ddof=1) / NUM_WINDOWS**0.5
    assert (found["low"], found["high"]) == pytest.approx((0.25 - half, 0.25 + half), abs=0.1 * half)


def test_a_higher_confidence_widens_the_interval():
    challenger = measured(lm_loss=3.0 + noise(0.5))
    narrow, wide = (
        row(decide(measured(), challenger, gates(confidence=level, resamples=10_000, **LM_LOSS)), "lm_loss")
        for level in (0.8, 0.99)
    )
    assert wide["low"] < narrow["low"] < 0 < narrow["high"] < wide["high"]


def test_windows_with_more_tokens_count_for_more():
    """Half of the windows have three times the tokens of the others."""
    tokens = np.where(np.arange(NUM_WINDOWS) % 2, 3 * TOKENS, TOKENS)
    losses = np.where(np.arange(NUM_WINDOWS) % 2, 4.0, 2.0)
    model = measured(lm_loss=losses)
    model = replace(model, values=replace(model.values, count=np.stack([tokens, 0 * tokens], axis=1)))
    assert row(decide(None, model, gates()), "lm_loss")["challenger"] == 3.5


def test_what_has_to_improve_is_held_until_it_is_shown():
    improve = gates(improve={"metric": "acceptance", "margin": 0.03125}, **LM_LOSS)
    for gain, verdict, said in [
        (0.0, "HOLD", "acceptance is not shown to be better by more than 0.03125: +0"),
        (0.03125, "HOLD", "acceptance is not shown to be better by more than 0.03125: +0.0312"),
        (0.0625, "PROMOTE", "acceptance is better by more than 0.03125: +0.0625"),
    ]:
        decision = decide(measured(), measured(acceptance=0.625 + gain), improve)
        assert decision.verdict == verdict
        assert said in decision.reason
        assert row(decision, "acceptance")["margin"] == 0.03125
    unsure = decide(measured(), measured(acceptance=0.6875 + noise(0.2)), improve)
    assert (unsure.verdict, row(unsure, "acceptance")["verdict"]) == ("HOLD", "not better")
    both = gates(improve={"metric": "lm_loss", "margin": 0.01}, **LM_LOSS)
    assert decide(measured(), measured(lm_loss=3.5), both).verdict == "REJECT"


def test_the_worst_verdict_of_a_metric_wins_and_all_of_its_kind_are_named():
    decision = decide(measured(), measured(lm_loss=3.5, acceptance=0.5, kl_to_teacher=0.25 + noise(0.5)), gates())
    assert decision.verdict == "REJECT"
    assert "lm_loss is worse" in decision.reason
    assert "; acceptance is worse" in decision.reason
    assert "kl_to_teacher" not in decision.reason
    assert row(decision, "kl_to_teacher")["verdict"] == "unclear"


@pytest.mark.parametrize(
    ("floors", "metric", "value"),
    [({"lm_loss": 2.5}, "lm_loss", "3"), ({"acceptance": 0.7}, "acceptance", "0.625"), ({"ece": 0.01}, "ece", "0.05")],
)
def test_a_missed_floor_rejects_also_a_better_challenger(floors: dict, metric: str, value: str):
    for champion in (None, measured(lm_loss=9.0, acceptance=0.125, gap=0.5), measured(tokenizer="other")):
        decision = decide(champion, measured(gap=0.1), gates(floors=floors))
        assert decision.verdict == "REJECT"
        assert decision.reason == f"{metric} {value} misses its floor of {floors[metric]:g}"
        assert row(decision, metric)["verdict"] == "floor missed"


def test_without_a_champion_the_floors_alone_count():
    decision = decide(None, measured(1), gates(floors={"lm_loss": 3.0, "acceptance": 0.625}))
    assert (decision.verdict, decision.reason) == (
        "PROMOTE",
        "there is no champion; every floor holds (lm_loss, acceptance)",
    )
    found = row(decision, "lm_loss")
    assert (found["verdict"], found["champion"], found["difference"]) == ("floor held", None, None)
    assert decide(None, measured(), gates()).reason == "there is no champion; no floor is set"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ["lm_loss", "top1_agreement"])  # a guarded one, and one that is not
def test_a_value_that_is_not_finite_never_passes(metric: str, wrong: float):
    values = np.full(NUM_WINDOWS, 0.5)
    values[7] = wrong
    broken = measured(**{metric: values})
    for champion in (None, measured()):
        decision = decide(champion, broken, gates())
        assert (decision.verdict, decision.reason) == ("REJECT", f"{metric} is not finite")
        json.dumps(asdict(decision), allow_nan=False)
    held = decide(broken, measured(), gates())
    assert held.verdict == "HOLD"
    assert held.reason == f"{metric} of the champion is not finite: evaluate it again, or roll it back"
    json.dumps(asdict(held), allow_nan=False)


def test_confidence_that_is_not_finite_is_a_wrong_ece():
    model = measured()
    model.values.confidence[3, 0] = np.nan
    assert decide(measured(), model, gates()).reason == "ece is not finite"


def test_no_windows_are_rejected():
    decision = decide(None, measured(0), gates())
    assert decision.verdict == "REJECT"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"tokenizer": "other"}, "another tokenizer than the champion's: tokenizer, not other"),
        ({"teacher": "other"}, "another teacher than the champion's"),
        ({"held_out": "other"}, "another held-out set than the champion's"),
        ({"num_windows": 63}, r"other windows than the champion's \(64, not 63"),
    ],
)
def test_what_cannot_be_compared_is_held(other: dict, named: str):
    decision = decide(measured(lm_loss=9.0, **other), measured(), gates())
    assert decision.verdict == "HOLD"
    assert re.match(named, decision.reason)
    assert {row["verdict"] for row in decision.ledger} == {"not compared"}
    assert row(decision, "lm_loss")["champion"] == 9.0


def test_other_windows_tokens_and_bins_are_held():
    model = measured()
    shifted = replace(model, values=replace(model.values, window=model.values.window + 1))
    longer = replace(model, values=replace(model.values, count=model.values.count + 1))
    for other in (shifted, longer):
        assert decide(other, model, gates()).reason.startswith("other windows than the champion's")
    empty = np.zeros((NUM_WINDOWS, 1))
    wider = {name: np.hstack([getattr(model.values, name), empty]) for name in ("count", "confidence", "correct")}
    bins = decide(replace(model, values=replace(model.values, **wider)), model, gates())
    assert (bins.verdict, bins.reason) == (
        "HOLD",
        "the ECE has 2 bins, the champion's 3: evaluate both with the same",
    )


@pytest.mark.parametrize("num_windows", [1, 2, MIN_WINDOWS - 1])
def test_few_windows_say_nothing(num_windows: int):
    decision = decide(measured(num_windows), measured(num_windows, lm_loss=2.0), gates())
    assert decision.verdict == "HOLD"
    assert decision.reason == f"{num_windows} held-out windows, of 20 needed at least: raise corpus.eval_windows"


def test_the_decision_repeats_whatever_the_memory(monkeypatch: pytest.MonkeyPatch):
    challenger = measured(lm_loss=3.0 + noise(0.1), gap=0.01)
    whole = decide(measured(), challenger, gates())
    assert decide(measured(), challenger, gates()) == whole
    assert decide(measured(), challenger, gates(seed=1)) != whole
    monkeypatch.setattr("rskd.evaluation.promotion._DRAWS_AT_ONCE", 7 * NUM_WINDOWS)
    for mine, theirs in zip(decide(measured(), challenger, gates()).ledger, whole.ledger, strict=True):
        assert mine["low"] == pytest.approx(theirs["low"])


def test_windows_weigh_by_their_tokens_and_those_without_any_count_for_nothing():
    """A masked held-out set: the same decision as on the windows that have tokens alone, and never a NaN."""
    tokens = np.random.default_rng(0).integers(1, 200, NUM_WINDOWS)
    extra = np.arange(NUM_WINDOWS) % 4 == 0

    def model(difference: float, *, empty: bool) -> Measured:
        kept = np.ones(NUM_WINDOWS, bool) if empty else ~extra
        counted = np.where(extra, 0, tokens)[kept]
        count = np.stack([counted, counted], axis=1)
        means = {"lm_loss": 3.0, "top1_agreement": 0.5, "acceptance": 0.625, "kl_to_teacher": 0.25}
        values = WindowValues(
            window=np.arange(NUM_WINDOWS)[kept],
            means={name: np.where(counted > 0, value + difference * counted / 100, 0) for name, value in means.items()},
            count=count,
            confidence=count * np.array([0.5, 0.75]) + noise(1.0)[kept, None] * (count > 0),
            correct=count * np.array([0.5, 0.75]),
        )
        return Measured("tokenizer", "teacher", "held-out", values)

    with_empty = decide(model(0, empty=True), model(-0.1, empty=True), gates())
    without = decide(model(0, empty=False), model(-0.1, empty=False), gates())
    assert (with_empty.verdict, with_empty.reason) == (without.verdict, without.reason)
    for mine, wanted in zip(with_empty.ledger, without.ledger, strict=True):
        assert dict(mine) == pytest.approx(dict(wanted), abs=1e-12)
    found, counted = row(with_empty, "lm_loss"), tokens[~extra]
    assert found["difference"] == pytest.approx(-0.1 * (counted**2).sum() / counted.sum() / 100)
    assert found["low"] < found["difference"] < found["high"] < 0


def test_too_few_windows_with_tokens_hold():
    few = measured()
    count = np.where(np.arange(NUM_WINDOWS)[:, None] < MIN_WINDOWS - 1, few.values.count, 0)
    few = replace(few, values=replace(few.values, count=count))
    decision = decide(few, few, gates())
    assert decision.verdict == "HOLD"
    assert f"{MIN_WINDOWS - 1} held-out windows, of {MIN_WINDOWS} needed" in decision.reason
