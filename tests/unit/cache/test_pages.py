"""A manifest whose parts are in pages: the same cache, read and checked part by part; a small one stays as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_caches import PARTS, ROWS, make_corpus, make_head, make_part, write_cache

from rskd.cache import parts as pages
from rskd.cache.inspection import inspect
from rskd.cache.loader import CacheLoader
from rskd.cache.manifest import CacheManifest, PartRecord, newest_manifest
from rskd.cache.parts import PagedParts, in_pages, part_rows
from rskd.cache.reader import LogitCache
from rskd.cache.verify import parse_parts, verify, verify_parts
from rskd.cache.writer import CacheWriter
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError
from rskd.storage import Store


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of 5 parts in pages of 2."""
    monkeypatch.setattr(pages, "PAGE_PARTS", 2)
    write_cache(str(tmp_path / "paged"))
    return tmp_path / "paged"


def make_records(count: int) -> tuple[PartRecord, ...]:
    losses = [1.5, None]
    return tuple(
        PartRecord(
            i, f"parts/part-{i:05d}.parquet", 8 * i, 8, 64, 640, 999, *(f"{n * count + i:064x}" for n in range(3))
        )._replace(teacher_loss=losses[i % 2], loss_tokens=[None, 0][i % 2])
        for i in range(count)
    )


def test_a_paged_cache_reads_as_one_that_is_not(paged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "PAGE_PARTS", PARTS)
    write_cache(str(tmp_path / "whole"))
    content = json.loads((paged / "manifest.json").read_text())
    assert (content["format_version"], [page["parts"] for page in content["pages"]]) == (3, [2, 2, 1])
    assert "parts" not in content
    plain = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert (plain["format_version"], len(plain["parts"])) == (2, PARTS)
    assert "pages" not in plain

    found, whole = (LogitCache.open(str(folder)) for folder in (paged, tmp_path / "whole"))
    assert isinstance(found.manifest.parts, PagedParts)
    assert found.manifest.parts == whole.manifest.parts
    assert found.manifest.totals == whole.manifest.totals
    assert found.manifest.histograms == whole.manifest.histograms
    np.testing.assert_array_equal(found.group_rows, whole.group_rows)
    steps = [next(iter(CacheLoader(cache, global_batch=8, start_step=5))) for cache in (found, whole)]
    assert steps[0].row_ids.tolist() == steps[1].row_ids.tolist()
    assert verify(str(paged)).to_dict() == verify(str(tmp_path / "whole")).to_dict()
    assert inspect(str(paged))["parts"] == PARTS


def test_records_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "PAGE_PARTS", 300)
    store, made = Store(str(tmp_path)), make_records(2000)
    found = in_pages(store, made)
    assert isinstance(found, PagedParts)
    assert [page.parts for page in found.pages] == [300] * 6 + [200]
    assert found == made
    assert (found[0], found[-1], found[301], found[1998:]) == (made[0], made[-1], made[301], made[1998:])
    assert part_rows(found).tolist() == part_rows(made).tolist()
    assert in_pages(store, found) is found
    assert in_pages(store, made[:300]) == made[:300]
    with pytest.raises(IndexError):
        found[2000]
    again = in_pages(store, make_records(2001)[:1200])  # other hashes, so other pages
    assert isinstance(again, PagedParts)
    assert not {page.file for page in again.pages} & {page.file for page in found.pages}


def test_a_cache_that_grows_keeps_its_pages_and_its_older_generation(paged: Path):
    corpus, writer = make_corpus(8), CacheWriter(str(paged), manifest_head=make_head())
    before = {path.name: path.read_bytes() for path in paged.glob("*.*")}
    grown = [part for part in corpus if part.index >= PARTS - 1]
    (paged / "manifest.json").unlink()  # the last part of before was shorter: made again, as if the cache were begun
    for name in [*before, *(f"parts/{file.name}" for file in paged.glob(f"parts/part-{PARTS - 1:05d}*"))]:
        if name != "head.json":
            (paged / name).unlink(missing_ok=True)
    first = CacheWriter(str(paged), manifest_head=make_head())
    first.finish(corpus[: PARTS - 1])
    pages_of_4 = {path.name for path in paged.glob("parts-*")}
    for part in grown:
        writer.commit_part(part.index, make_part(part), corpus_sha256=part.sha256)
    writer.finish(corpus)
    assert (len(pages_of_4), len([*paged.glob("parts-*")])) == (2, 4)
    assert {path.name for path in paged.glob("parts-*")} > pages_of_4
    assert len(LogitCache.open(str(paged)).manifest.parts) == 8
    assert len(LogitCache.open(str(paged), generation=0).manifest.parts) == PARTS - 1
    assert verify(str(paged)).to_dict()["orphans"] == []
    assert writer.finish(corpus).generation == 1


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_page_is_reported_and_recomputed_from_the_records(paged: Path, damage: str):
    manifest = (paged / "manifest.json").read_bytes()
    page = sorted(paged.glob("parts-*"))[1]
    data = page.read_bytes()
    page.unlink()
    if damage == "changed":
        page.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    cache = LogitCache.open(str(paged))
    with pytest.raises(CorruptPartError, match=rf"{page.name} is .*: run rskd verify --repair"):
        cache.read_rows([0])
    report = verify(str(paged), repair=True)
    assert [problem["part"] for problem in report.problems] == ["manifest"]
    assert not list(paged.glob("parts-*"))
    CacheWriter(str(paged), manifest_head=make_head()).finish(make_corpus())
    assert (paged / "manifest.json").read_bytes() == manifest
    assert page.read_bytes() == data
    assert verify(str(paged)).ok


def test_some_parts_are_verified_alone(paged: Path):
    report = verify_parts(str(paged), parse_parts("1-2, 4"))
    assert (report.ok, report.parts_checked, report.rows_checked) == (True, 3, 3 * ROWS - 1)
    bad = next(paged.glob("parts/part-00003-*"))
    bad.write_bytes(bad.read_bytes()[:-1])
    assert verify_parts(str(paged), [range(3)]).ok
    assert [one["part"] for one in verify_parts(str(paged), [range(5)]).problems] == ["part-00003"]
    with pytest.raises(ConfigError, match=r"names part 5, cache .* has parts 0-4"):
        verify_parts(str(paged), parse_parts("0-5"))


@pytest.mark.parametrize("ranges", ["", "a", "-1", "3-1", "1,,2", "1-2-3", "1.5", "٣"])
def test_ranges_that_are_none(ranges: str):
    with pytest.raises(ConfigError, match="no part or range of parts"):
        parse_parts(ranges)


def test_a_paged_manifest_of_another_version_is_refused(paged: Path):
    manifest = newest_manifest(Store(str(paged)))
    assert manifest is not None
    from rskd import records

    for content in (manifest.to_dict() | {"format_version": 2}, {**manifest.to_dict(), "format_version": 4}):
        records.write(Store(str(paged)), "manifest.json", content)
        with pytest.raises(CacheMismatchError, match="this rskd reads 3"):
            LogitCache.open(str(paged))
    assert CacheManifest.from_dict(manifest.to_dict(), Store(str(paged))) == manifest
