"""The samplers at a small vocabulary: exact promises, options, edges. Statistics are in tests/numerics."""

import pytest
import torch

from rskd.errors import ConfigError
from rskd.rng import uniforms
from rskd.teacher import sampling
from rskd.teacher.sampling import sample_targets

METHODS = {
    "systematic": {"num_samples": 22},
    "random": {"num_samples": 22},
    "random_tempered": {"method": "random", "num_samples": 22, "temperature": 0.7},
    "top_k": {"k": 7},
    "top_p": {"k": 40, "p": 0.6},
}


def options(name: str) -> dict:
    return {"method": name} | METHODS[name]


def logits_of(*shape: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["blocks", "rows"])
def summed(request, monkeypatch):
    """What is summed for the points, whatever their number: the blocks that they hit, or whole rows."""
    monkeypatch.setattr(sampling, "_sums_whole_rows", lambda num_points, vocab_size: request.param == "rows")


@pytest.mark.parametrize("name", METHODS)
def test_targets_are_canonical_and_deterministic(name):
    targets = sample_targets(logits_of(4, 5, 333), **options(name))
    again = sample_targets(logits_of(4, 5, 333), **options(name))
    assert targets.ids.shape[:2] == (4, 5)
    assert targets.ids.dtype == torch.int64
    assert targets.weights.dtype == torch.float32
    assert torch.equal(targets.ids, again.ids)
    assert torch.equal(targets.weights, again.weights)
    real = targets.weights > 0
    assert torch.equal(real.sum(-1), targets.num_unique)
    assert targets.ids[~real].eq(0).all()
    ascending = targets.ids[..., 1:] > targets.ids[..., :-1]
    assert ascending[real[..., 1:]].all()
    assert not real[..., 1:][~real[..., :-1]].any()  # padding comes last
    assert real.any(-1).all()
    assert real.any(0).any(0).all()  # K is no wider than the widest row


@pytest.mark.parametrize("name", METHODS)
def test_a_row_does_not_depend_on_its_batch(name, monkeypatch):
    logits, keys = logits_of(64, 500), torch.arange(64) * 2**20 + 3
    whole = sample_targets(logits, **options(name), keys=keys).to_dense(500)
    monkeypatch.setattr(sampling, "SLICE_BYTES_CPU", 150_000)
    chunked = sample_targets(logits, **options(name), keys=keys).to_dense(500)
    order = torch.arange(63, -1, -1)
    reordered = sample_targets(logits[order], **options(name), keys=keys[order]).to_dense(500)
    alone = sample_targets(logits[17], **options(name), keys=keys[17]).to_dense(500)
    assert torch.equal(whole, chunked)
    assert torch.equal(whole, reordered[order])
    assert torch.equal(whole[17], alone)


def test_default_keys_count_the_flattened_rows():
    logits = logits_of(2, 3, 50)
    keyed = sample_targets(logits, keys=torch.arange(6).view(2, 3))
    assert torch.equal(sample_targets(logits).to_dense(50), keyed.to_dense(50))


def test_seed_and_key_change_the_draws_but_not_top_k():
    logits = logits_of(1, 500).expand(2, -1)
    targets = sample_targets(logits).to_dense(500)
    assert not torch.equal(targets[0], targets[1])
    assert not torch.equal(targets, sample_targets(logits, seed=1).to_dense(500))
    top = sample_targets(logits, method="top_k", k=5).to_dense(500)
    assert torch.equal(top[0], top[1])


@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("num_samples", [1, 22, 301])
def test_systematic_counts_are_the_floor_or_the_ceiling(scale, num_samples):
    logits = logits_of(200, 301, scale=scale)
    expected = num_samples * logits.double().softmax(-1)
    counts = sample_targets(logits, num_samples=num_samples).to_dense(301).double() * num_samples
    assert torch.equal(counts.round().sum(-1), torch.full((200,), float(num_samples), dtype=torch.float64))
    assert (counts.round() >= (expected - 1e-9).floor()).all()
    assert (counts.round() <= (expected + 1e-9).ceil()).all()


def test_systematic_is_the_inverse_of_the_cumulative_distribution():
    logits, keys = logits_of(50, 1000), torch.arange(50)
    points = (torch.arange(7) + uniforms(keys, 1, seed=3)) / 7
    ids = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), points, right=True)
    expected = torch.zeros(50, 1000).scatter_add_(1, ids, torch.full((50, 7), 1 / 7))
    torch.testing.assert_close(sample_targets(logits, num_samples=7, seed=3, keys=keys).to_dense(1000), expected)


def test_random_is_the_inverse_of_the_cumulative_distribution():
    logits, keys = logits_of(50, 1000), torch.arange(50)
    ids = torch.searchsorted(logits.double().softmax(-1).cumsum(-1), uniforms(keys, 7, seed=3), right=True)
    expected = torch.zeros(50, 1000).scatter_add_(1, ids, torch.full((50, 7), 1 / 7))
    actual = sample_targets(logits, method="random", num_samples=7, seed=3, keys=keys)
    torch.testing.assert_close(actual.to_dense(1000), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.3])
def test_random_at_another_temperature_weighs_by_p_over_q(temperature):
    logits, keys = logits_of(50, 300), torch.arange(50)
    p = logits.double().softmax(-1)
    q = (temperature * logits.double()).softmax(-1)
    ids = torch.searchsorted(q.cumsum(-1), uniforms(keys, 20, seed=0), right=True)
    counts = torch.zeros(50, 300, dtype=torch.float64).scatter_add_(1, ids, torch.ones(50, 20, dtype=torch.float64))
    weights = counts * p / q
    targets = sample_targets(logits, method="random", num_samples=20, temperature=temperature)
    torch.testing.assert_close(targets.to_dense(300), (weights / weights.sum(-1, keepdim=True)).float())


def test_temperature_zero_draws_masked_ids_never_and_survives_underflow():
    logits = torch.tensor([[0.0, -2000.0, -torch.inf, -2100.0]]).expand(200, -1)
    targets = sample_targets(logits, method="random", num_samples=2, temperature=0.0)
    dense = targets.to_dense(4)
    assert dense.isfinite().all()
    assert dense[:, 2].eq(0).all()
    assert (dense[:, 1] > 0).any()
    torch.testing.assert_close(targets.mass, torch.ones(200))


@pytest.mark.usefixtures("summed")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("allowed", [[0], [128], [999], [127, 128], [3, 500, 900]])
def test_masked_ids_are_never_drawn(name, allowed):
    logits = torch.full((300, 1000), -torch.inf)
    logits[:, allowed] = logits_of(300, len(allowed))
    dense = sample_targets(logits, **options(name)).to_dense(1000)
    assert set(dense.nonzero()[:, 1].tolist()) <= set(allowed)


@pytest.mark.parametrize("vocab_size", [3, 128, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_and_many_points_fall_on_the_same_ids(vocab_size, dtype):
    logits = logits_of(33, vocab_size, scale=3).to(dtype)
    logits[:, ::7] = -torch.inf
    points = torch.rand(33, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    many = sampling.Distribution.of(logits).invert(points)
    few = [sampling.Distribution.of(logits).invert(point) for point in points.split(1, dim=1)]
    assert [sampling._sums_whole_rows(n, vocab_size) for n in (1, 60)] == [vocab_size < 128, True]
    assert torch.equal(torch.cat(few, 1), many)


@pytest.mark.usefixtures("summed")
def test_a_point_on_the_end_of_the_distribution_falls_on_the_last_id_with_mass():
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [5, 140]] = 0.0
    u = torch.tensor([[1.0, 1 - 2.0**-53, 0.5, 0.0]], dtype=torch.float64)
    assert sampling.Distribution.of(logits).invert(u).tolist() == [[140, 140, 140, 5]]


def test_top_k_keeps_the_largest_without_renormalising():
    logits = logits_of(20, 300)
    p = logits.double().softmax(-1)
    dense = sample_targets(logits, method="top_k", k=7).to_dense(300).double()
    kept = p.topk(7)
    torch.testing.assert_close(dense, torch.zeros_like(p).scatter_(1, kept.indices, kept.values), atol=1e-7, rtol=1e-6)


def test_top_k_beyond_the_vocabulary_keeps_all():
    logits = logits_of(20, 30)
    dense = sample_targets(logits, method="top_k", k=50).to_dense(30)
    torch.testing.assert_close(dense, logits.softmax(-1))


def test_top_p_keeps_the_fewest_with_the_mass():
    logits = logits_of(50, 300)
    targets = sample_targets(logits, method="top_p", k=300, p=0.8)
    assert (targets.mass >= 0.8 - 1e-6).all()
    smallest = torch.where(targets.weights > 0, targets.weights, 1.0).amin(-1)
    assert (targets.mass - smallest < 0.8).all()
    assert sample_targets(logits, method="top_p", k=3, p=0.99).num_unique.eq(3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_logits_are_taken_as_they_are(dtype):
    logits = logits_of(20, 300).to(dtype)
    assert torch.equal(sample_targets(logits).to_dense(300), sample_targets(logits.double()).to_dense(300))


def test_no_rows_give_no_targets():
    for name in METHODS:
        assert sample_targets(torch.zeros(3, 0, 10), **options(name)).ids.shape == (3, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"method": "nucleus"}, ValueError, "method must be one of"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"temperature": 0.5}, ConfigError, "temperature 1 only, got 0.5"),
        ({"method": "random", "temperature": -1.0}, ValueError, "temperature must be"),
        ({"method": "top_k"}, ValueError, "top_k needs k"),
        ({"method": "top_p", "p": 0.9}, ValueError, "top_p needs k"),
        ({"method": "top_p", "k": 5}, ValueError, "top_p needs p"),
        ({"method": "top_p", "k": 5, "p": 1.5}, ValueError, "top_p needs p"),
        ({"keys": torch.arange(3)}, ValueError, "keys must be int64"),
    ],
)
def test_bad_calls_are_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        sample_targets(logits_of(2, 10), **wrong)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("row", [[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf"), -float("inf")]])
def test_logits_without_a_distribution_are_refused(row, name):
    with pytest.raises(ValueError, match="logits must be finite"):
        sample_targets(torch.tensor([[0.0, 1.0], row]), **options(name))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shift", [-3e4, 3e4])
def test_where_the_logits_lie_does_not_matter(name, shift):
    logits = logits_of(20, 300).double().mul(2**8).round().div(2**8)  # as float32 too, shifted or not
    shifted = (logits + shift).float()
    assert torch.equal(shifted.double() - shift, logits)
    expected = sample_targets(logits, **options(name)).to_dense(300)
    torch.testing.assert_close(sample_targets(shifted, **options(name)).to_dense(300), expected, rtol=2e-6, atol=1e-7)
