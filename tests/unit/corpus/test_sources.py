import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rskd.config import SourceConfig
from rskd.corpus import sources
from rskd.corpus.readers import FileRange
from rskd.corpus.sources import Group, SourceFile, group_files, list_files, new_groups, read_documents
from rskd.errors import CacheMismatchError, ConfigError


def source(kind: Any, uri: Path | str | None = None, **options: Any) -> SourceConfig:
    return SourceConfig(kind=kind, uri=None if uri is None else str(uri), **options)


def documents(config: SourceConfig) -> list[str]:
    groups = group_files(list_files(config), kind=config.kind)
    return [text for group in groups for text in read_documents(config, group)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": 1}) + "\n" for text in texts))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "deep/er/c.rst", "d.py", ".hidden/e.txt", ".f.txt", "blank.txt"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("  \n" if name == "blank.txt" else f"text of {name}")
    return tmp_path / "docs"


class TestText:
    def test_a_folder_is_read_recursively_in_name_order(self, folder: Path):
        assert documents(source("text", folder)) == ["text of a.md", "text of b.txt", "text of deep/er/c.rst"]

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("d.py", ["text of d.py"]),
            ("*.txt", ["text of b.txt"]),
            ("?.*", ["text of a.md", "text of b.txt", "text of d.py"]),
            ("**/*.rst", ["text of deep/er/c.rst"]),
            ("*/er/*", ["text of deep/er/c.rst"]),
        ],
    )
    def test_a_file_or_a_glob(self, folder: Path, uri: str, expected: list[str]):
        assert documents(source("text", folder / uri)) == expected

    def test_a_relative_path_is_relative_to_the_working_directory(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(folder)
        for uri in ("b.txt", "./b.txt", "b*.txt"):
            config = source("text", uri)
            assert documents(config) == ["text of b.txt"]
            assert Path(str(sources.located(config).uri)).is_absolute()
            assert documents(sources.located(config)) == ["text of b.txt"]

    def test_compressed_and_undecodable(self, tmp_path: Path):
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"zipped") + gzip.compress(b" twice"))
        (tmp_path / "b.txt").write_bytes(b"caf\xe9")
        assert documents(source("text", tmp_path)) == ["zipped twice", "caf\ufffd"]


class TestPaths:
    @pytest.mark.parametrize(
        "name", ["a[1]", "w*ld", "what?", "with space", "~b", "日本", os.fsdecode(b"caf\xe9"), "a\nb"]
    )
    def test_a_path_that_exists_is_what_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("one")
        (tmp_path / "a1").mkdir()
        (tmp_path / "a1" / "a1.txt").write_text("what the pattern a[1] finds")
        monkeypatch.chdir(tmp_path)
        for uri in (name, f"{name}/*.txt", f"{name}/{name}.txt", str(tmp_path / name), str(tmp_path / name / "*.txt")):
            config = source("text", uri)
            assert documents(config) == documents(sources.located(config)) == ["one"]
        [group] = group_files(list_files(config), kind="text")
        assert Group.from_dict(json.loads(json.dumps(group.to_dict()))) == group

    def test_a_file_is_named_on_one_line(self, tmp_path: Path):
        (tmp_path / os.fsdecode(b"a\nb\xff.txt")).write_bytes(b"\0")
        with pytest.raises(ConfigError) as caught:
            documents(source("text", tmp_path))
        assert r"a\nb\udcff.txt of the corpus source holds NUL" in str(caught.value)
        assert str(caught.value).encode()

    def test_the_home_directory(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(folder))
        for uri in ("~/b.txt", "~/b*.txt"):
            assert (
                documents(sources.located(source("text", uri))) == documents(source("text", uri)) == ["text of b.txt"]
            )
        with pytest.raises(ConfigError, match="does not exist"):
            list_files(source("text", "~nobody-of-that-name/a.txt"))


class TestLinks:
    @pytest.fixture
    def links(self, tmp_path: Path) -> Path:
        """A snapshot of the hub: links to blobs, a folder that is a link, and one to its own parent."""
        (tmp_path / "blobs" / "more").mkdir(parents=True)
        write_jsonl(tmp_path / "blobs" / "abc", ["one"])
        (tmp_path / "blobs" / "def").write_bytes(gzip.compress(b'{"text": "two"}\n'))
        write_jsonl(tmp_path / "blobs" / "more" / "c.jsonl", ["three"])
        (tmp_path / "links").mkdir()
        for name, target in (("a.jsonl", "abc"), ("b.jsonl.gz", "def"), ("sub", "more"), ("loop", "../links")):
            (tmp_path / "links" / name).symlink_to(f"../blobs/{target}" if name != "loop" else target)
        return tmp_path / "links"

    def test_links_are_followed(self, links: Path):
        assert documents(source("jsonl", links)) == ["one", "two", "three"]
        for uri, expected in (("*.jsonl", ["one"]), ("a.jsonl", ["one"]), ("b.jsonl.gz", ["two"]), ("sub", ["three"])):
            config = sources.located(source("jsonl", links / uri))
            assert documents(config) == expected
        assert documents(source("jsonl", links / "**" / "*.jsonl")) == ["one", "three"]

    def test_broken_links_are_named_if_they_are_wanted(self, links: Path):
        for name, target in ((".#lock.jsonl", "nowhere"), ("other", "nowhere")):
            (links / name).symlink_to(target)
        assert len(documents(source("jsonl", links))) == 3
        for target in ("nowhere", "z.jsonl"):  # the second is its own target
            (links / "z.jsonl").symlink_to(target)
            with pytest.raises(ConfigError, match=r"z\.jsonl .*link whose target is missing"):
                list_files(source("jsonl", links))
            (links / "z.jsonl").unlink()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read_is_named(self, links: Path):
        write_jsonl(links / "z.jsonl", ["secret"]).chmod(0)
        with pytest.raises(ConfigError, match=r"z\.jsonl .*may not be read"):
            list_files(source("jsonl", links))


class TestJsonl:
    @pytest.mark.parametrize("limit", [1, 7, 40, 1000])
    def test_ranges_of_a_large_file_share_its_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
        texts = [f"line {n} " + "x" * (n * 7 % 30) for n in range(20)]
        path = write_jsonl(tmp_path / "a.jsonl", texts)
        path.write_text(path.read_text().rstrip("\n"))  # no newline at the end of the file
        monkeypatch.setattr(sources, "GROUP_BYTES", limit)
        assert documents(source("jsonl", path)) == texts

    def test_a_range_that_begins_with_a_line_has_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = write_jsonl(tmp_path / "a.jsonl", ["a"] * 4)
        monkeypatch.setattr(sources, "GROUP_BYTES", path.stat().st_size // 4)
        config = source("jsonl", path)
        groups = group_files(list_files(config), kind="jsonl")
        assert [list(read_documents(config, group)) for group in groups] == [["a"]] * 4

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
    def test_compressed(self, tmp_path: Path, suffix: str):
        lines = write_jsonl(tmp_path / "plain", ["one", "two"], field="body").read_bytes()
        compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: pa.compress(data, "zstd", True)}
        (tmp_path / f"a.jsonl{suffix}").write_bytes(compress[suffix](lines))
        assert documents(source("jsonl", tmp_path, field="body")) == ["one", "two"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"txt": "a"}', "no text in 'text', only txt: correct the file, or set corpus.source.field"),
            ('{"text": 3}', "no text in 'text'"),
            ("[1]", "holds one JSON array"),
            ("{broken", "not JSON Lines"),
        ],
    )
    def test_bad_lines(self, tmp_path: Path, line: str, message: str):
        (tmp_path / "a.jsonl").write_text(line + "\n")
        with pytest.raises(ConfigError, match=message) as caught:
            documents(source("jsonl", tmp_path))
        assert "a.jsonl" in str(caught.value)

    def test_null_and_blank_rows_are_no_documents(self, tmp_path: Path):
        (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": " "}\n{"text": "a\\ud800"}\n')
        assert documents(source("jsonl", tmp_path)) == ["a?"]

    def test_corrupt_compression_names_the_file(self, tmp_path: Path):
        (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip at all")
        with pytest.raises(ConfigError, match=r"a\.jsonl\.gz"):
            documents(source("jsonl", tmp_path))


class TestParquet:
    @pytest.mark.parametrize("limit", [1, 300, 1 << 20])
    def test_ranges_share_the_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
        texts = [f"row {n}" for n in range(25)]
        pq.write_table(pa.table({"n": range(25), "text": texts}), tmp_path / "a.parquet", row_group_size=4)
        monkeypatch.setattr(sources, "GROUP_BYTES", limit)
        assert documents(source("parquet", tmp_path)) == texts

    def test_bad_files(self, tmp_path: Path):
        pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
        with pytest.raises(ConfigError, match="no text in 'text', only n"):
            documents(source("parquet", tmp_path))
        with pytest.raises(ConfigError, match="no text in 'n'"):
            documents(source("parquet", tmp_path, field="n"))
        (tmp_path / "a.parquet").write_text("no Parquet")
        with pytest.raises(ConfigError, match="not a Parquet file"):
            documents(source("parquet", tmp_path))

    def test_a_page_that_is_not_what_was_written_is_found_by_its_checksum(self, tmp_path: Path):
        file = tmp_path / "a.parquet"
        table = pa.table({"text": ["a page of text"]})
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, file, write_page_checksum=True, **options)
        assert documents(source("parquet", file)) == ["a page of text"]
        file.write_bytes(file.read_bytes().replace(b"a page", b"a cage", 1))
        with pytest.raises(
            ConfigError, match=r"a\.parquet of the corpus source is not a Parquet file that can be read"
        ):
            documents(source("parquet", file))


def test_hf_reads_a_local_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    texts = [f"row {n}" for n in range(7)]
    write_jsonl(tmp_path / "data" / "train.jsonl", texts)
    monkeypatch.setattr(sources, "GROUP_ROWS", 3)
    config = source("hf", tmp_path / "data")
    assert documents(config) == texts
    assert len(group_files(list_files(config), kind="hf")) == 3
    with pytest.raises(ConfigError, match="body"):
        documents(source("hf", tmp_path / "data", field="body"))
    with pytest.raises(ConfigError, match="no dataset"):
        documents(source("hf", tmp_path / "missing"))


def test_python_docs_are_topics_and_docstrings():
    import textwrap
    from pydoc_data.topics import topics

    texts = documents(source("python_docs"))
    assert all(topics[name] in texts for name in topics)
    [module] = [text for text in texts if text.startswith(str(textwrap.__doc__).strip())]
    assert "Wrap a single paragraph of text" in module
    assert len(texts) > 400
    assert not any(
        name.startswith(("test/", "idlelib/")) for name in (f.name for f in list_files(source("python_docs")))
    )


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_a_missing_or_empty_source_is_a_config_error(tmp_path: Path, kind: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").touch()
    for uri in ("missing", "missing/*.txt", "empty", "empty/*", "nothing"):
        with pytest.raises(ConfigError, match=r"corpus\.source\.uri=.*name a file, folder or glob"):
            list_files(source(kind, tmp_path / uri))


class TestOutputs:
    """A source whose folder rskd writes into, too."""

    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        for name in (
            "a.jsonl",
            "out/t/corpus/manifest.json",
            "out/u/corpus/manifest.json",
            "t/manifest.json",
            "t.json",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
        return tmp_path

    def test_outputs_are_no_documents(self, work: Path):
        (work / "link").symlink_to(work)
        for folder in (work, work / "link"):
            found = list_files(source("jsonl", folder / "**" / "*.json*"), [f"{work}/out", f"{work}/out/t"])
            assert {file.name for file in found} == {"a.jsonl", "t/manifest.json", "t.json"}
            found = list_files(source("jsonl", folder), [f"{work}", f"{work}/t"])
            assert "t.json" in {file.name for file in found}
            assert "t/manifest.json" not in {file.name for file in found}

    def test_a_source_within_the_outputs_is_one(self, work: Path):
        found = list_files(source("jsonl", work / "out" / "u"), [f"{work}/out", f"{work}/out/t"])
        assert [file.name for file in found] == ["corpus/manifest.json"]


class TestGroups:
    FILES = (SourceFile("a", 3), SourceFile("b", 4), SourceFile("c", 25), SourceFile("d", 1), SourceFile("e", 10))

    @pytest.fixture(autouse=True)
    def small_groups(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sources, "GROUP_BYTES", 10)

    def ranges(self, groups: list[Group]) -> list[list[tuple[str, int, int]]]:
        return [[(file.name, file.start, file.end) for file in group.files] for group in groups]

    def test_small_files_share_a_group_and_large_ones_are_cut(self):
        assert self.ranges(group_files(self.FILES, kind="jsonl")) == [
            [("a", 0, 3), ("b", 0, 4)],
            [("c", 0, 10)],
            [("c", 10, 20)],
            [("c", 20, 25)],
            [("d", 0, 1)],
            [("e", 0, 10)],
        ]

    def test_a_text_file_is_never_cut(self):
        assert [("c", 0, 25)] in self.ranges(group_files(self.FILES, kind="text"))

    def test_added_files_form_new_groups_and_leave_the_others(self):
        config = source("text", "folder")
        recorded = group_files([self.FILES[0], self.FILES[3]], kind="text")
        added = new_groups(recorded, self.FILES, source=config)
        assert self.ranges(added) == [[("b", 0, 4)], [("c", 0, 25)], [("e", 0, 10)]]
        assert new_groups([*recorded, *added], self.FILES, source=config) == []

    def test_a_changed_or_removed_file_is_a_mismatch(self):
        config = source("text", "folder")
        recorded = group_files(self.FILES, kind="text")
        with pytest.raises(CacheMismatchError, match="a of corpus source folder is gone"):
            new_groups(recorded, self.FILES[1:], source=config)
        with pytest.raises(CacheMismatchError, match="a of corpus source folder has 4 bytes, not 3"):
            new_groups(recorded, [SourceFile("a", 4), *self.FILES[1:]], source=config)

    def test_a_file_that_was_empty_when_it_was_packed_is_added(self, tmp_path: Path):
        config = source("text", tmp_path)
        (tmp_path / "a.txt").write_text("one")
        (tmp_path / "b.txt").touch()
        recorded = group_files(list_files(config), kind="text")
        before = [*recorded, Group((FileRange("b.txt", 0, 0, 0),))]  # as corpora had them until now
        assert new_groups(before, list_files(config), source=config) == []
        (tmp_path / "b.txt").write_text("two")
        for groups in (recorded, before):
            assert self.ranges(new_groups(groups, list_files(config), source=config)) == [[("b.txt", 0, 3)]]

    def test_dict_round_trip(self):
        for group in group_files(self.FILES, kind="jsonl"):
            assert Group.from_dict(json.loads(json.dumps(group.to_dict() | {"windows": 3}))) == group
