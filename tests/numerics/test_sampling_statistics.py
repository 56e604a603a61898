"""Unbiasedness of the samplers at wide vocabularies, with the standard errors that theory gives.

One distribution is sampled under many keys. Ids with at least 20 expected hits are tested one by one, the rest pooled.
The biased baseline has to fail the same check.

Shapes: S keys, V vocabulary, N sampling rounds, K unique tokens.
"""

import pytest
import torch
from devices import DEVICE
from torch import Tensor

from rskd.rng import uniforms
from rskd.sparse_targets import SparseTargets
from rskd.teacher.sampling import Distribution, sample_targets

NUM_SAMPLES = 22
MIN_HITS = 20
NUM_KEYS = {49_152: 6000, 262_144: 1500}
WIDE = pytest.mark.parametrize("vocab_size", NUM_KEYS)


def zipf_logits(vocab_size: int, exponent: float = 1.1) -> Tensor:
    """Logits [V], on the device, of a heavy-tailed distribution whose likely ids are scattered over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    rank = torch.randperm(vocab_size, generator=generator) + 1
    return (-exponent * rank.log() + 0.3 * torch.randn(vocab_size, generator=generator)).to(DEVICE)


def draw(logits: Tensor, method: str, **options) -> SparseTargets:
    num_keys = NUM_KEYS[len(logits)]
    keys = torch.arange(num_keys, device=DEVICE) * 2**20 + 17
    return sample_targets(logits.expand(num_keys, -1), method=method, keys=keys, **options)


def assert_unbiased(targets: SparseTargets, p: Tensor, variance: Tensor) -> None:
    """`targets` [S, K] estimate `p` float64 [V]; `variance` [V] is that of one weight.

    The standard error of the mean z² is taken over batches of keys: the ids of one systematic draw hang on one uniform
    number, so their z are correlated (over ids, √(2/n) would be too small by more than half) though each is standard.
    """
    num_keys, batches = len(targets.ids), 15
    weights = targets.weights.double()
    batch = torch.arange(num_keys, device=DEVICE)[:, None] * batches // num_keys
    sums = torch.zeros(batches * len(p), dtype=torch.float64, device=DEVICE)
    sums.index_add_(0, (batch * len(p) + targets.ids).flatten(), weights.flatten())
    error = sums.view(batches, -1) * batches / num_keys - p
    hits = num_keys * NUM_SAMPLES * p
    changes = num_keys * NUM_SAMPLES**2 * variance  # hits beyond, or short of, a certain count
    tested = (hits >= MIN_HITS) & (changes >= MIN_HITS)
    assert tested.sum() > 100
    error, standard = error[:, tested], variance[tested].sqrt()
    z = error.mean(0) / standard * num_keys**0.5
    assert z.abs().max() <= 5.5
    z2 = ((error / standard * (num_keys / batches) ** 0.5) ** 2).mean(1)
    assert abs(z2.mean() - 1) <= 4 * z2.std() / batches**0.5
    tail = torch.where(tested[targets.ids], 0, weights).sum(-1)
    assert abs(tail.mean() - p[~tested].sum()) <= 4 * tail.std() / num_keys**0.5


def systematic_variance(p: Tensor) -> Tensor:
    fraction = (NUM_SAMPLES * p).frac()
    return fraction * (1 - fraction) / NUM_SAMPLES**2


def random_variance(p: Tensor) -> Tensor:
    return p * (1 - p) / NUM_SAMPLES


@WIDE
@pytest.mark.parametrize(("method", "variance"), [("systematic", systematic_variance), ("random", random_variance)])
def test_sampled_weights_are_unbiased_with_the_stated_variance(vocab_size, method, variance):
    logits = zipf_logits(vocab_size)
    p = logits.double().softmax(-1)
    targets = draw(logits, method, num_samples=NUM_SAMPLES)
    torch.testing.assert_close(targets.mass, torch.ones_like(targets.mass))
    assert_unbiased(targets, p, variance(p))


@WIDE
def test_top_k_fails_the_same_check(vocab_size):
    logits = zipf_logits(vocab_size)
    p = logits.double().softmax(-1)
    targets = draw(logits, "top_k", k=12)
    with pytest.raises(AssertionError):
        assert_unbiased(targets, p, random_variance(p))
    with pytest.raises(AssertionError):
        assert_unbiased(SparseTargets(targets.ids, targets.weights / targets.mass[:, None]), p, random_variance(p))


@WIDE
def test_systematic_counts_are_floor_or_ceiling_at_every_id(vocab_size):
    generator = torch.Generator().manual_seed(1)
    rows = 40 * 49_152 // vocab_size
    scale = torch.linspace(0, 12, rows)[:, None]  # from the uniform distribution to a certain token
    logits = zipf_logits(vocab_size) + (scale * torch.randn(rows, vocab_size, generator=generator)).to(DEVICE)
    expected = NUM_SAMPLES * logits.double().softmax(-1)
    counts = (NUM_SAMPLES * sample_targets(logits, num_samples=NUM_SAMPLES).to_dense(vocab_size)).round().double()
    assert counts.sum(-1).eq(NUM_SAMPLES).all()
    rounding = 1e-9
    assert (counts >= (expected - rounding).floor()).all()
    assert (counts <= (expected + rounding).ceil()).all()


def model_logits(num_rows: int, vocab_size: int) -> Tensor:
    """float32 logits [R, V] as a model's: a random head on random states, over frequencies with a Zipf tail."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(size, 64, generator=generator) for size in (num_rows, vocab_size))
    return zipf_logits(vocab_size) + (0.25 * hidden @ weight.T).to(DEVICE)


@WIDE
@pytest.mark.parametrize("method", ["systematic", "random"])
def test_float32_logits_change_few_of_the_draws_that_float64_gives(vocab_size, method):
    """The place of each of V ids in the running sum is off by some 1e-9: some 1e-8 at the likeliest."""
    num_samples, rows = 4000, 60 * 49_152 // vocab_size
    logits = model_logits(rows, vocab_size)
    single, double = (
        num_samples * sample_targets(part, method=method, num_samples=num_samples).to_dense(vocab_size)
        for part in (logits, logits.double())
    )
    changed = (single - double).abs().sum() / 2 / (rows * num_samples)
    assert 0 < changed < 1e-8 * vocab_size


@WIDE
def test_float32_masses_are_those_of_float64_but_for_rounding(vocab_size):
    logits = model_logits(20 * 49_152 // vocab_size, vocab_size)
    p = logits.double().softmax(-1)
    distribution = Distribution.of(logits)
    every_id = torch.arange(vocab_size, device=DEVICE).expand(len(logits), -1)
    error = distribution.probabilities(every_id) - p
    assert ((error.abs() / p).amax(-1) < 2e-6).all()
    assert (error.abs().sum(-1) / 2 < 1.5e-7).all()
    shares = distribution.block_cdf / distribution.total
    torch.testing.assert_close(shares, p.view(len(logits), -1, 128).sum(-1).cumsum(-1), atol=1e-7, rtol=0)


@WIDE
def test_float64_logits_are_drawn_from_in_float64(vocab_size):
    noise = torch.rand(4, vocab_size, dtype=torch.float64).to(DEVICE)
    logits = model_logits(4, vocab_size).double() + 1e-9 * noise
    points = (torch.arange(1000) + uniforms(torch.arange(4), 1, seed=0)) / 1000
    ids = torch.searchsorted(logits.softmax(-1).cumsum(-1), points.to(DEVICE), right=True)
    expected = torch.zeros(4, vocab_size).scatter_add_(1, ids.cpu(), torch.ones(4, 1000)).to(DEVICE)
    assert torch.equal((1000 * sample_targets(logits, num_samples=1000).to_dense(vocab_size)).round(), expected)


@pytest.mark.parametrize("method", ["systematic", "random"])
def test_same_keys_give_the_same_samples_in_any_batch_split(method):
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(60, 49_152, generator=generator).to(DEVICE)
    keys = torch.randint(2**40, (60,), generator=generator).to(DEVICE)
    whole = sample_targets(logits, method=method, keys=keys).to_dense(49_152)
    for size in (1, 7, 41):
        parts = [
            sample_targets(part, method=method, keys=part_keys).to_dense(49_152)
            for part, part_keys in zip(logits.split(size), keys.split(size))
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_another_temperature_is_consistent():
    """The bias of normalised importance weights is of order 1/N: it shrinks as rounds are added."""
    logits = zipf_logits(2000, exponent=1.5)
    p = logits.double().softmax(-1)
    keys = torch.arange(4000, device=DEVICE)

    def bias(num_samples: int) -> Tensor:
        targets = sample_targets(
            logits.expand(len(keys), -1), method="random", num_samples=num_samples, temperature=0.6, keys=keys
        )
        mean = torch.zeros_like(p).index_add_(0, targets.ids.flatten(), targets.weights.double().flatten()) / len(keys)
        return (mean - p).abs().sum()

    assert bias(256) < 0.4 * bias(16)
