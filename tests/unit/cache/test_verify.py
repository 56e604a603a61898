from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_caches import VOCAB, make_corpus, make_head, make_part, write_cache

from rskd import records
from rskd.cache.codec import encode, to_table
from rskd.cache.inspection import inspect
from rskd.cache.layout import Layout
from rskd.cache.manifest import newest_manifest, read_commit, record_name, seal_commit
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.errors import CacheMismatchError, CorruptPartError, MissingOutputError, OutputError
from rskd.storage import Store


def _files(uri: str) -> dict[str, bytes]:
    return {str(path.relative_to(uri)): path.read_bytes() for path in Path(uri).rglob("*") if path.is_file()}


def _part_file(uri: str, index: int) -> Path:
    return next(Path(uri, "parts").glob(f"part-{index:05d}-*.parquet"))


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _named(uri: str) -> set[str]:
    report = verify(uri)
    assert not report.ok
    return {problem["part"] for problem in report.problems}


def test_a_whole_cache_is_fine(cache):
    assert verify(cache.uri).to_dict() == {
        "ok": True,
        "parts_checked": 5,
        "rows_checked": 59,
        "problems": [],
        "orphans": [],
        "removed": [],
    }


def test_any_of_a_thousand_flipped_bytes_is_named_and_stops_readers(cache):
    """At least 40 in each file, the others anywhere."""
    rng = np.random.default_rng(0)
    files = _files(cache.uri)
    sizes = np.array([len(data) for data in files.values()])
    flips = 40 + rng.multinomial(1000 - 40 * len(files), sizes / sizes.sum())
    for (name, data), number in zip(files.items(), flips.tolist()):
        path = Path(cache.uri, name)
        expected = name.split("/")[1][:10] if "/" in name else name.split(".")[0]
        for offset, bit in rng.integers([len(data), 8], size=(number, 2)).tolist():
            changed = bytearray(data)
            changed[offset] ^= 1 << bit
            path.write_bytes(changed)
            assert _named(cache.uri) == {expected}, (name, offset, bit)
            if name != "head.json":  # which readers of a finished cache have no use for
                with pytest.raises(CorruptPartError, match=expected):
                    LogitCache.open(cache.uri).read_rows(range(59))
        path.write_bytes(data)
    assert verify(cache.uri).ok


@pytest.mark.parametrize("damage", ["truncated", "missing", "swapped", "foreign"])
def test_damaged_parts_are_named(cache, tmp_path, damage):
    path, bad = _part_file(cache.uri, 2), {"part-00002"}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    elif damage == "swapped":
        other = _part_file(cache.uri, 3)
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        bad = {"part-00002", "part-00003"}
    else:
        other = str(tmp_path / "other")
        write_cache(other, head=make_head(sampling__seed=1), seed=1)
        for name in ("part-00002.json", _part_file(other, 2).name):
            Path(cache.uri, "parts", name).write_bytes(Path(other, "parts", name).read_bytes())
    assert _named(cache.uri) == bad
    if damage != "foreign":  # the manifest names the right file, which is still there
        with pytest.raises(CorruptPartError, match=r"part-0000[23]"):
            LogitCache.open(cache.uri).read_rows([30, 40])


def test_a_missing_record_is_named(cache):
    Path(cache.uri, "parts", "part-00001.json").unlink()
    assert _named(cache.uri) == {"part-00001"}


def test_an_unfinished_cache_is_said_to_be(tmp_path):
    uri, part = str(tmp_path / "cache"), make_corpus()[1]
    CacheWriter(uri, manifest_head=make_head()).commit_part(1, make_part(part), corpus_sha256=part.sha256)
    report = verify(uri)
    assert [problem["part"] for problem in report.problems] == ["manifest"]
    assert "unfinished: run rskd cache" in report.problems[0]["problem"]
    assert report.rows_checked == part.rows


def test_no_cache(tmp_path):
    with pytest.raises(MissingOutputError, match="does not exist: run rskd cache"):
        verify(str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["parts/part-00001.json", "parts/part-00003-*.parquet", "manifest.json", "head.json"])
def test_repair_and_rerun_restore_the_cache(cache, name):
    before = _files(cache.uri)
    Path(cache.uri, "parts", "part-00004-0123456789ab.parquet").write_bytes(b"half")
    Path(cache.uri, "parts", ".tmp-died").write_bytes(b"half")
    _flip(next(Path(cache.uri).glob(name)), 40)
    report = verify(cache.uri, repair=True)
    assert not report.ok
    with pytest.raises(OutputError):
        LogitCache.open(cache.uri)
    writer, corpus = CacheWriter(cache.uri, manifest_head=make_head()), make_corpus()
    todo = {part.index for part in corpus} - writer.committed_parts(corpus)
    assert todo == ({int(name[11:16])} if "part-" in name else set())
    for index in todo:
        writer.commit_part(index, cache.data[index], corpus_sha256=corpus[index].sha256)
    writer.finish(corpus)
    assert _files(cache.uri) == before
    assert verify(cache.uri).ok


def test_repair_leaves_a_whole_cache_alone(cache):
    before = _files(cache.uri)
    assert verify(cache.uri, repair=True).removed == []
    assert _files(cache.uri) == before


def _write_unchecked(uri, change, head=None) -> None:
    """A cache whose writer stored the wrong thing in part 0, with hashes that are right."""
    corpus = make_corpus()
    writer = CacheWriter(uri, manifest_head=head or make_head())
    for part in corpus:
        data = make_part(part)
        if part.index == 0:
            change(data)
        writer.commit_part(part.index, data, corpus_sha256=part.sha256)
    writer.finish(corpus)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.values.__setitem__((3, 2, 0), 0), "counts that do not sum to 22"),
        (lambda data: data.ids.__setitem__((3, 2), 300), "token_ids outside the vocabulary of 300"),
        (lambda data: data.input_ids.__setitem__((3, 2), 300), "input_ids outside the vocabulary of 300"),
        (lambda data: data.row_ids.__setitem__(3, 4), "other row ids than its record says"),
    ],
)
def test_a_wrong_writer_is_found_out(tmp_path, change, problem):
    uri = str(tmp_path / "cache")
    _write_unchecked(uri, change)
    report = verify(uri)
    assert [found["part"] for found in report.problems] == ["part-00000"]
    assert problem in report.problems[0]["problem"]


def test_counts_of_both_kinds_of_entries_are_summed(tmp_path):
    head = make_head(sampling__layout="compact", tokenizer__most_frequent=[7, VOCAB - 1])
    _write_unchecked(str(tmp_path / "whole"), lambda data: None, head)
    assert verify(str(tmp_path / "whole")).ok
    _write_unchecked(str(tmp_path / "less"), lambda data: data.values.__setitem__((3, 2, 0), 0), head)
    assert "counts that do not sum to 22" in verify(str(tmp_path / "less")).problems[0]["problem"]


def test_segments_that_are_not_those_of_the_file_are_named(cache):
    store = Store(cache.uri)
    commit = read_commit(store, 2)
    shifted = (replace(commit.segments[0], sha256="0" * 64), *commit.segments[1:])
    store.write(record_name(2), seal_commit(replace(commit, segments=shifted)))
    store.remove("manifest.json")
    problems = {found["part"]: found["problem"] for found in verify(cache.uri).problems}
    assert problems.keys() == {"manifest", "part-00002"}
    assert "has other segments than its commit record says" in problems["part-00002"]


@pytest.mark.parametrize(
    "call",
    [verify, inspect, LogitCache.open, lambda uri: CacheWriter(uri, manifest_head=make_head())],
    ids=["verify", "inspect", "open", "write"],
)
def test_a_cache_of_another_version_is_refused_by_its_number(cache, call):
    store = Store(cache.uri)
    for name in _files(cache.uri):
        if name.endswith(".json"):
            content = records.unseal(store.read(name), name)
            records.write(store, name, content | {"format_version": 1})
    with pytest.raises(CacheMismatchError, match="has format_version 1, this rskd reads 2"):
        call(cache.uri)


def test_a_part_with_the_layout_of_the_manifest(cache):
    """The bytes of a part are those that the codec gives for its data, and nothing else."""
    manifest = newest_manifest(Store(cache.uri))
    assert manifest is not None
    encoded = encode(to_table(cache.data[1], Layout.of(manifest.head)), 4)[0]
    assert _part_file(cache.uri, 1).read_bytes() == encoded
