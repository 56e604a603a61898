"""The paper's claims, tested on our students: what was measured, the bound stated beforehand, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rskd.reproduction.cells import Records
from rskd.reproduction.methods import MISALIGNED, OURS
from rskd.reproduction.statistics import Interval, interval, paired_interval

LOSS_MARGIN = 0.1  # of the gap in loss between CE and full KD: nearer than that counts as equal
ECE_MARGIN = 0.5  # percent


@dataclass(frozen=True)
class Claim:
    text: str
    measured: str
    bound: str
    holds: bool


def checked_claims(records: Records) -> list[Claim]:
    """Those claims whose students share two or more seeds."""
    seeds = {method: _converged(records, method) for method, _ in records}
    found = []
    for claim in (_calibration_of_top_k, _equal_loss, _equal_calibration, _systematic, _acceptance, _alignment):
        try:
            found += list(claim(seeds))
        except _NotMeasuredError:
            continue
    return found


class _NotMeasuredError(Exception):
    """A claim's students are not there, or not at enough seeds."""


Seeds = Mapping[str, Mapping[int, Mapping[str, Any]]]


def _converged(records: Records, method: str) -> dict[int, Mapping[str, Any]]:
    return {seed: record for (name, seed), record in records.items() if name == method and "metrics" in record}


def _shared_seeds(seeds: Seeds, *methods: str) -> list[int]:
    shared = set.intersection(*(set(seeds.get(method, {})) for method in methods))
    if len(shared) < 2:
        raise _NotMeasuredError
    return sorted(shared)


def _windows(seeds: Seeds, method: str, metric: str, shared: list[int]) -> np.ndarray:
    return np.array([seeds[method][seed]["windows"][metric] for seed in shared])


def _difference(seeds: Seeds, first: str, second: str, metric: str) -> Interval:
    """`first` less `second`, paired by seed and, but for ECE, by window."""
    shared = _shared_seeds(seeds, first, second)
    if metric == "ece":
        values = [seeds[first][seed]["metrics"]["ece"] - seeds[second][seed]["metrics"]["ece"] for seed in shared]
        return interval([100 * value for value in values])
    return paired_interval(*(_windows(seeds, method, metric, shared) for method in (first, second)))


def _calibration_of_top_k(seeds: Seeds) -> Iterator[Claim]:
    ks = sorted(int(method.removeprefix("top_k-")) for method in seeds if method.startswith("top_k-"))
    if len(ks) < 2:
        raise _NotMeasuredError
    shared = _shared_seeds(seeds, *(f"top_k-{k}" for k in ks))
    means = [float(np.mean([seeds[f"top_k-{k}"][seed]["metrics"]["ece"] for seed in shared])) for k in ks]
    shown = ", ".join(f"K={k}: {100 * mean:.1f}" for k, mean in zip(ks, means))
    falls = all(later < earlier for earlier, later in pairwise(means))
    yield Claim("ECE of top-k falls with K (Table 1)", shown, "each below the one before", falls)
    found = _difference(seeds, "top_k-12", "full_kd", "ece")
    yield Claim("ECE of top-k 12 is above full KD's (Table 1)", _shown(found, "%"), "interval above 0", found.low > 0)


def _equal_loss(seeds: Seeds) -> Iterator[Claim]:
    margin = LOSS_MARGIN * abs(_difference(seeds, "ce", "full_kd", "lm_loss").mean)
    for method in (OURS, "systematic-12"):
        if len(seeds.get(method, {})) > 1:
            found = _difference(seeds, method, "full_kd", "lm_loss")
            bound = f"interval within ±{margin:.4f} (a tenth of the gap from CE to full KD)"
            holds = -margin < found.low and found.high < margin
            yield Claim(f"LM loss of {method} equals full KD's (Table 5)", _shown(found, "nats", 4), bound, holds)


def _equal_calibration(seeds: Seeds) -> Iterator[Claim]:
    found = _difference(seeds, OURS, "full_kd", "ece")
    holds = found.low > -ECE_MARGIN and found.high < ECE_MARGIN
    yield Claim(
        f"ECE of {OURS} equals full KD's (Table 5)", _shown(found, "%"), f"interval within ±{ECE_MARGIN}%", holds
    )


def _systematic(seeds: Seeds) -> Iterator[Claim]:
    for unique in ("2.4", "5", "12", "24.5"):
        if min(len(seeds.get(f"{method}-{unique}", {})) for method in ("systematic", "random")) > 1:
            found = _difference(seeds, f"systematic-{unique}", f"random-{unique}", "lm_loss")
            text = f"systematic is no worse than random at {unique} unique tokens"
            yield Claim(text, _shown(found, "nats", 4), "interval not above 0", found.low <= 0)


def _acceptance(seeds: Seeds) -> Iterator[Claim]:
    order = ("ce", "top_k-12", OURS, "full_kd")
    shared = _shared_seeds(seeds, *order)
    means = [100 * _windows(seeds, method, "acceptance", shared).mean() for method in order]
    shown = ", ".join(f"{method} {mean:.2f}" for method, mean in zip(order, means))
    rises = all(lower < higher for lower, higher in pairwise(means))
    yield Claim("acceptance rises from CE over top-k 12 and sampled to full KD", shown, "in this order", rises)


def _alignment(seeds: Seeds) -> Iterator[Claim]:
    found = _difference(seeds, MISALIGNED, OURS, "lm_loss")
    text = "LM loss is higher where teacher and student read different contexts (Table 13)"
    yield Claim(text, _shown(found, "nats", 4), "interval above 0", found.low > 0)


def _shown(found: Interval, unit: str, digits: int = 2) -> str:
    return f"{found.mean:+.{digits}f} {unit}, [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
