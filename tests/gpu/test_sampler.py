"""Draws on the device beside the CPU's: equal where equal keys promise it, else equal but for rounding or on average.

Needs torch alone. Shapes: R rows, S keys, D hidden, V vocabulary.
"""

import pytest
import torch
from devices import DEVICE, TINY
from torch import Tensor

from rskd.errors import NonFiniteLogitsError
from rskd.models.output_head import OutputHead
from rskd.rng import position_keys, uniforms
from rskd.teacher.hidden_to_targets import CHUNK_ROWS, sample_from_hidden, sample_rows
from rskd.teacher.sampling import Sampling, sample_targets

pytestmark = pytest.mark.gpu
VOCAB, ROWS, DIM = (1_000, 40, 32) if TINY else (128_256, 300, 576)
METHODS = {
    "systematic": {},
    "random": {"method": "random", "num_samples": 50},
    "random, another temperature": {"method": "random", "num_samples": 50, "temperature": 0.7},
    "top_k": {"method": "top_k", "k": 12},
    "top_p": {"method": "top_p", "k": 40, "p": 0.6},
}
KEYS = position_keys(torch.arange(2**33, 2**33 + ROWS), 1).flatten()


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """hidden [R, D] and weight [V, D], on the CPU: logits with a standard deviation of 3."""
    return normal(ROWS, DIM).to(dtype), normal(VOCAB, DIM, scale=3 / DIM**0.5, seed=1).to(dtype)


def changed(found: Tensor, wanted: Tensor) -> float:
    """The share of the mass, of dense targets [R, V], that is on other ids."""
    return ((found.cpu().double() - wanted.double()).abs().sum(-1) / 2).mean().item()


def test_uniform_numbers_are_the_cpus_bit_for_bit():
    keys = torch.tensor([[0, 2**20 + 3], [2**52 + 17, 2**62]])
    assert torch.equal(uniforms(keys.to(DEVICE), 64, seed=2**40 + 5).cpu(), uniforms(keys, 64, seed=2**40 + 5))


@pytest.mark.parametrize("name", METHODS)
def test_float64_logits_give_the_cpus_ids(name):
    logits = normal(ROWS, VOCAB, scale=3).double() + 1e-9 * normal(ROWS, VOCAB, seed=2).double()
    found = sample_targets(logits.to(DEVICE), **METHODS[name], keys=KEYS.to(DEVICE))
    wanted = sample_targets(logits, **METHODS[name], keys=KEYS)
    assert torch.equal(found.ids.cpu(), wanted.ids)
    torch.testing.assert_close(found.weights.cpu(), wanted.weights)


@pytest.mark.parametrize("name", METHODS)
def test_float32_logits_give_the_cpus_but_for_rounding(name):
    """Each of V ids has its place in the running sum within some 1e-9 of the CPU's."""
    logits = normal(ROWS, VOCAB, scale=3)
    found = sample_targets(logits.to(DEVICE), **METHODS[name], keys=KEYS.to(DEVICE))
    assert changed(found.to_dense(VOCAB), sample_targets(logits, **METHODS[name], keys=KEYS).to_dense(VOCAB)) < 3e-3


@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_gives_the_same_bits_in_any_batch_split(name):
    logits, keys = normal(ROWS, VOCAB, scale=3).to(DEVICE), KEYS.to(DEVICE)
    whole = sample_targets(logits, **METHODS[name], keys=keys).to_dense(VOCAB)
    assert torch.equal(sample_targets(logits, **METHODS[name], keys=keys).to_dense(VOCAB), whole)
    parts = [
        sample_targets(part, **METHODS[name], keys=part_keys).to_dense(VOCAB)
        for part, part_keys in zip(logits.split(37), keys.split(37))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", METHODS)
def test_hidden_states_in_float64_give_the_cpus_ids_with_bias_softcap_and_padding(name):
    hidden, weight = head(torch.float64)
    bias = normal(VOCAB, seed=3).double()
    options = METHODS[name] | {"softcap": 12.0, "vocab_size": VOCAB - 5}
    found = sample_from_hidden(
        hidden.to(DEVICE), weight.to(DEVICE), bias=bias.to(DEVICE), keys=KEYS.to(DEVICE), **options
    )
    wanted = sample_from_hidden(hidden, weight, bias=bias, keys=KEYS, **options)
    assert torch.equal(found.ids.cpu(), wanted.ids)
    assert found.ids.max() < VOCAB - 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_give_the_cpus_draws_but_for_the_rounding_of_products(dtype):
    if DEVICE.type == "cpu" and dtype != torch.float32:
        pytest.skip("the same computation")
    hidden, weight = head(dtype)
    found = sample_from_hidden(hidden.to(DEVICE), weight.to(DEVICE), keys=KEYS.to(DEVICE)).to_dense(VOCAB)
    wanted = sample_from_hidden(hidden, weight, keys=KEYS).to_dense(VOCAB)
    assert changed(found, wanted) < {torch.float32: 0.02, torch.bfloat16: 0.5}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "unbiased"), [("systematic", True), ("random", True), ("top_k", False)])
def test_draws_from_hidden_states_are_unbiased(dtype, name, unbiased):
    """Their mean over keys is the softmax of the device's own products; top-k fails the same check."""
    num_keys = CHUNK_ROWS * (4 if TINY else 20)  # whole chunks: one kind of product
    hidden, weight = (tensor.to(DEVICE) for tensor in head(dtype))
    hidden_SD = hidden[:1].expand(num_keys, -1).contiguous()
    logits = next(OutputHead(weight).products(hidden_SD, CHUNK_ROWS))[0].double()
    p = logits.softmax(-1)
    num_samples = METHODS[name].get("num_samples", 22)
    targets = sample_from_hidden(hidden_SD, weight, **METHODS[name])
    mean = torch.zeros_like(p).index_add_(0, targets.ids.flatten(), targets.weights.double().flatten()) / num_keys
    fraction = (num_samples * p).frac()
    variance = fraction * (1 - fraction) / num_samples**2 if name == "systematic" else p * (1 - p) / num_samples
    tested = num_keys * num_samples**2 * variance >= 20
    assert tested.sum() > 20
    z = ((mean - p) / (variance / num_keys).sqrt())[tested]
    assert (z.abs().max() < 6) == unbiased


def test_statistics_are_those_of_float64():
    hidden, weight = (tensor.to(DEVICE) for tensor in head(torch.float32))
    labels = torch.arange(ROWS, device=DEVICE)
    names = ("label_logprob", "entropy", "top1")
    rows = sample_rows(hidden, OutputHead(weight), {"": Sampling()}, labels=labels, statistics=names)
    log_p = (hidden.double() @ weight.double().T).log_softmax(-1)
    assert torch.equal(rows.statistics["top1"], log_p.argmax(-1))
    found = rows.statistics["label_logprob"].double(), rows.statistics["entropy"].double()
    expected = log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_logits_that_are_not_finite_are_refused():
    hidden, weight = (tensor.to(DEVICE) for tensor in head(torch.float32))
    hidden[ROWS // 2, 3] = torch.nan
    with pytest.raises(NonFiniteLogitsError):
        sample_from_hidden(hidden, weight)
