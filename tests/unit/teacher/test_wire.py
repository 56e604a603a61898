import pytest
import torch

from rskd.models.output_head import OutputHead
from rskd.teacher.hidden_to_targets import Order, sample_rows
from rskd.teacher.sampling import Sampling
from rskd.teacher.wire import pack, unpack, width
from rskd.teacher_statistics import STATISTICS

ROWS, HIDDEN, VOCAB = 37, 16, 300
SAMPLINGS = {
    "systematic": Sampling(num_samples=22),
    "random": Sampling("random", num_samples=50, seed=3),
    "sharp": Sampling("random", num_samples=20, temperature=0.8),
    "top_k": Sampling("top_k", k=12),
    "top_p": Sampling("top_p", k=30, p=0.7),
}


def sampled(samplings: dict[str, Sampling], statistics: tuple[str, ...]):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    head = OutputHead(torch.randn(VOCAB, HIDDEN, generator=generator) / 2)
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    return sample_rows(hidden, head, samplings, labels=labels, statistics=statistics)


@pytest.mark.parametrize("statistics", [(), tuple(STATISTICS), ("top1", "label_logprob")])
def test_what_is_packed_comes_back(statistics: tuple[str, ...]):
    rows = sampled(SAMPLINGS, statistics)
    order = Order.from_json(Order(SAMPLINGS, statistics, VOCAB).to_json())
    assert order == Order(SAMPLINGS, statistics, VOCAB)
    back = unpack(pack(rows, order), order)
    for name, drawn in rows.drawn.items():
        assert torch.equal(back.drawn[name].ids, drawn.ids)
        assert torch.equal(back.drawn[name].values, drawn.values)
        assert back.drawn[name].values.dtype == drawn.values.dtype
    assert list(back.statistics) == list(statistics)
    for name, values in rows.statistics.items():
        assert torch.equal(back.statistics[name], values)


def test_the_width_depends_on_the_order_alone():
    order = Order(SAMPLINGS, ("entropy",))
    rows = pack(sampled(SAMPLINGS, ("entropy",)), order)
    assert rows.dtype == torch.int32
    assert rows.shape == (ROWS, width(order)) == (ROWS, 22 + 50 + 2 * 20 + 2 * 12 + 2 * 30 + 1)
    assert width(Order({"default": Sampling()})) == 22
