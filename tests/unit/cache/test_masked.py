"""Caches of conversations: positions without a loss have no entries."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_caches import ROUNDS, SEQ_LEN, make_corpus, make_head, make_part, write_cache

from rskd import records
from rskd.cache.codec import PartData, num_unique, to_table
from rskd.cache.inspection import inspect
from rskd.cache.layout import Layout
from rskd.cache.manifest import CacheManifest, check_same_head, head_identity, newest_manifest
from rskd.cache.misaligned import misaligned_copy
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.errors import CacheMismatchError, ConfigError
from rskd.storage import Store


def masked_part(part, mask: np.ndarray):
    """`make_part` without what is beyond the mask [R, S]."""
    whole = make_part(part)
    return replace(
        whole,
        ids=np.where(mask[..., None], whole.ids, 0),
        values=np.where(mask[..., None], whole.values, 0),
        statistics={name: np.where(mask, values, 0) for name, values in whole.statistics.items()},
    )


def write_masked(uri: str, **changes) -> tuple[list[np.ndarray], CacheManifest]:
    """A masked cache in which a part has no loss at all, and one has it everywhere."""
    corpus, rng = make_corpus(), np.random.default_rng(0)
    masks = [rng.random((part.rows, SEQ_LEN)) < share for part, share in zip(corpus, (0.4, 0, 0.1, 1, 0.5))]
    writer = CacheWriter(uri, manifest_head=make_head(corpus__masked=True, **changes))
    for part, mask in zip(corpus, masks):
        writer.commit_part(part.index, masked_part(part, mask), corpus_sha256=part.sha256)
    return masks, writer.finish(corpus)


@pytest.mark.parametrize("layout", ["plain", "compact"])
def test_a_masked_cache_holds_what_has_a_loss_and_nothing_else(tmp_path, layout):
    compact = {"sampling__layout": "compact", "tokenizer__most_frequent": [7, 3]} if layout == "compact" else {}
    uri = str(tmp_path / "cache")
    masks, manifest = write_masked(uri, **compact)
    mask = np.concatenate(masks)
    data = [make_part(part) for part in make_corpus()]
    assert verify(uri).to_dict()["problems"] == []

    rows = LogitCache.open(uri).read_rows(range(59))
    assert rows.loss_mask.numpy().tolist() == mask.tolist()
    assert rows.targets.mass.numpy()[mask] == pytest.approx(1)
    assert not rows.targets.mass.numpy()[~mask].any()
    whole = write_cache(str(tmp_path / "text"), head=make_head(**compact))
    unmasked = LogitCache.open(str(tmp_path / "text")).read_rows(range(59))
    assert len(whole) == len(data)
    assert unmasked.loss_mask is None
    dense, expected = rows.targets.to_dense(300).numpy(), unmasked.targets.to_dense(300).numpy()
    assert np.array_equal(dense[mask], expected[mask])

    counts = manifest.histograms["num_unique"]["counts"]
    assert manifest.totals["loss_tokens"] == manifest.loss_tokens == mask.sum() == sum(counts)
    assert counts[0] == 0
    assert sum(manifest.histograms["label_logprob"]["counts"]) == mask.sum()
    loss = sum(-one.statistics["label_logprob"][m].sum(dtype=float) for one, m in zip(data, masks))
    assert manifest.teacher_lm_loss == pytest.approx(loss / mask.sum(), rel=1e-6)
    assert [part.loss_tokens for part in manifest.parts] == [int(m.sum()) for m in masks]
    assert CacheManifest.from_dict(records.read(Store(uri), "manifest.json") or {}) == newest_manifest(Store(uri))

    found = inspect(uri)
    assert (found["masked"], found["tokens"], found["loss_tokens"]) == (True, mask.size, mask.sum())
    assert (found["loss_on"], found["chat_template"]) == (None, None)  # a head that does not say
    assert found["bytes_per_loss_token"] == found["bytes"] / mask.sum()
    assert found["unique_per_loss_token"] == manifest.totals["samples"] / mask.sum()


def test_a_cache_of_text_says_nothing_of_masks(cache):
    manifest = newest_manifest(Store(cache.uri))
    assert "masked" not in manifest.corpus
    assert "loss_tokens" not in manifest.totals
    assert all("loss_tokens" not in part.to_dict() for part in manifest.parts)
    assert manifest.loss_tokens == manifest.totals["tokens"]
    assert not {"masked", "loss_tokens", "bytes_per_loss_token"} & inspect(cache.uri).keys()


def test_a_cache_of_text_and_one_of_conversations_are_no_one_cache(tmp_path):
    head, masked = make_head(), make_head(corpus__masked=True)
    assert head_identity(head) != head_identity(masked)
    for stored, wanted, said in ((head, masked, "text, not chat"), (masked, head, "chat, not text")):
        with pytest.raises(CacheMismatchError, match=rf"corpus\.kind={said}"):
            check_same_head(stored, wanted, "there")


def test_verify_finds_entries_where_none_may_be(tmp_path):
    """By a writer that was wrong: digests and hashes are all right."""
    corpus = make_corpus()
    mask = np.zeros((12, SEQ_LEN), bool)
    mask[:, :3] = True
    part = masked_part(corpus[0], mask)
    without, incomplete = part.values.copy(), part.values.copy()
    without[0, 0] = 0
    incomplete[0, 0] = [ROUNDS - 1, *[0] * (part.values.shape[-1] - 1)]
    statistics = {"label_logprob": np.full((12, SEQ_LEN), -1.0)}
    wrong = {
        "positions without entries": (False, replace(part, values=without)),
        "do not sum to 22": (True, replace(part, values=incomplete)),
        "statistics where there is no loss": (True, replace(part, statistics=statistics)),
    }
    for index, (problem, (masked, data)) in enumerate(wrong.items()):
        uri = str(tmp_path / str(index))
        head = make_head(corpus__masked=True) if masked else make_head()
        CacheWriter(uri, manifest_head=head).commit_part(0, data, corpus_sha256=corpus[0].sha256)
        found = [one["problem"] for one in verify(uri).problems if one["part"] == "part-00000"]
        assert len(found) == 1
        assert problem in found[0]


def test_verify_finds_a_position_whose_counts_come_to_nothing(tmp_path):
    part, head = make_corpus()[0], make_head(corpus__masked=True)
    layout = Layout.of(head)
    table = to_table(masked_part(part, np.ones((12, SEQ_LEN), bool)), layout)
    rows = table["counts"].to_pylist()
    rows[0][: num_unique(table, layout)[0]] = [0] * num_unique(table, layout)[0]
    where = table.schema.get_field_index("counts")
    table = table.set_column(where, table.schema.field(where), pa.array(rows, table.schema.field(where).type))
    CacheWriter(str(tmp_path), manifest_head=head).commit_table(0, table, corpus_sha256=part.sha256)
    [found] = [one["problem"] for one in verify(str(tmp_path)).problems if one["part"] == "part-00000"]
    assert "has counts that do not sum to 22" in found


def test_verify_counts_the_positions_with_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("rskd.cache.writer.np.count_nonzero", lambda unique: int((unique > 0).sum()) + 1)
    corpus = make_corpus()
    uri = str(tmp_path / "cache")
    data = masked_part(corpus[0], np.eye(12, SEQ_LEN, dtype=bool))
    CacheWriter(uri, manifest_head=make_head(corpus__masked=True)).commit_part(0, data, corpus_sha256="c" * 64)
    monkeypatch.undo()
    assert any("positions with a loss than its record" in one["problem"] for one in verify(uri).problems)


def test_conversations_have_no_misaligned_copy(tmp_path):
    write_masked(str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="has conversations"):
        misaligned_copy(str(tmp_path / "cache"), str(tmp_path / "copy"))


@pytest.mark.parametrize("layout", ["plain", "compact"])
def test_a_masked_cache_costs_what_its_tokens_with_a_loss_cost(tmp_path, layout):
    """At most 1.05 times their share of the targets of an unmasked one: the mask itself is no column."""
    rng, rows, seq_len, most = np.random.default_rng(0), 16, 512, 12
    turns = np.tile(np.repeat([False, True], 2), 64)  # 128 questions and answers, of lengths that differ
    mask = np.repeat(turns, rng.multinomial(rows * seq_len, np.full(256, 1 / 256))).reshape(rows, seq_len)
    counts = rng.multinomial(ROUNDS, rng.dirichlet(np.full(most, 0.3), (rows, seq_len)))
    order = rng.permuted(np.tile(np.arange(most), (rows, seq_len, 1)), axis=2)
    ids = (rng.integers(0, 20, (rows, seq_len, 1)) + 20 * order) % 300
    data = PartData(np.arange(rows), np.zeros((rows, seq_len + 1), np.int32), ids.astype(np.int32), counts, {})
    data = replace(data, statistics={"label_logprob": -rng.exponential(2, (rows, seq_len)).astype(np.float32)})
    kept = {"label_logprob": data.statistics["label_logprob"] * mask}
    less = replace(data, values=counts * mask[..., None], statistics=kept)
    compact = {"sampling__layout": "compact", "tokenizer__most_frequent": [7, 3]} if layout == "compact" else {}
    sizes = []
    for name, part, changes in (("text", data, {}), ("chat", less, {"corpus__masked": True})):
        head = make_head(corpus__seq_len=seq_len, corpus__rows_per_group=rows, **changes, **compact)
        record = CacheWriter(str(tmp_path / name), manifest_head=head).commit_part(0, part, corpus_sha256="c" * 64)
        group = pq.ParquetFile(tmp_path / name / record.file).metadata.row_group(0)
        columns = {group.column(i).path_in_schema.split(".")[0]: group.column(i) for i in range(group.num_columns)}
        targets = columns.keys() - {"row_id", "input_ids", "window_hash"}
        sizes.append(sum(columns[column].total_compressed_size for column in targets))
    assert 0.4 < mask.mean() < 0.6
    assert sizes[1] <= 1.05 * mask.mean() * sizes[0]
