from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rskd.corpus.packed_corpus import CorpusManifest, PackedCorpus, write_manifest, write_part
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.storage import Store

SEQ_LEN = 6
INPUT_IDS = np.random.default_rng(0).integers(0, 384, (70, SEQ_LEN + 1), dtype=np.int32)


def write_corpus(uri: str, cuts: tuple[int, ...] = (0, 40, 45, 70)) -> CorpusManifest:
    store = Store(uri)
    spans = list(pairwise(cuts))
    parts = [
        write_part(store, index, first, INPUT_IDS[first:end], rows_per_group=16)
        for index, (first, end) in enumerate(spans)
    ]
    counted = {"documents": 1, "tokens": 9, "dropped_tail_tokens": 2, "files": []}
    head = {
        "format_version": 1,
        "source": {"kind": "python_docs"},
        "tokenizer": {"fingerprint": "f"},
        "seq_len": SEQ_LEN,
        "seed": 0,
        "isolate_documents": False,
        "windows_per_part": 40,
        "rows_per_group": 16,
        "eval_threshold": 2**64,
    }
    manifest = CorpusManifest.of(head, [counted | {"windows": end - first} for first, end in spans], parts)
    write_manifest(store, manifest)
    return manifest


@pytest.fixture
def corpus(tmp_path: Path) -> PackedCorpus:
    write_corpus(str(tmp_path))
    return PackedCorpus.open(str(tmp_path))


def test_the_manifest_comes_back(tmp_path: Path):
    written = write_corpus(str(tmp_path))
    corpus = PackedCorpus.open(str(tmp_path))
    assert corpus.manifest == written
    assert corpus.manifest.digest == written.digest
    assert (corpus.num_rows, corpus.seq_len) == (70, SEQ_LEN)
    assert written.totals == {"documents": 3, "tokens": 27, "windows": 70, "dropped_tail_tokens": 6}


def test_up_to_is_the_manifest_before_groups_were_added(tmp_path: Path):
    whole = write_corpus(str(tmp_path / "a"))
    assert whole.up_to(2) == write_corpus(str(tmp_path / "b"), cuts=(0, 40, 45))
    assert whole.up_to(3) == whole


def test_a_part_is_a_plain_parquet_file(tmp_path: Path):
    write_corpus(str(tmp_path))
    file = pq.ParquetFile(tmp_path / "parts" / "part-00002.parquet")
    table = file.read()
    assert str(table.schema).startswith("row_id: int64\ninput_ids: list<element: int32>")
    assert table["row_id"].to_pylist() == list(range(45, 70))
    assert table["input_ids"].to_pylist() == INPUT_IDS[45:].tolist()
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [16, 9]


def test_equal_windows_are_equal_bytes(tmp_path: Path):
    assert write_corpus(str(tmp_path / "a")) == write_corpus(str(tmp_path / "b"))


def test_rows_come_in_the_order_asked_for_before_and_after_the_first_read(corpus: PackedCorpus):
    generator = np.random.default_rng(1)
    for count in (1, 7, 70, 70):
        row_ids = generator.permutation(70)[:count]
        windows = corpus.read_rows(np.append(row_ids, row_ids[0]))
        np.testing.assert_array_equal(windows.row_ids, np.append(row_ids, row_ids[0]))
        np.testing.assert_array_equal(windows.input_ids, INPUT_IDS[windows.row_ids])
    assert corpus.read_rows([]).input_ids.shape == (0, SEQ_LEN + 1)


def test_groups_are_the_row_groups_of_the_files(corpus: PackedCorpus):
    assert corpus.group_rows.tolist() == [[0, 16], [16, 16], [32, 8], [40, 5], [45, 16], [61, 9]]
    windows = corpus.read_groups([4, 2])
    np.testing.assert_array_equal(windows.row_ids, [*range(45, 61), *range(32, 40)])
    np.testing.assert_array_equal(windows.input_ids, INPUT_IDS[windows.row_ids])
    assert len(corpus.read_groups([]).row_ids) == 0


def test_a_part_is_read_whole(corpus: PackedCorpus):
    np.testing.assert_array_equal(corpus.read_part(1).input_ids, INPUT_IDS[40:45])


@pytest.mark.parametrize("row_id", [-1, 70])
def test_a_row_that_does_not_exist(corpus: PackedCorpus, row_id: int):
    with pytest.raises(IndexError, match=r"\[0, 70\)"):
        corpus.read_rows([0, row_id])


def test_a_missing_corpus_names_the_command(tmp_path: Path):
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        PackedCorpus.open(str(tmp_path / "nowhere"))


def _truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
def test_a_damaged_part_is_named(tmp_path: Path, damage):
    write_corpus(str(tmp_path))
    damage(tmp_path / "parts" / "part-00001.parquet")
    corpus = PackedCorpus.open(str(tmp_path))
    corpus.read_rows([0, 69])
    with pytest.raises(CorruptPartError, match="part-00001"):
        corpus.read_rows([0, 41])


def test_a_changed_manifest_is_refused(tmp_path: Path):
    write_corpus(str(tmp_path))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    with pytest.raises(CorruptPartError, match=r"manifest\.json"):
        PackedCorpus.open(str(tmp_path))


def test_masks_of_conversations_come_back(tmp_path: Path):
    masks = (INPUT_IDS % 2).astype(np.uint8)
    store = Store(str(tmp_path))
    parts = [
        write_part(store, 0, 0, INPUT_IDS[:40], rows_per_group=16, loss_mask=masks[:40]),
        write_part(store, 1, 40, INPUT_IDS[40:], rows_per_group=16, loss_mask=masks[40:]),
    ]
    plain = write_corpus(str(tmp_path / "texts"), cuts=(0, 40, 70))
    chat = {"loss_on": "assistant", "template": "{{ messages }}", "separator": "<|endoftext|>"}
    counted = {"loss_tokens": 42, "padding_tokens": 49, "cut_conversations": 1, "skipped_conversations": 2}
    groups = [{**group, **counted} for group in plain.groups]
    manifest = CorpusManifest.of({**plain.head, "chat": chat}, groups, parts)
    write_manifest(store, manifest)
    corpus = PackedCorpus.open(str(tmp_path))
    assert corpus.manifest == manifest
    assert "chat" not in plain.to_dict()
    assert manifest.totals["loss_tokens"] == 84
    assert manifest.shares == {"loss_share": 84 / (70 * SEQ_LEN), "padding_share": 98 / (70 * (SEQ_LEN + 1))}
    assert plain.shares == {}
    for row_ids in (np.arange(70), np.array([69, 3, 40])):
        windows = corpus.read_rows(row_ids)
        np.testing.assert_array_equal(windows.input_ids, INPUT_IDS[row_ids])
        np.testing.assert_array_equal(windows.loss_mask, masks[row_ids])
    assert PackedCorpus.open(str(tmp_path / "texts")).read_rows([0]).loss_mask is None
    table = pq.read_table(tmp_path / "parts" / "part-00001.parquet")
    assert str(table.schema.field("loss_mask").type) == "list<element: uint8>"
    (tmp_path / "parts" / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(CorruptPartError, match="is not what was written"):
        PackedCorpus.open(str(tmp_path)).read_rows([0])
