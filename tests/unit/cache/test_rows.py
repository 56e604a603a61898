import numpy as np
import pytest

from rskd.cache.codec import PartData, to_table
from rskd.cache.layout import Layout
from rskd.cache.rows import CacheRows, RowGroup


def test_rows_of_several_groups_come_as_asked_for():
    first = RowGroup(np.arange(3), np.arange(12, dtype=np.int32).reshape(3, 4))
    second = RowGroup(np.arange(3, 5), np.arange(12, 20, dtype=np.int32).reshape(2, 4))
    rows = CacheRows.of([(second, 1), (first, 0), (second, 1)])
    assert len(rows) == 3
    assert rows.row_ids.tolist() == [4, 0, 4]
    assert rows.input_ids.tolist() == [[16, 17, 18, 19], [0, 1, 2, 3], [16, 17, 18, 19]]
    assert rows.targets is None
    assert rows.statistics == {}


@pytest.mark.parametrize("layout", ["plain", "compact"])
@pytest.mark.parametrize("most", [1, 7, 60_000])
def test_rows_are_padded_to_the_widest_position_among_them(layout, most):
    """`most` beyond what is padded at once; a position without any entry, and groups of other widths."""
    sampling = {"method": "systematic", "num_samples": 60_000, "temperature": 1.0, "k": None, "p": None}
    layout_of = Layout.of(
        {
            "sampling": {**sampling, "statistics": [], "layout": layout},
            "tokenizer": {"vocab_size": most + 1, "most_frequent": [most]},
        }
    )
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (3, 4, most)) * (rng.random((3, 4, most)) < 0.7)
    values[0, 0] = 0
    ids = np.broadcast_to(np.arange(1, most + 1, dtype=np.int32), values.shape)
    few = np.where(np.arange(most) < 3, values, 0)
    windows = np.zeros((3, 5), np.int32)
    wide_group, narrow_group = (
        RowGroup.of_table(to_table(PartData(np.arange(3), windows, ids, kept, {}), layout_of), layout_of)
        for kept in (values, few)
    )
    targets = CacheRows.of([(narrow_group, 2), (wide_group, 0), (narrow_group, 1)]).targets
    expected = np.stack([few[2], values[0], few[1]])
    dense = np.zeros((3, 4, most + 1), np.float32)
    dense[..., 1:] = expected / np.float32(60_000)
    assert targets is not None
    np.testing.assert_array_equal(targets.to_dense(most + 1).numpy(), dense)
    assert targets.ids.shape[2] == max(1, (expected > 0).sum(-1).max())
    assert (targets.ids[targets.weights == 0] == 0).all()
