"""Means over seeds with standard errors, and the difference of two methods, paired by seed and window.

Shapes: R seeds, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; None where one seed says nothing of it."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% confidence interval."""

    mean: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value a seed."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error)


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of two or more values, one a seed, by Student's t."""
    mean, half = float(np.mean(values)), _half_width(float(np.var(values, ddof=1)) / len(values), len(values))
    return Interval(mean, mean - half, mean + half)


def paired_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """Of the mean of `first - second`, window means [R >= 2, W >= 2] of two methods at the same seeds and windows.

    Seeds and windows are both samples, crossed, so that their half widths add in squares. What is left of the variance
    is in both; it is taken out of the seeds' once.
    """
    difference = first - second
    num_seeds, num_windows = difference.shape
    by_seed, by_window, mean = difference.mean(1, keepdims=True), difference.mean(0, keepdims=True), difference.mean()
    rest = ((difference - by_seed - by_window + mean) ** 2).sum() / ((num_seeds - 1) * (num_windows - 1))
    of_seeds = max(0.0, by_seed.var(ddof=1) / num_seeds - rest / (num_seeds * num_windows))
    of_windows = by_window.var(ddof=1) / num_windows
    half = math.hypot(_half_width(of_seeds, num_seeds), _half_width(of_windows, num_windows))
    return Interval(float(mean), float(mean - half), float(mean + half))


def _half_width(variance: float, num_samples: int) -> float:
    return float(student_t.ppf(0.975, num_samples - 1)) * math.sqrt(variance)
