"""Expected unique tokens against what the samplers draw, and the power law through them."""

from typing import Literal

import pytest
import torch

from rskd.evaluation.unique_tokens import PowerLaw, expected_unique_tokens, rounds_against_unique_tokens
from rskd.teacher.sampling import sample_targets


@pytest.mark.parametrize("rounds", [1, 7, 40])
@pytest.mark.parametrize(
    ("method", "temperature"), [("random", 1.0), ("random", 0.7), ("random", 0.0), ("systematic", 1.0)]
)
def test_is_the_mean_of_what_is_drawn(method: Literal["random", "systematic"], temperature: float, rounds: int):
    logits = 2 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 40:] = -torch.inf
    expected = expected_unique_tokens(logits, rounds, method=method, temperature=temperature)
    many = logits.repeat_interleave(1000, 0)
    drawn = sample_targets(many, method=method, num_samples=rounds, temperature=temperature).num_unique
    drawn = drawn.view(3, 1000).float()
    error = drawn.std(1) / 1000**0.5
    assert ((drawn.mean(1) - expected).abs() <= 4 * error + 1e-4).all()


def test_one_round_gives_one_token_and_certainty_no_more():
    logits = torch.randn(4, 30)
    for method in ("random", "systematic"):
        torch.testing.assert_close(expected_unique_tokens(logits, 1, method=method), torch.ones(4))
        certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
        torch.testing.assert_close(expected_unique_tokens(certain, 50, method=method), torch.ones(1))


def test_temperature_is_refused_for_systematic_sampling():
    with pytest.raises(ValueError, match="systematic at temperature 1"):
        expected_unique_tokens(torch.zeros(3), 5, method="systematic", temperature=0.8)


def test_means_over_windows_of_several_batches():
    logits = 3 * torch.randn(5, 8, 40, generator=torch.Generator().manual_seed(0))
    found = rounds_against_unique_tokens([logits[:2], logits[2:]], rounds=(4, 16))
    for method, unique in found.items():
        means = torch.stack([expected_unique_tokens(logits, n, method=method).mean(1) for n in (4, 16)])
        assert unique.means == pytest.approx(means.mean(1).tolist(), rel=1e-5)
        assert unique.standard_errors == pytest.approx((means.std(1) / 5**0.5).tolist(), rel=1e-4)
    assert found["systematic"].means > found["random"].means


def test_a_power_law_is_found_again_and_inverted():
    law = PowerLaw(1.3, 0.7)
    rounds = (4, 16, 64)
    fitted = PowerLaw.fit(rounds, [law.unique_tokens(n) for n in rounds])
    assert (fitted.coefficient, fitted.exponent) == pytest.approx((1.3, 0.7))
    assert fitted.rounds(fitted.unique_tokens(22)) == pytest.approx(22)


def test_zipf_text_is_nearly_a_power_law():
    """As the paper says of Figure 5; a uniform distribution is none."""
    zipf = -torch.arange(1, 5001).float().log()
    found = rounds_against_unique_tokens([zipf.expand(1, 1, -1)])
    assert found["random"].largest_error < 0.1
    uniform = rounds_against_unique_tokens([torch.zeros(1, 1, 30)])
    assert uniform["random"].largest_error > 0.2


def test_windows_of_many_sizes_weigh_by_their_positions():
    logits = torch.randn(1, 12, 40, generator=torch.Generator().manual_seed(0))
    whole = rounds_against_unique_tokens([logits], (4, 16))
    parts = rounds_against_unique_tokens([logits[:, :3], logits[:, :0], logits[:, 3:]], (4, 16))
    for method, found in parts.items():
        assert found.means == pytest.approx(whole[method].means, rel=1e-6)
        assert min(found.standard_errors) > 0
