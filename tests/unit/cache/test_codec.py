import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rskd.cache.codec import PartData, encode, to_table, window_hash
from rskd.cache.layout import Layout, most_frequent, ranked_ids
from rskd.cache.rows import CacheRows, RowGroup

VOCAB = 300_000


def _layout(method: str = "systematic", **changes) -> Layout:
    sampling = {"method": method, "num_samples": 22, "temperature": 1.0, "k": None, "p": None, "statistics": []}
    tokenizer = {"most_frequent": [7, VOCAB - 1, VOCAB - 9], "vocab_size": VOCAB}
    return Layout.of({"sampling": {**sampling, "layout": "plain", **changes}, "tokenizer": tokenizer})


def _data(values: np.ndarray, statistics: dict | None = None, *, seed: int = 0) -> PartData:
    rng = np.random.default_rng(seed)
    rows, positions, most = values.shape
    ids = rng.permuted(np.tile(np.arange(VOCAB - 50, VOCAB, dtype=np.int32), (rows * positions, 1)), axis=1)
    return PartData(
        row_ids=np.arange(100, 100 + rows),
        input_ids=rng.integers(0, VOCAB, (rows, positions + 1), dtype=np.int32),
        ids=ids[:, :most].reshape(values.shape),
        values=values,
        statistics=statistics or {},
    )


def _counts(rounds: int, shape: tuple[int, int], most: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    positions = shape[0] * shape[1]
    return rng.multinomial(rounds, rng.dirichlet(np.full(most, 0.2), positions)).reshape(*shape, most)


def _round_trip(data: PartData, layout: Layout) -> tuple[pa.Table, CacheRows]:
    table = pq.read_table(io.BytesIO(encode(to_table(data, layout), 4)[0]))
    group = RowGroup.of_table(table, layout)
    return table, CacheRows.of([(group, row) for row in range(len(data.row_ids))])


def _dense(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    dense = np.zeros((*ids.shape[:2], VOCAB), np.float32)
    np.put_along_axis(dense, ids, weights, axis=-1)  # ids are distinct at a position
    return dense


@pytest.mark.parametrize("kind", ["plain", "compact"])
@pytest.mark.parametrize("rounds", [22, 300])
def test_counts_come_back_as_weights(rounds, kind):
    layout = _layout(num_samples=rounds, layout=kind)
    data = _data(_counts(rounds, (6, 5), 20))
    table, rows = _round_trip(data, layout)
    expected = _dense(data.ids, data.values.astype(np.float32) / np.float32(rounds))
    assert rows.targets is not None
    np.testing.assert_array_equal(rows.targets.to_dense(VOCAB).numpy(), expected)
    np.testing.assert_array_equal(rows.targets.num_unique.numpy(), (data.values > 0).sum(-1))
    assert rows.targets.ids.dtype == torch.int64
    assert table.schema.field("counts").type.value_type == (pa.uint8() if rounds <= 255 else pa.uint16())
    lengths = table.schema.field(layout.entries[0].lengths).type.value_type
    assert lengths == (pa.uint8() if rounds <= 255 else pa.uint16())


@pytest.mark.parametrize(
    ("layout", "column", "kind"),
    [(_layout("random", temperature=0.8), "weights", np.float32), (_layout("top_k", k=20), "probs", np.float16)],
)
def test_floating_values_come_back_in_their_precision(layout, column, kind):
    values = np.random.default_rng(2).random((6, 5, 20)).astype(np.float32)
    values[:, :, 15:] = 0
    data = _data(values)
    table, rows = _round_trip(data, layout)
    assert rows.targets is not None
    expected = _dense(data.ids, values.astype(kind).astype(np.float32))
    np.testing.assert_array_equal(rows.targets.to_dense(VOCAB).numpy(), expected)
    assert table.schema.field(column).type.value_type == pa.from_numpy_dtype(kind)


def test_columns_are_those_of_the_design():
    layout = _layout(statistics=["label_logprob", "entropy", "top1"])
    shape = (6, 5)
    statistics = {
        "label_logprob": np.full(shape, -1.5),
        "entropy": np.full(shape, 2.25),
        "top1": np.full(shape, VOCAB - 1),
    }
    table, rows = _round_trip(_data(_counts(22, shape, 20), statistics), layout)
    assert {field.name: str(field.type) for field in table.schema} == {
        "row_id": "int64",
        "input_ids": "list<element: int32 not null>",
        "window_hash": "int64",
        "num_unique": "list<element: uint8 not null>",
        "token_ids": "list<element: int32 not null>",
        "counts": "list<element: uint8 not null>",
        "label_logprob": "list<element: halffloat not null>",
        "entropy": "list<element: halffloat not null>",
        "top1": "list<element: int32 not null>",
    }
    for name, values in statistics.items():
        np.testing.assert_array_equal(rows.statistics[name].numpy(), values)


def test_the_compact_layout_has_counts_above_one_alone():
    data = _data(_counts(22, (6, 5), 20))
    table, _ = _round_trip(data, _layout(layout="compact"))
    assert {field.name: str(field.type) for field in table.schema}.items() >= {
        "num_repeated": "list<element: uint8 not null>",
        "repeated_gaps": "list<element: int32 not null>",
        "counts": "list<element: uint8 not null>",
        "num_single": "list<element: uint8 not null>",
        "single_gaps": "list<element: int32 not null>",
    }.items()
    assert not {"num_unique", "token_ids"} & set(table.column_names)
    counts = table["counts"].combine_chunks().flatten().to_numpy()
    assert counts.min() == 2
    assert np.sort(counts).tolist() == np.sort(data.values[data.values > 1]).tolist()


def test_ranks_follow_frequency_then_id():
    frequent = most_frequent(np.array([[3, 3, 1], [4, 3, 1]]))
    assert frequent == [3, 1, 4]
    assert ranked_ids(frequent, 6).tolist() == [3, 1, 4, 0, 2, 5]


def test_encodings_and_row_groups_are_those_of_the_design():
    file = pq.ParquetFile(io.BytesIO(encode(to_table(_data(_counts(22, (6, 5), 20)), _layout()), 4)[0]))
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [4, 2]
    columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    encodings = {column.path_in_schema.split(".")[0]: column.encodings for column in columns}
    for name in ("input_ids", "num_unique", "token_ids", "counts"):
        assert "BYTE_STREAM_SPLIT" in encodings[name]
        assert "RLE_DICTIONARY" not in encodings[name]


def test_order_of_entries_is_canonical():
    """The same entries in another order, with other padding, give the same bytes."""
    layout = _layout()
    data = _data(_counts(22, (6, 5), 20))
    order = np.random.default_rng(3).permutation(20)
    shuffled = PartData(data.row_ids, data.input_ids, data.ids[..., order], data.values[..., order], {})
    padded = PartData(
        data.row_ids, data.input_ids, np.pad(data.ids, ((0, 0),) * 2 + ((2, 3),)),
        np.pad(data.values, ((0, 0),) * 2 + ((2, 3),)), {},
    )  # fmt: skip
    encoded = encode(to_table(data, layout), 4)
    assert encode(to_table(shuffled, layout), 4) == encoded
    assert encode(to_table(padded, layout), 4) == encoded


def test_entries_fall_in_value_and_rise_in_id():
    table = to_table(_data(_counts(22, (1, 1), 20)), _layout())
    entries = list(zip([-count for count in table["counts"][0].as_py()], table["token_ids"][0].as_py()))
    assert entries == sorted(entries)
    assert len(entries) > 1


@pytest.mark.parametrize("kind", ["plain", "compact"])
def test_a_position_without_entries_is_padding(kind):
    values = _counts(22, (2, 3), 5)
    values[1, 2] = 0
    _, rows = _round_trip(_data(values), _layout(layout=kind))
    assert rows.targets is not None
    assert rows.targets.num_unique[1, 2] == 0
    assert rows.targets.mass[1, 2] == 0


def test_window_hash_sees_value_and_position():
    window = np.random.default_rng(4).integers(0, VOCAB, (1, 33), dtype=np.int32)
    swapped, changed = window.copy(), window.copy()
    swapped[0, [3, 4]] = swapped[0, [4, 3]]
    changed[0, 32] ^= 1
    assert len({int(window_hash(one)[0]) for one in (window, swapped, changed)}) == 3


def test_window_hash_is_the_same_everywhere():
    hashes = window_hash(np.arange(8, dtype=np.int32).reshape(2, 4))
    assert hashes.tolist() == [-6482724718565898473, -3247746328290338547]
