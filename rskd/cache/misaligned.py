"""A cache whose students read other contexts than its teacher did, to measure what that costs (paper, D.3, Table 13).

    part ─► its documents in another order, cut into windows again; each token keeps its targets ─► part of the copy

A token then stands behind other documents, and at another place in its window, than when the teacher gave its targets:
the paper's different shuffle seeds of teacher and student. Everything that reads a cache refuses the copy, since its
`window_hash` stays that of the windows that the teacher read; only `LogitCache.open(uri, allow_misaligned=True)` does
not.

The copy has other windows too, so its students cannot be compared step by step with those of the aligned cache. Where
they shall, the teacher reads another order instead, and its targets are brought back to the windows of the corpus:

    corpus ─► reordered_corpus ─► caching job ─► misaligned_copy ─► its windows, targets of other contexts
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.cache.codec import PartData, to_table
from rskd.cache.layout import Layout
from rskd.cache.manifest import CacheManifest
from rskd.cache.reader import LogitCache, read_part_file
from rskd.cache.rows import RowGroup
from rskd.cache.writer import CacheWriter
from rskd.corpus.packed_corpus import CorpusManifest, PackedCorpus, write_manifest, write_part
from rskd.errors import ConfigError
from rskd.rng import permutation
from rskd.storage import Store


class _CorpusPart(NamedTuple):
    index: int
    first_row: int
    rows: int
    sha256: str


def misaligned_copy(uri: str, out: str, *, seed: int = 0, corpus: str | None = None) -> CacheManifest:
    """Copy the cache at `uri` to `out` with the documents of each part in another order; none keeps its place.

    What a part begins with or ends in the middle of counts as a document; the latter stays last. `corpus` is the URI of
    what the cache's corpus was reordered from, with the same seed: the copy then has, and names, its windows. Raises
    ConfigError for a part with fewer than two documents before its last, and for a corpus that has other windows;
    and what reading and writing a cache raise.
    """
    store, manifest = Store(uri), LogitCache.open(uri).manifest
    head, parts = manifest.head, [_CorpusPart(p.index, p.first_row, p.rows, p.corpus_sha256) for p in manifest.parts]
    _refuse_conversations(f"cache {uri}", conversations=manifest.masked)
    _refuse_bos_of_windows(manifest.corpus.get("bos"), f"cache {uri}")
    original = None if corpus is None else PackedCorpus.open(corpus)
    if original is not None:
        head = {**head, "corpus": {**head["corpus"], "fingerprint": original.manifest.fingerprint}}
        parts = original.manifest.parts
    writer, layout = CacheWriter(out, manifest_head=head), Layout.of(head)
    for part, corpus_part in zip(manifest.parts, parts):
        table = pq.read_table(pa.BufferReader(read_part_file(store, part)))
        rows = RowGroup.of_table(table, layout)
        documents = _documents(rows.input_ids, manifest.corpus["end_of_text_id"], f"part {part.index} of cache {uri}")
        data = _in_order(rows, _joined(documents, _moved(len(documents) - 1, seed, part.index)))
        if original is not None and not np.array_equal(data.input_ids, original.read_part(part.index).input_ids):
            raise ConfigError(
                f"part {part.index} of cache {uri} does not give the windows of {corpus} by seed={seed}: "
                "name the corpus and the seed of reordered_corpus"
            )
        moved = to_table(data, layout)
        place = moved.column_names.index("window_hash")
        moved = moved.set_column(place, moved.schema.field(place), table["window_hash"])
        writer.commit_table(part.index, moved, corpus_sha256=corpus_part.sha256)
    return writer.finish(parts)


def reordered_corpus(uri: str, out: str, *, seed: int = 0) -> CorpusManifest:
    """Copy the corpus at `uri` to `out` with the documents of each part in another order.

    A cache of `out`, copied by `misaligned_copy` with the same seed, has the windows of `uri`. Raises as that does.
    """
    corpus, store = PackedCorpus.open(uri), Store(out)
    manifest, parts = corpus.manifest, []
    _refuse_bos_of_windows(manifest.bos, f"corpus {uri}")
    _refuse_conversations(f"corpus {uri}", conversations=manifest.chat is not None)
    for part in manifest.parts:
        input_ids = corpus.read_part(part.index).input_ids
        documents = _documents(input_ids, manifest.tokenizer["end_of_text_id"], f"part {part.index} of corpus {uri}")
        order = _joined(documents, np.argsort(_moved(len(documents) - 1, seed, part.index)))
        windows = _windows_in_order(input_ids, order)
        parts.append(write_part(store, part.index, part.first_row, windows, rows_per_group=manifest.rows_per_group))
    reordered = CorpusManifest.of(manifest.head, manifest.groups, parts)
    write_manifest(store, reordered)
    return reordered


def _refuse_conversations(name: str, *, conversations: bool) -> None:
    """They are packed whole and isolated: in any order each has the context that it has alone."""
    if conversations:
        raise ConfigError(f"{name} has conversations, which are not joined to a stream: name one of texts")


def _refuse_bos_of_windows(bos: str | None, name: str) -> None:
    if bos == "window":
        raise ConfigError(
            f"{name} was made with corpus.bos=window, so its windows do not join to documents: set corpus.bos=document "
            "under another name"
        )


def _documents(input_ids: np.ndarray, end_of_text_id: int, name: str) -> list[np.ndarray]:
    """The positions of each document of the windows [R, S+1] of a part, counted in R·S; the last one may be empty."""
    tokens = input_ids[:, :-1].reshape(-1)
    documents = np.split(np.arange(len(tokens)), 1 + np.flatnonzero(tokens == end_of_text_id))
    if len(documents) < 3:
        raise ConfigError(f"{name} ends fewer than two documents: make larger parts")
    return documents


def _joined(documents: list[np.ndarray], order: np.ndarray) -> np.ndarray:
    """All positions, with the documents but the last one in `order`."""
    return np.concatenate([documents[i] for i in (*order, -1)])


def _moved(size: int, seed: int, part: int) -> np.ndarray:
    """For each of `size` places another place: the next in a random circle of all."""
    circle = permutation(size, seed=seed, stream=part).numpy()
    moved = np.empty(size, np.int64)
    moved[circle] = np.roll(circle, 1)
    return moved


def _in_order(rows: RowGroup, order: np.ndarray) -> PartData:
    """The positions of `rows` in `order` [R·S], cut into windows again."""
    assert rows.targets is not None
    ids, values = rows.targets.padded()

    def moved(column: np.ndarray) -> np.ndarray:
        return column.reshape(-1, *column.shape[2:])[order].reshape(column.shape)

    return PartData(
        row_ids=rows.row_ids,
        input_ids=_windows_in_order(rows.input_ids, order),
        ids=moved(ids),
        values=moved(values),
        statistics={name: moved(column) for name, column in rows.statistics.items()},
    )


def _windows_in_order(input_ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The tokens of consecutive windows [R, S+1] in `order` [R·S], cut again; what follows the last one stays."""
    tokens = np.append(input_ids[:, :-1].reshape(-1)[order], input_ids[-1, -1])
    seq_len = input_ids.shape[1] - 1
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]
