import numpy as np

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
