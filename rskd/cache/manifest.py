"""What a cache says of itself: its head, a commit record for each part, and the manifest that lists them all.

    head.json (first writer) ─► parts/part-00000.json … (each created once) ─► manifest.json, manifest-1.json, …

All are sealed JSON (`rskd.records`). A part is committed when its record exists; the cache is finished when a manifest
exists, and readers take the newest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from itertools import count, pairwise
from typing import Any, Protocol

from rskd import records
from rskd.cache.histogram import Histogram, add_up
from rskd.cache.parts import PAGED_VERSION, Page, PagedParts, PartRecord, in_pages
from rskd.difference import Difference, first_difference
from rskd.errors import CacheMismatchError, CorruptPartError, MissingOutputError
from rskd.storage import Store

FORMAT_VERSION = 2  # 1 had no segments in its commit records
HEAD_FILE = "head.json"
PARTS_FOLDER = "parts"
_HEAD_SECTIONS = ("sampling", "teacher", "tokenizer", "corpus")
# A corpus grows (its parts are compared one by one), and a fingerprint tells a teacher's weights wherever they lie.
_FREE_FIELDS = {
    "corpus": {"fingerprint", "parts"},
    "teacher": {"model", "revision", "engine_version"},
}
# Fields that heads of older caches lack, with what those caches were made with: they leave a head's identity as it is.
_ADDED_FIELDS: dict[str, dict[str, Any]] = {"corpus": {"bos": "none", "bos_ids": []}}
_AHEAD = 1024  # commit records held at once, 4 kB each
READERS = 16  # small files read at once: an object store answers each in milliseconds

_ANOTHER_NAME = "choose another name for the run, or remove the cache, and run rskd cache"

Head = Mapping[str, Any]  # sampling, teacher, tokenizer, corpus


class CorpusPart(Protocol):
    """What the writer has to know of a part of the packed corpus."""

    @property
    def index(self) -> int: ...
    @property
    def first_row(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a part file, from the end of the one before it: a Parquet row group, or the footer."""

    end: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """A commit record: the part, the identity of the head that it was made under, and its histograms.

    Segments, row groups first and the footer last, let a reader check a row group without reading the whole file.
    """

    part: PartRecord
    segments: tuple[Segment, ...]
    head: str
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class CacheManifest:
    """Everything that a reader has to know about a cache."""

    format_version: int
    generation: int
    sampling: dict[str, Any]
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any]
    parts: Sequence[PartRecord]  # in their order; many are in pages
    histograms: dict[str, Histogram]
    totals: dict[str, Any]  # rows, tokens, samples, bytes (of the part files), teacher_lm_loss; loss_tokens if masked

    def to_dict(self) -> dict[str, Any]:
        """As it is sealed."""
        content = _to_dict(self)
        if isinstance(self.parts, PagedParts):
            del content["parts"]
            return content | {"pages": self.parts.to_dicts(), "format_version": PAGED_VERSION}
        return content | {"parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], store: Store | None = None) -> CacheManifest:
        """Inverse of `to_dict`; the parts may be parsed already, or in pages in the store."""
        if "pages" not in content:
            return cls(**{**content, "parts": tuple(map(_parse_part, content["parts"]))})
        assert store is not None
        rest = {name: value for name, value in content.items() if name != "pages"}
        parts = PagedParts(store, [Page(**page) for page in content["pages"]])
        return cls(**{**rest, "parts": parts, "format_version": FORMAT_VERSION})

    def in_pages(self, store: Store) -> CacheManifest:
        """The same, whose parts, if they are many, were written in pages."""
        return replace(self, parts=in_pages(store, self.parts))

    @property
    def teacher_lm_loss(self) -> float | None:
        """The teacher's mean -log p(label), nats/token with a loss; None if a part was made before it was measured."""
        return self.totals.get("teacher_lm_loss")

    @property
    def masked(self) -> bool:
        """Whether some positions have no loss, and so no entries."""
        return self.corpus.get("masked", False)

    @property
    def loss_tokens(self) -> int:
        """Positions that have a loss: all of them unless the cache is masked."""
        return self.totals.get("loss_tokens", self.totals["tokens"])

    @property
    def head(self) -> Head:
        """What was known before the first part."""
        return {section: getattr(self, section) for section in _HEAD_SECTIONS}

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return records.digest(self.to_dict())


def fold(
    head: Head, parts: Iterable[PartRecord], histograms: Iterable[dict[str, Histogram]], *, generation: int
) -> CacheManifest:
    """The manifest of these parts, whose histograms add up."""
    in_order = tuple(sorted(parts, key=lambda part: part.index))
    totals: dict[str, Any] = {
        key: sum(getattr(part, key) for part in in_order) for key in ("rows", "tokens", "samples", "bytes")
    }
    if head["corpus"].get("masked"):
        totals["loss_tokens"] = sum(part.loss_tokens or 0 for part in in_order)
    losses = [part.teacher_loss for part in in_order if part.teacher_loss is not None]
    if in_order and len(losses) == len(in_order):
        totals["teacher_lm_loss"] = math.fsum(losses) / max(1, totals.get("loss_tokens", totals["tokens"]))
    return CacheManifest(
        format_version=FORMAT_VERSION,
        generation=generation,
        **{section: dict(head[section]) for section in _HEAD_SECTIONS},
        parts=in_order,
        histograms=add_up(histograms),
        totals=totals,
    )


def folded(commits: Iterable[Commit]) -> tuple[list[PartRecord], dict[str, Histogram]]:
    """The parts of commit records, and the sum of their histograms, of which a few are held at a time."""
    parts: list[PartRecord] = []
    histograms: list[dict[str, Histogram]] = []
    for commit in commits:
        parts.append(commit.part)
        histograms.append(commit.histograms)
        if len(histograms) == _AHEAD:
            histograms = [add_up(histograms)]
    return parts, add_up(histograms)


def part_name(index: int) -> str:
    """How messages and files call a part: part-00003."""
    return f"part-{index:05d}"


def record_name(index: int) -> str:
    """Name of a commit record under the cache's URI."""
    return f"{PARTS_FOLDER}/{part_name(index)}.json"


def manifest_name(generation: int) -> str:
    """Name of a manifest under the cache's URI."""
    return "manifest.json" if generation == 0 else f"manifest-{generation}.json"


def corrupt_part(uri: str, index: int, problem: str) -> CorruptPartError:
    """The error that names a part, what is wrong with it, and the fix."""
    return CorruptPartError(
        f"{part_name(index)} of cache {uri} {problem}: run rskd verify --repair on it, then rskd cache"
    )


def newest_manifest(store: Store) -> CacheManifest | None:
    """The manifest of the last generation, found by probing and not by listing; None for an unfinished cache."""
    generation = next(g for g in count() if not store.exists(manifest_name(g))) - 1
    return None if generation < 0 else read_manifest(store, generation)


def read_manifest(store: Store, generation: int) -> CacheManifest:
    """The manifest of one generation; CorruptPartError if it was changed or is another's."""
    origin = f"{store.uri}/{manifest_name(generation)}"
    content = records.unseal(store.read(manifest_name(generation)), origin, _parse_part)
    content = _checked_version(content, origin, PAGED_VERSION if "pages" in content else FORMAT_VERSION)
    if content["generation"] != generation:
        raise CorruptPartError(f"{origin} is of generation {content['generation']}: run rskd verify --repair on it")
    return CacheManifest.from_dict(content, store)


def read_head(store: Store) -> dict[str, Any]:
    """The head of a cache that was begun; MissingOutputError where there is none."""
    head = records.read(store, HEAD_FILE)
    if head is None:
        raise MissingOutputError(f"cache {store.uri} does not exist: run rskd cache")
    return _checked_version(head, f"{store.uri}/{HEAD_FILE}")


def committed_indices(listing: Iterable[str]) -> set[int]:
    """Parts that have a commit record, from the names in the folder of the parts."""
    names = (name for name in listing if name.startswith("part-") and name.endswith(".json"))
    return {int(stem) for name in names if (stem := name[len("part-") : -len(".json")]).isdecimal()}


def expected_parts(head: Head, committed: Iterable[int]) -> int | None:
    """Parts of a whole cache, at least, for the corpus may have grown since its head was written; None if unknown."""
    at_first = head["corpus"].get("parts")
    return at_first and max([at_first, *(index + 1 for index in committed)])


def segments_of(data: bytes, ends: Iterable[int]) -> tuple[Segment, ...]:
    """Segments of a part file that end there."""
    view = memoryview(data)
    return tuple(Segment(end, sha256(view[start:end]).hexdigest()) for start, end in pairwise([0, *ends]))


def seal_commit(commit: Commit) -> bytes:
    """The bytes of a commit record; `record_sha256`, which is their hash, is left out."""
    part = commit.part.to_dict()
    del part["record_sha256"]
    segments = [[segment.end, segment.sha256] for segment in commit.segments]
    shared = {"format_version": FORMAT_VERSION, "head": commit.head, "histograms": commit.histograms}
    return records.seal({**part, **shared, "segments": segments})


def read_commit(store: Store, index: int) -> Commit:
    """A commit record; CorruptPartError if it is missing, changed, or another part's."""
    try:
        data = store.read(record_name(index))
        content = records.unseal(data, record_name(index))
    except (MissingOutputError, CorruptPartError):
        raise corrupt_part(store.uri, index, "has no whole commit record") from None
    _checked_version(content, f"{store.uri}/{record_name(index)}")
    facts = {name: content[name] for name in PartRecord._fields if name in content}
    part = PartRecord(**facts, record_sha256=sha256(data).hexdigest())
    if part.index != index:
        raise corrupt_part(store.uri, index, f"has the commit record of {part_name(part.index)}")
    segments = tuple(Segment(*segment) for segment in content["segments"])
    return Commit(part, segments, content["head"], content["histograms"])


def read_commits(store: Store, indices: Iterable[int]) -> Iterator[Commit]:
    """Commit records of many parts, in their order; a few are held at a time."""
    in_order = sorted(indices)
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(in_order), _AHEAD):
            yield from pool.map(lambda index: read_commit(store, index), in_order[start : start + _AHEAD])


def head_identity(head: Head) -> str:
    """What all parts of a cache must share, as a hash: two heads with one identity may write one cache."""
    recipe = cache_recipe(head)
    for section, added in _ADDED_FIELDS.items():
        fields = recipe[section].items()
        recipe[section] = {key: value for key, value in fields if key not in added or value != added[key]}
    return records.digest(recipe)


def cache_recipe(head: Head) -> dict[str, dict[str, Any]]:
    """What the parts of a cache depend on, in the sections that `head` has."""
    return {
        section: {
            key: value
            for key, value in {**_ADDED_FIELDS.get(section, {}), **head[section]}.items()
            if key not in _FREE_FIELDS.get(section, ())
        }
        for section in _HEAD_SECTIONS
        if section in head
    }


def check_same_head(stored: Head, wanted: Head, uri: str) -> None:
    """CacheMismatchError, naming the first field that differs, if `wanted` cannot go on with a cache of `stored`."""
    changed = first_difference(cache_recipe(stored), cache_recipe(wanted))
    if changed is None:
        return
    if changed.key == "teacher.fingerprint":
        now = f"{wanted['teacher']['model']} (as it is now)"
        changed = Difference("teacher.model", stored["teacher"]["model"], now)
    if changed.key == "corpus.masked":
        changed = Difference("corpus.kind", *("chat" if masked else "text" for masked in changed[1:]))
    is_value = changed.key.startswith("corpus.") and not str(changed.made).startswith(("None", "sha256:"))
    undo = f"set {changed.key}={changed.made}" if is_value else "undo the change"
    raise CacheMismatchError(
        f"cache {uri} was made with {changed}: {undo}, or choose another name for the run or the sampling and run rskd "
        "cache"
    )


def check_same_windows(cached: PartRecord, corpus: CorpusPart, uri: str) -> None:
    """CacheMismatchError if a part of the cache at `uri` was made from other windows than the corpus has there."""
    made_from = (cached.first_row, cached.rows, cached.corpus_sha256)
    if made_from != (corpus.first_row, corpus.rows, corpus.sha256):
        raise CacheMismatchError(
            f"{part_name(cached.index)} of cache {uri} was made from other windows than the corpus has "
            f"({cached.rows} rows from {cached.first_row}, not {corpus.rows} from {corpus.first_row}; sha256 "
            f"{cached.corpus_sha256[:12]}, not {corpus.sha256[:12]}): {_ANOTHER_NAME}"
        )


def check_no_surplus(cached: Iterable[int], corpus_parts: Iterable[CorpusPart], uri: str) -> None:
    """CacheMismatchError if the cache at `uri` has a part that its corpus has not."""
    surplus = sorted({*cached} - {part.index for part in corpus_parts})
    if surplus:
        raise CacheMismatchError(f"cache {uri} has {part_name(surplus[0])}, which its corpus has not: {_ANOTHER_NAME}")


def _parse_part(value: Any) -> Any:
    """A record of a part as such, anything else as it is."""
    return PartRecord(**value) if isinstance(value, dict) and "record_sha256" in value else value


def _to_dict(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in fields(instance)}


def _checked_version(content: dict[str, Any], origin: str, version: int = FORMAT_VERSION) -> dict[str, Any]:
    if content["format_version"] != version:
        raise CacheMismatchError(
            f"{origin} has format_version {content['format_version']}, this rskd reads {version}: "
            "use the rskd that made it"
        )
    return content
