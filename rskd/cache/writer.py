"""Writing a cache: any number of writers, any number of times, one winner for each part.

    PartData ─► Parquet bytes ─► parts/part-00000-<hash>.parquet ─► commit record (conditional create) ─► manifest

The data file comes first and is named by its content, so a record never names half a file, and what a writer leaves
behind when it dies is a file that no record names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from operator import eq
from typing import Any

import numpy as np
import pyarrow as pa

from rskd import records
from rskd.cache.codec import PartData, encode, flat, num_unique, to_table
from rskd.cache.histogram import Histogram, histogram
from rskd.cache.layout import Layout
from rskd.cache.manifest import (
    FORMAT_VERSION,
    HEAD_FILE,
    PARTS_FOLDER,
    CacheManifest,
    Commit,
    CorpusPart,
    PartRecord,
    check_no_surplus,
    check_same_head,
    check_same_windows,
    committed_indices,
    corrupt_part,
    fold,
    folded,
    head_identity,
    manifest_name,
    newest_manifest,
    part_name,
    read_commit,
    read_commits,
    read_head,
    record_name,
    seal_commit,
    segments_of,
)
from rskd.errors import CacheMismatchError, MissingOutputError
from rskd.storage import Store

_LEAST_LOGPROB = -1e4  # of a label that the teacher rules out (-inf): the sum stays a number, which JSON has no other


class CacheWriter:
    """Writes the cache at `uri`; may be made in any number of processes at once.

    `manifest_head` has `sampling`, `teacher`, `tokenizer` and `corpus` of the manifest. The first writer stores it.
    Raises CacheMismatchError if the cache has parts that were made with another one, naming the field; a cache without
    parts, as a teacher that was refused leaves it, begins again.
    """

    def __init__(self, uri: str, *, manifest_head: Mapping[str, Any]):
        self.uri = uri
        self._store = Store(uri)
        self._head = manifest_head
        self._identity = head_identity(manifest_head)
        self._layout = Layout.of(manifest_head)
        sealed = records.seal({**manifest_head, "format_version": FORMAT_VERSION})
        if not self._store.create(HEAD_FILE, sealed):
            try:
                check_same_head(read_head(self._store), manifest_head, uri)
            except CacheMismatchError:
                if committed_indices(self._store.list(PARTS_FOLDER)):
                    raise
                self._store.write(HEAD_FILE, sealed)

    def committed_parts(self, corpus_parts: Sequence[CorpusPart]) -> set[int]:
        """Those of `corpus_parts` that need no teacher any more.

        Raises CacheMismatchError if one was made from other windows, CorruptPartError if a data file is not there.
        """
        committed, _ = self._committed()
        for part in corpus_parts:
            if part.index in committed:
                check_same_windows(committed[part.index], part, self.uri)
        return {part.index for part in corpus_parts if part.index in committed}

    def commit_part(self, index: int, data: PartData, *, corpus_sha256: str) -> PartRecord:
        """Encode and write one part; where another writer was first, its part counts and is returned.

        The commit record keeps the sum of `label_logprob`, where the data have it, whether it is stored or not.
        """
        logprob = data.statistics.get("label_logprob")
        loss = None if logprob is None else teacher_loss(logprob)
        return self.commit_table(index, to_table(data, self._layout), corpus_sha256=corpus_sha256, teacher_loss=loss)

    def commit_table(
        self, index: int, table: pa.Table, *, corpus_sha256: str, teacher_loss: float | None = None
    ) -> PartRecord:
        """`commit_part` of columns as a part file has them."""
        encoded, ends = encode(table, self._head["corpus"]["rows_per_group"])
        content_hash = sha256(encoded).hexdigest()
        unique = num_unique(table, self._layout)
        part = PartRecord(
            index=index,
            file=f"{PARTS_FOLDER}/{part_name(index)}-{content_hash[:12]}.parquet",
            first_row=table["row_id"][0].as_py(),
            rows=table.num_rows,
            tokens=len(unique),
            samples=int(unique.sum()),
            bytes=len(encoded),
            sha256=content_hash,
            corpus_sha256=corpus_sha256,
            record_sha256="",
            teacher_loss=teacher_loss,
            loss_tokens=int(np.count_nonzero(unique)) if self._layout.masked else None,
        )
        values = {"num_unique": unique, **{name: flat(table, name) for name in self._layout.statistics}}
        if self._layout.masked:
            values = {name: column[unique > 0] for name, column in values.items()}
        drawn = {name: histogram(name, column) for name, column in values.items()}
        histograms = {name: one for name, one in drawn.items() if one is not None}
        commit = Commit(part, segments_of(encoded, ends), self._identity, histograms)
        self._store.write(part.file, encoded)
        sealed = seal_commit(commit)
        if self._store.create(record_name(index), sealed):
            return part._replace(record_sha256=sha256(sealed).hexdigest())
        return self._checked(read_commit(self._store, index)).part

    def finish(self, corpus_parts: Sequence[CorpusPart]) -> CacheManifest:
        """Write the manifest, of the next generation if parts were added; the newest one if there is nothing new.

        Raises MissingOutputError while parts are missing, CacheMismatchError where rows in are not rows out.
        """
        committed, histograms = self._committed()
        missing = sorted({part.index for part in corpus_parts} - committed.keys())
        if missing:
            raise MissingOutputError(
                f"cache {self.uri} is unfinished: {len(missing)} of {len(corpus_parts)} parts are missing, "
                f"{part_name(missing[0])} first: run rskd cache"
            )
        check_no_surplus(committed, corpus_parts, self.uri)
        for part in corpus_parts:
            check_same_windows(committed[part.index], part, self.uri)
        newest = newest_manifest(self._store)
        in_order = (committed[index] for index in sorted(committed))
        if newest is not None and len(newest.parts) == len(committed) and all(map(eq, newest.parts, in_order)):
            return newest
        generation = 0 if newest is None else newest.generation + 1
        manifest = fold(self._head, committed.values(), histograms, generation=generation).in_pages(self._store)
        if not self._store.create(manifest_name(generation), records.seal(manifest.to_dict())):
            return self.finish(corpus_parts)  # another writer was first: its manifest is the newest now
        return manifest

    def _committed(self) -> tuple[dict[int, PartRecord], list[dict[str, Histogram]]]:
        """Committed parts by index, and histograms that add up to all of theirs. Costs one listing and the records
        that no manifest holds yet."""
        newest = newest_manifest(self._store)
        listed = self._store.sizes(PARTS_FOLDER)
        parts = {part.index: part for part in (newest.parts if newest else ())}
        unread = committed_indices(listed) - parts.keys()
        found, histograms = folded(map(self._checked, read_commits(self._store, unread)))
        parts |= {part.index: part for part in found}
        for part in parts.values():
            if listed.get(part.file.removeprefix(f"{PARTS_FOLDER}/")) != part.bytes:
                raise corrupt_part(self.uri, part.index, f"is committed, but {part.file} is missing or truncated")
        return parts, [*([newest.histograms] if newest else []), histograms]

    def _checked(self, commit: Commit) -> Commit:
        if commit.head != self._identity:
            raise corrupt_part(self.uri, commit.part.index, "belongs to another cache")
        return commit


def teacher_loss(label_logprob: np.ndarray) -> float:
    """Sum of -log p(label), nats, in float64."""
    return -float(np.maximum(label_logprob, _LEAST_LOGPROB).sum(dtype=np.float64))
