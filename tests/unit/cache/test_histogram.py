import numpy as np
import pytest

from rskd.cache.histogram import add_up, grouped, histogram, percentile


def test_a_bin_for_each_number_of_unique_tokens():
    assert histogram("num_unique", np.array([1, 3, 3, 0])) == {"low": 0.0, "width": 1.0, "counts": [1, 1, 0, 2]}


def test_top1_has_no_histogram():
    assert histogram("top1", np.array([5, 7])) is None


def test_histograms_of_parts_add_up():
    values = np.random.default_rng(0).exponential(2, 1000)
    parts = [{"entropy": histogram("entropy", part)} for part in np.split(values, [100, 400])]
    assert add_up(parts) == {"entropy": histogram("entropy", values)}


@pytest.mark.parametrize("name", ["num_unique", "entropy", "label_logprob"])
def test_grouping_keeps_every_value_where_it_is(name):
    values = np.random.default_rng(0).gamma(4, 1, 1000)
    values = np.rint(values) if name == "num_unique" else -values if name == "label_logprob" else values
    found = histogram(name, values)
    assert found is not None
    fewer = grouped(found, 24)
    edges = fewer["low"] + fewer["width"] * np.arange(len(fewer["counts"]) + 1)
    assert 8 <= len(fewer["counts"]) <= 24
    assert fewer["counts"] == np.histogram(values, edges)[0].tolist()
    assert fewer["counts"][0] > 0
    assert fewer["counts"][-1] > 0


def test_grouping_what_holds_nothing():
    assert grouped({"low": 0.0, "width": 1.0, "counts": [0, 0]}, 24)["counts"] == []


@pytest.mark.parametrize("percent", [5, 50, 95])
def test_percentile_is_that_of_the_values_to_a_bin(percent):
    values = -np.random.default_rng(0).exponential(2, 10_000)
    found = histogram("label_logprob", values)
    assert found is not None
    assert percentile(found, percent) == pytest.approx(np.percentile(values, percent), abs=1 / 16)


def test_values_beyond_the_ends_are_in_the_outer_bins():
    found = histogram("label_logprob", np.array([-100.0, -np.inf, 0.0]))
    assert found is not None
    assert (found["counts"][0], found["counts"][-1], sum(found["counts"])) == (2, 1, 3)
