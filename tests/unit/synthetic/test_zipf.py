"""The statistics of effective targets, against what is known of p."""

import pytest
import torch

from rskd.synthetic.methods import Method
from rskd.synthetic.zipf import Estimate, effective_targets, estimate, zipf_log_probs, zipf_methods
from rskd.teacher.sampling import Sampling

V, K, N, ROUNDS = 1000, 5, 12, 2000
P = zipf_log_probs(V).exp()
METHODS = zipf_methods(k=K, num_samples=N, seed=3)


@pytest.fixture(scope="module")
def estimates() -> dict[str, Estimate]:
    return {name: estimate(zipf_log_probs(V), method, k=K, rounds=ROUNDS) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", ["random", "systematic"])
def test_a_sampler_is_unbiased_within_its_standard_error(estimates: dict[str, Estimate], name: str):
    found = estimates[name]
    for mean in (found.top1_bias, found.head_bias, found.bias_squared):
        assert abs(mean.value) < 4 * mean.error
    assert found.head_bias.error < 0.005  # so that the bias of top-k, 0.7, could not hide in it


@pytest.mark.parametrize("name", ["top_k", "top_k + naive fix"])
def test_top_k_and_the_naive_fix_scale_the_head_up(estimates: dict[str, Estimate], name: str):
    found = estimates[name]
    assert found.top1_bias.value > 5 * found.top1_bias.error
    assert found.head_bias.value > 0.1
    assert found.bias_squared.value > 5 * found.bias_squared.error


def test_top_k_has_the_bias_of_the_papers_closed_form(estimates: dict[str, Estimate]):
    mass = P[:K].sum()  # paper, A.3 and A.4: targets t_i / Σ_K t
    assert estimates["top_k"].top1_bias.value == pytest.approx(float(P[0] / mass - P[0]), abs=1e-6)
    assert estimates["top_k"].head_bias.value == pytest.approx(float(1 - mass), abs=1e-6)
    assert estimates["top_k"].variance.value == 0


def test_the_naive_fix_has_its_expectation(estimates: dict[str, Estimate]):
    rest = float(1 - P[:K].sum())  # E = t_i + rest · p_i within the top k
    bias = estimates["top_k + naive fix"].head_bias
    assert bias.value == pytest.approx(rest * (1 - rest), abs=4 * bias.error)


def test_random_sampling_has_the_variance_of_a_multinomial(estimates: dict[str, Estimate]):
    expected = float((P * (1 - P)).sum()) / N
    variance = estimates["random"].variance
    assert variance.value == pytest.approx(expected, abs=4 * variance.error)
    assert variance.error < 0.02 * expected


def test_systematic_sampling_varies_less(estimates: dict[str, Estimate]):
    fraction = N * P - (N * P).floor()
    expected = float((fraction * (1 - fraction)).sum()) / N**2
    variance, random = estimates["systematic"].variance, estimates["random"].variance
    assert variance.value == pytest.approx(expected, abs=4 * variance.error)
    assert variance.value < random.value - 5 * (variance.error + random.error)


def test_error_is_bias_and_variance(estimates: dict[str, Estimate]):
    for found in estimates.values():
        sum_of_both = found.bias_squared.value + found.variance.value
        assert found.squared_error.value == pytest.approx(sum_of_both, abs=4 * found.bias_squared.error + 1e-6)


def test_smoothing_spreads_the_rest_over_all_ids():
    _, targets = effective_targets(zipf_log_probs(V), METHODS["top_k + smoothing"], torch.arange(2))
    rest = 1 - P[:K].sum()
    torch.testing.assert_close(targets[0, K:], torch.full((V - K,), float(rest) / V))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_rounds_are_drawn_apart_and_repeat():
    method = Method("sparse_kd", Sampling("random", num_samples=N, seed=1))
    _, first = effective_targets(zipf_log_probs(V), method, torch.arange(2))
    _, again = effective_targets(zipf_log_probs(V), method, torch.arange(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
