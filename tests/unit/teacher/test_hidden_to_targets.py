"""Hidden states to targets in chunks of rows, against the samplers on whole logits."""

import pytest
import torch

from rskd.models.output_head import OutputHead
from rskd.teacher import hidden_to_targets, sampling
from rskd.teacher.hidden_to_targets import sample_from_hidden, sample_rows
from rskd.teacher.sampling import Sampling, sample_targets

D, V = 16, 300


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(sampling, "SLICE_BYTES_CPU", 100_000)
    monkeypatch.setattr(hidden_to_targets, "CHUNK_ROWS", 20)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator).double() for shape in ((3, 17, D), (V, D), (V,)))
    return hidden, weight, bias  # float64: equal logits whatever the chunk, to well below what a draw could notice


def test_equals_sampling_from_whole_logits(inputs):
    hidden, weight, bias = inputs
    logits = 5 * torch.tanh((hidden @ weight.T + bias) / 5)
    options = {"method": "random", "num_samples": 30, "seed": 4, "keys": torch.arange(51).view(3, 17) + 2**40}
    targets = sample_from_hidden(hidden, weight, bias=bias, softcap=5.0, **options)
    assert targets.ids.shape[:2] == (3, 17)
    assert torch.equal(targets.to_dense(V), sample_targets(logits, **options).to_dense(V))


def test_padded_vocabulary_is_masked(inputs):
    hidden, weight, _ = inputs
    logits = hidden @ weight.T
    logits[..., 250:] = -torch.inf
    targets = sample_from_hidden(hidden, weight, vocab_size=250)
    assert torch.equal(targets.to_dense(V), sample_targets(logits).to_dense(V))
    with pytest.raises(ValueError, match=r"vocab_size must be within 1\.\.300"):
        sample_from_hidden(hidden, weight, vocab_size=301)


def test_one_pass_gives_every_sampling_and_statistic(inputs):
    hidden, weight, _ = inputs
    labels = torch.randint(V, (3, 17), generator=torch.Generator().manual_seed(1))
    samplings = {
        "fine": Sampling(num_samples=50, seed=2),
        "random": Sampling("random", num_samples=20),
        "tempered": Sampling("random", num_samples=20, temperature=0.5),
        "top": Sampling("top_k", k=5),
    }
    rows = sample_rows(
        hidden, OutputHead(weight), samplings, labels=labels, statistics=("label_logprob", "entropy", "top1")
    )
    log_p = (hidden @ weight.T).log_softmax(-1).flatten(0, 1)
    torch.testing.assert_close(
        rows.statistics["label_logprob"], log_p.gather(1, labels.view(-1, 1))[:, 0], check_dtype=False
    )
    torch.testing.assert_close(rows.statistics["entropy"], -(log_p.exp() * log_p).sum(-1), check_dtype=False)
    assert torch.equal(rows.statistics["top1"], log_p.argmax(-1))
    for name in ("fine", "random"):
        assert rows.drawn[name].values.dtype == torch.int64
        assert rows.drawn[name].values.sum(-1).eq(samplings[name].num_samples).all()
    alone = sample_from_hidden(hidden, weight, num_samples=50, seed=2)
    assert torch.equal(rows.drawn["fine"].targets(samplings["fine"]).to_dense(V), alone.to_dense(V).flatten(0, 1))
    torch.testing.assert_close(rows.drawn["tempered"].values.sum(-1), torch.ones(51))
    top = log_p.exp().topk(5).values.sum(-1)
    torch.testing.assert_close(rows.drawn["top"].values.sum(-1), top, check_dtype=False)


def test_entropy_of_masked_and_certain_rows():
    weight = torch.tensor([[0.0], [200.0], [0.0]])
    rows = sample_rows(torch.tensor([[1.0], [0.0]]), OutputHead(weight), {}, vocab_size=2, statistics=("entropy",))
    torch.testing.assert_close(rows.statistics["entropy"], torch.tensor([0.0, 2.0]).log().nan_to_num(neginf=0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_head_gives_the_draws_of_its_logits(inputs, dtype, softcap, with_bias, monkeypatch):
    monkeypatch.setattr(hidden_to_targets, "CHUNK_ROWS", 51)  # one product, as for the whole logits
    hidden, weight, bias = (tensor.to(dtype) for tensor in inputs)
    head = OutputHead(weight, bias if with_bias else None, softcap)
    targets = sample_from_hidden(hidden, weight, bias=head.bias, softcap=softcap)
    expected = sample_targets(head.logits(hidden.flatten(0, 1)).view(3, 17, V))
    assert torch.equal(targets.to_dense(V), expected.to_dense(V))


def test_float32_statistics_are_those_of_float64_but_for_rounding(inputs):
    hidden, weight = (tensor.float() for tensor in inputs[:2])
    labels = torch.randint(V, (3, 17), generator=torch.Generator().manual_seed(1))
    rows = sample_rows(
        hidden, OutputHead(weight), {}, labels=labels, statistics=("label_logprob", "entropy")
    ).statistics
    log_p = (hidden @ weight.T).double().log_softmax(-1).flatten(0, 1)
    label_logprob, entropy = log_p.gather(1, labels.view(-1, 1))[:, 0], -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(rows["label_logprob"].double(), label_logprob, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(rows["entropy"].double(), entropy, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["systematic", "random"])
def test_a_broken_head_is_refused_whatever_the_chunk(inputs, method):
    hidden, weight, _ = inputs
    hidden[2, 16, 3] = torch.nan
    with pytest.raises(ValueError, match="logits must be finite"):
        sample_from_hidden(hidden, weight, method=method)
    with pytest.raises(ValueError, match="logits must be finite"):
        sample_rows(hidden, OutputHead(weight), {}, statistics=("entropy",))


def test_bad_statistics_are_refused(inputs):
    hidden, weight, _ = inputs
    with pytest.raises(ValueError, match="got loss"):
        sample_rows(hidden, OutputHead(weight), {}, statistics=("loss",))
    with pytest.raises(ValueError, match="needs labels"):
        sample_rows(hidden, OutputHead(weight), {}, statistics=("label_logprob",))
