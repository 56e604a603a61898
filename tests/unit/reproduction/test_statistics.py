import math

import numpy as np
import pytest

from rskd.reproduction.statistics import interval, over_seeds, paired_interval


def test_mean_and_standard_error_over_seeds():
    estimate = over_seeds([1.0, 2.0, 6.0])
    assert estimate.mean == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert over_seeds([1.5]).standard_error is None


def test_interval_of_three_seeds_is_students():
    found = interval([1.0, 2.0, 6.0])
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(7 / 3))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize(("of_seed", "of_window"), [(0.0, 1.0), (1.0, 0.0), (0.5, 1.0)])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(of_seed: float, of_window: float):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        truth = 0.3 + of_seed * rng.normal(size=(3, 1)) + of_window * rng.normal(size=40) + rng.normal(size=(3, 40))
        level = rng.normal(size=(1, 40))  # of a window, which both methods share
        found = paired_interval(truth + level, level + np.zeros((3, 40)))
        covered += found.low <= 0.3 <= found.high
    assert covered > 1000 * 0.93  # 0.95 less 3 standard errors; conservative where only windows differ
