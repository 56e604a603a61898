"""Checks of a whole cache.

    manifests, commit records, part files ─► problems by part ─► (repair) removed, so that a rerun recomputes them

A repair that removes anything a reader needs removes the manifests first: the cache is unfinished until `rskd cache`
has recomputed what is missing, and readers refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rskd.cache.codec import flat, from_gaps, list_lengths, num_unique, window_hash
from rskd.cache.layout import Layout
from rskd.cache.manifest import (
    HEAD_FILE,
    PARTS_FOLDER,
    CacheManifest,
    Commit,
    Head,
    committed_indices,
    corrupt_part,
    head_identity,
    manifest_name,
    part_name,
    read_commit,
    read_head,
    read_manifest,
    record_name,
    segments_of,
)
from rskd.cache.parts import PagedParts, PartRecord, is_page
from rskd.cache.reader import LogitCache, read_part_file
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError, OutputError
from rskd.progress import progress_bar
from rskd.storage import Store


@dataclass
class VerifyReport:
    """Outcome of `verify`. `part` of a problem is part-00000, or manifest or head."""

    parts_checked: int = 0
    rows_checked: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)  # files that no reader looks at
    removed: list[str] = field(default_factory=list)  # by the repair

    def add(self, part: str, error: Exception) -> None:
        """Note a problem."""
        self.problems.append({"part": part, "problem": str(error)})

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As `rskd verify --json` prints it."""
        return {"ok": self.ok, **asdict(self)}


def verify(uri: str, *, repair: bool = False) -> VerifyReport:
    """Check every file of a cache: digests and hashes, and that rows and entries are what they must be.

    `repair` removes what is bad, so that a rerun recomputes it, orphans and unfinished uploads; not while a job writes
    the cache.
    Raises MissingOutputError if there is no cache.
    """
    store = Store(uri)
    files = store.sizes(recursive=True, temporary=True)
    if not files:
        raise MissingOutputError(f"cache {uri} does not exist: run rskd cache")
    report = VerifyReport()
    head = _check_head(store, report)
    manifest, pages = _check_manifests(store, files, head, report)
    head = head or (manifest and manifest.head)
    listed = {part.index: part for part in (manifest.parts if manifest else ())}
    recorded = committed_indices(name.removeprefix(f"{PARTS_FOLDER}/") for name in files)
    known = {HEAD_FILE, *_manifests(files), *pages, *map(record_name, recorded)}
    bad: set[int] = set()
    with progress_bar("verify", len(recorded | listed.keys())) as advance:
        for index in sorted(recorded | listed.keys()):
            commit, is_good = _check(store, index, listed.get(index), head, report)
            known |= {commit.part.file} if commit else set()
            bad |= set() if is_good else {index}
            advance()
    report.orphans = sorted(files.keys() - known)
    if repair:
        _repair(store, files, bad, report)
    return report


def parse_parts(ranges: str) -> list[range]:
    """The parts that `--parts` names: 7, 0-9, or several with commas between; ConfigError for anything else."""
    found = []
    for one in ranges.split(","):
        matched = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", one, re.ASCII)
        first, last = (int(matched[1]), int(matched[2] or matched[1])) if matched else (1, 0)
        if last < first:
            raise ConfigError(f"--parts={ranges}: {one!r} is no part or range of parts: write 7, 0-9 or 0-9,500")
        found.append(range(first, last + 1))
    return found


def verify_parts(uri: str, ranges: Sequence[range]) -> VerifyReport:
    """`verify` of the head, the newest manifest and these parts alone, without a listing of the cache.

    Nothing else is read, so files that no record names, and older generations, go unseen. Raises MissingOutputError for
    a cache that is missing or unfinished, CorruptPartError for a changed manifest, ConfigError for a part that it does
    not have.
    """
    parts = LogitCache.open(uri).manifest.parts
    last = max(one[-1] for one in ranges)
    if last >= len(parts):
        raise ConfigError(f"--parts names part {last}, cache {uri} has parts 0-{len(parts) - 1}: name some of those")
    store, report = Store(uri), VerifyReport()
    head = _check_head(store, report)
    wanted = sorted({*chain.from_iterable(ranges)})
    with progress_bar("verify", len(wanted)) as advance:
        for place in wanted:
            _check(store, parts[place].index, parts[place], head, report)
            advance()
    return report


def _check(
    store: Store, index: int, listed: PartRecord | None, head: Head | None, report: VerifyReport
) -> tuple[Commit | None, bool]:
    """Check one part: its commit record, if that is whole, and whether all of it is; the report has what is not."""
    report.parts_checked += 1
    commit = None
    try:
        commit = _check_record(store, index, listed, head)
        _check_part(store, commit, head)
    except CorruptPartError as error:
        report.add(part_name(index), error)
        return commit, False
    report.rows_checked += commit.part.rows
    return commit, True


def _check_head(store: Store, report: VerifyReport) -> Head | None:
    try:
        return read_head(store)
    except OutputError as error:
        report.add("head", error)
        return None


def _manifests(files: Iterable[str]) -> list[str]:
    return sorted(name for name in files if re.fullmatch(r"manifest(-[0-9]+)?\.json", name))


def _check_manifests(
    store: Store, files: Iterable[str], head: Head | None, report: VerifyReport
) -> tuple[CacheManifest | None, set[str]]:
    """Check all generations; the newest, or None if there is no whole one, and the pages that any of them has."""
    newest, pages = None, set[str]()
    for generation in range(len(_manifests(files))):
        try:
            newest = read_manifest(store, generation)
            if isinstance(newest.parts, PagedParts):
                pages |= {page.file for page in newest.parts.pages}
                newest.parts.check()
            if head is not None and head_identity(newest.head) != head_identity(head):
                raise CorruptPartError(f"{manifest_name(generation)} of cache {store.uri} is that of another cache")
        except OutputError as error:
            report.add("manifest", error)
            newest = None
    if not _manifests(files):
        report.add("manifest", MissingOutputError(f"cache {store.uri} is unfinished: run rskd cache"))
    return newest, pages


def _check_record(store: Store, index: int, listed: PartRecord | None, head: Head | None) -> Commit:
    commit = read_commit(store, index)
    if head is not None and commit.head != head_identity(head):
        raise corrupt_part(store.uri, index, "belongs to another cache")
    if listed is not None and commit.part != listed:
        raise corrupt_part(store.uri, index, "has another commit record than the manifest says")
    return commit


def _check_part(store: Store, commit: Commit, head: Head | None) -> None:
    part = commit.part
    data = read_part_file(store, part)
    if segments_of(data, [segment.end for segment in commit.segments]) != commit.segments:
        raise corrupt_part(store.uri, part.index, "has other segments than its commit record says")
    if head is None:
        return  # nothing says what must be in it
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    table = file.read(use_threads=False)  # Arrow's threads may abort a process that ends just after
    wrong = next(_inconsistencies(table, part, head), None)
    if wrong is not None:
        raise corrupt_part(store.uri, part.index, wrong)


def _inconsistencies(table: pa.Table, part: PartRecord, head: Head) -> Iterator[str]:
    """What a writer got wrong in a part that is otherwise as it was written."""
    layout = Layout.of(head)
    seq_len, vocab_size = head["corpus"]["seq_len"], head["tokenizer"]["vocab_size"]
    if not np.array_equal(table["row_id"].to_numpy(), np.arange(part.first_row, part.first_row + part.rows)):
        yield "has other row ids than its record says"
    by_position = (*(entries.lengths for entries in layout.entries), *layout.statistics)
    lengths = dict.fromkeys(by_position, (seq_len, part.tokens))
    for name, (each, total) in (lengths | {"input_ids": (seq_len + 1, part.rows * (seq_len + 1))}).items():
        if not (list_lengths(table, name) == each).all() or part.rows * each != total:
            yield f"has rows whose {name} are not {each} long"
    for entries in layout.entries:
        per_row = flat(table, entries.lengths).reshape(part.rows, -1).sum(1, dtype=np.int64)
        for name in filter(None, (entries.ids, entries.values)):
            if not np.array_equal(list_lengths(table, name), per_row):
                yield f"has {name} that {entries.lengths} does not count"
    yield from _wrongly_counted(table, part, layout)
    for name, ids in (*_ids(table, layout), ("input_ids", flat(table, "input_ids"))):
        if len(ids) and not (ids.min() >= 0 and ids.max() < vocab_size):
            yield f"has {name} outside the vocabulary of {vocab_size}"
    rounds = np.where(num_unique(table, layout), layout.rounds, 0)
    if layout.counts and not np.array_equal(_sums(table, layout), rounds):
        yield f"has counts that do not sum to {layout.rounds}"
    windows = flat(table, "input_ids").reshape(part.rows, -1)
    if not np.array_equal(table["window_hash"].to_numpy(), window_hash(windows)):
        yield "has window hashes that are not those of its windows"


def _wrongly_counted(table: pa.Table, part: PartRecord, layout: Layout) -> Iterator[str]:
    """Entries and statistics stand where there is a loss, and nowhere else."""
    unique = num_unique(table, layout)
    if unique.sum() != part.samples:
        yield "has another number of entries than its record says"
    if not layout.masked and not unique.all():
        yield "has positions without entries"
    if layout.masked and np.count_nonzero(unique) != part.loss_tokens:
        yield "has another number of positions with a loss than its record says"
    if layout.masked and any(flat(table, name)[unique == 0].any() for name in layout.statistics):
        yield "has statistics where there is no loss"


def _ids(table: pa.Table, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """Name and ids, or ranks, of each of the layout's entries."""
    for entries in layout.entries:
        ids = flat(table, entries.ids)
        yield entries.ids, ids if layout.ranked is None else from_gaps(ids, flat(table, entries.lengths))


def _sums(table: pa.Table, layout: Layout) -> np.ndarray:
    """Sum of the counts of each position, [R·S]."""
    total = np.zeros(1)
    for entries in layout.entries:
        lengths = flat(table, entries.lengths)
        counts = None if entries.values is None else flat(table, entries.values)
        position = np.repeat(np.arange(len(lengths)), lengths)
        total = total + np.bincount(position, weights=counts, minlength=len(lengths))
    return total


def _repair(store: Store, files: Iterable[str], bad: set[int], report: VerifyReport) -> None:
    """Remove in an order that never leaves a manifest without its parts, or a record without its file."""
    doomed = [*_manifests(files), *filter(is_page, sorted(files))] if report.problems else []
    doomed += [HEAD_FILE] if any(problem["part"] == "head" for problem in report.problems) else []
    doomed += [record_name(index) for index in sorted(bad)]
    stems = tuple(f"{PARTS_FOLDER}/{part_name(index)}-" for index in bad)
    doomed += [name for name in sorted(files) if name in report.orphans or name.startswith(stems)]
    report.removed = [name for name in dict.fromkeys(doomed) if name in files]
    for name in report.removed:
        store.remove(name)
    report.removed += store.abort_uploads()
