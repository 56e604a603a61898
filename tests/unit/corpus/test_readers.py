"""Files of every encoding, compression and column type: read right, or refused by name in one line."""

import bz2
import codecs
import gzip
import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rskd.config import SourceConfig
from rskd.corpus import sources
from rskd.corpus.sources import group_files, list_files, read_documents
from rskd.errors import ConfigError

TEXT = "Grüße, ☃ and 日本語.\n"
LINES = b'{"text": "one"}\n{"text": "two"}\n'


def documents(kind: Any, uri: Path, **options: Any) -> list[str]:
    source = SourceConfig(kind=kind, uri=str(uri), **options)
    return [text for group in group_files(list_files(source), kind=kind) for text in read_documents(source, group)]


def refusal(kind: Any, uri: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        documents(kind, uri, **options)
    assert uri.name in str(caught.value)
    return str(caught.value)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


COMPRESS: dict[str, Callable[[bytes], Any]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_encodings(self, tmp_path: Path, encoding: str):
        assert documents("text", written(tmp_path / "a.txt", TEXT.encode(encoding))) == [TEXT]

    def test_big_endian(self, tmp_path: Path):
        data = codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")
        assert documents("text", written(tmp_path / "a.txt", data)) == [TEXT]
        assert documents("text", written(tmp_path / "a.txt.xz", lzma.compress(data))) == [TEXT]

    def test_a_few_bad_bytes_are_replaced(self, tmp_path: Path):
        path = written(tmp_path / "a.txt", "déjà vu, dit le café naïf".encode("latin-1"))
        assert documents("text", path) == ["d\ufffdj\ufffd vu, dit le caf\ufffd na\ufffdf"]

    def test_replacement_characters_of_the_text_are_text(self, tmp_path: Path):
        assert documents("text", written(tmp_path / "a.txt", "\ufffd\ufffd".encode())) == ["\ufffd\ufffd"]

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b"binary \x00 data", "NUL"),
            (TEXT.encode("utf-16-le"), "NUL"),
            (TEXT.encode("utf-32"), "NUL"),
            (lzma.compress(TEXT.encode() * 9), "NUL"),
            ("Привет, мир".encode("cp1251"), "not UTF-8"),
            ("日本語のテキスト".encode("shift-jis"), "not UTF-8"),
            (bytes(range(128, 256)), "not UTF-8"),
        ],
    )
    def test_what_is_no_text(self, tmp_path: Path, data: bytes, problem: str):
        written(tmp_path / "b.txt", b"a sound file beside it")
        assert problem in refusal("text", written(tmp_path / "a.txt", data))


class TestJsonl:
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path):
        assert documents("jsonl", written(tmp_path / "a.jsonl", codecs.BOM_UTF8 + LINES)) == ["one", "two"]

    def test_utf16_is_refused_as_such(self, tmp_path: Path):
        for encoding in ("utf-16-le", "utf-16-be"):
            path = written(tmp_path / "a.jsonl", f"\ufeff{LINES.decode()}".encode(encoding))
            assert "UTF-16: convert it to UTF-8" in refusal("jsonl", path)

    def test_bad_bytes(self, tmp_path: Path):
        assert documents("jsonl", written(tmp_path / "a.jsonl", b'{"text": "caf\xe9 noir"}')) == ["caf\ufffd noir"]
        assert "line 2" in refusal("jsonl", written(tmp_path / "b.jsonl", b'{"text": "a"}\n{"text": "b\x00"}\n'))

    @pytest.mark.parametrize("value", ["3", "true", '["a"]', '{"b": "c"}'])
    def test_a_value_that_is_no_text_is_refused_by_its_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
    ):
        monkeypatch.setattr(sources, "GROUP_BYTES", 50)
        path = written(tmp_path / "a.jsonl", LINES * 5 + b'{"text": %s}\n' % value.encode() + LINES * 5)
        assert "no text in 'text', but a" in refusal("jsonl", path)
        assert "(line 11)" in refusal("jsonl", path)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'[{"text": "a"}, {"text": "b"}]', "one JSON array"),
            (b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "one JSON array"),
            (b'{\n  "text": "a"\n}\n', "not JSON Lines"),
            (b'{"text": "a"}\n"b"\n', "not JSON Lines"),
            (b'{"text": ' + b"[" * 100_000, "not JSON Lines"),
            (gzip.compress(LINES, mtime=0), "not JSON Lines"),
        ],
    )
    def test_what_is_not_json_lines(self, tmp_path: Path, data: bytes, message: str):
        assert message in refusal("jsonl", written(tmp_path / "a.json", data))

    def test_nested_fields(self, tmp_path: Path):
        rows = [{"a": {"b": "deep"}}, {"a.b": "literal", "a": {"b": "no"}}, {"a": None}, {"a": {"b": None}}]
        path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
        assert documents("jsonl", path, field="a.b") == ["deep", "literal"]
        assert "only b" in refusal("jsonl", path, field="a.c")
        assert "but an object" in refusal("jsonl", path, field="a")


class TestCompressed:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_whole_and_broken(self, tmp_path: Path, suffix: str):
        data = COMPRESS[suffix](LINES * 1000)
        path = tmp_path / f"a.jsonl{suffix}"
        assert documents("jsonl", written(path, data + data)) == ["one", "two"] * 2000
        assert f"decompressed as {suffix[1:].replace('zst', 'zstd').replace('gz', 'gzip')}" in refusal(
            "jsonl", written(path, data[:-5])
        )
        assert "decompressed" in refusal("jsonl", written(path, LINES))  # a suffix that lies
        assert "decompressed" in refusal("text", written(tmp_path / f"a.txt{suffix}", data[: len(data) // 2]))

    def test_an_empty_file_among_others(self, tmp_path: Path):
        written(tmp_path / "a.jsonl.gz", b"")
        written(tmp_path / "b.jsonl", LINES)
        assert documents("jsonl", tmp_path) == ["one", "two"]

    @pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd makes long windows")
    def test_long_windows(self, tmp_path: Path):
        for window, readable in ((27, True), (28, False)):
            done = subprocess.run(["zstd", "-c", f"--long={window}"], input=LINES, capture_output=True, check=True)
            path = written(tmp_path / f"{window}.jsonl.zst", done.stdout)
            if readable:
                assert documents("jsonl", path) == ["one", "two"]
            else:
                assert "recompress it with zstd --long=27" in refusal("jsonl", path)


class TestParquet:
    TEXTS = ("one", None, "three", "one")

    @pytest.mark.parametrize(
        "column",
        [
            pa.array(TEXTS),
            pa.array(TEXTS, pa.large_string()),
            pa.array(TEXTS, pa.string_view()),
            pa.array(TEXTS).dictionary_encode(),
            pa.array(TEXTS, pa.large_string()).dictionary_encode(),
        ],
        ids=lambda column: str(column.type),
    )
    def test_strings_of_any_kind(self, tmp_path: Path, column: pa.Array):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
        pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "b.parquet")
        written(tmp_path / "c.parquet", b"")
        assert documents("parquet", tmp_path) == ["one", "three", "one"]

    @pytest.mark.parametrize(
        ("column", "kind"),
        [
            (pa.array([b"one"]), "binary"),
            (pa.array([b"one"], pa.large_binary()), "large_binary"),
            (pa.array([b"one"]).dictionary_encode(), "dictionary<values=binary"),
            (pa.array([["one"]]), "list<element: string>"),
            (pa.array([1]), "int64"),
            (pa.array([{"a": "b"}]), "struct<a: string>"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_other_columns_are_refused_by_their_type(self, tmp_path: Path, column: pa.Array, kind: str):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert f"no text in 'text', but {kind}" in refusal("parquet", tmp_path / "a.parquet")

    def test_nested_fields(self, tmp_path: Path):
        nested = pa.array([{"b": {"c": "deep"}}, None, {"b": None}])
        pq.write_table(pa.table({"a": nested}), tmp_path / "a.parquet")
        assert documents("parquet", tmp_path / "a.parquet", field="a.b.c") == ["deep"]
        assert "but struct<c: string>" in refusal("parquet", tmp_path / "a.parquet", field="a.b")
        assert "only a" in refusal("parquet", tmp_path / "a.parquet", field="a.c")
        pq.write_table(pa.table({"a": nested, "a.b.c": ["literal"] * 3}), tmp_path / "b.parquet")
        assert documents("parquet", tmp_path / "b.parquet", field="a.b.c") == ["literal"] * 3

    def test_bytes_that_are_not_utf8_are_replaced(self, tmp_path: Path):
        buffers = [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")]
        pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 1, buffers)}), tmp_path / "a.parquet")
        assert documents("parquet", tmp_path) == ["caf\ufffd"]

    def test_damaged_files(self, tmp_path: Path):
        pq.write_table(pa.table({"text": ["some text"] * 100}), tmp_path / "whole.parquet")
        data = (tmp_path / "whole.parquet").read_bytes()
        for damaged in (data[:-20], data[:4] + b"\xff" * 40 + data[44:], LINES):
            assert "not a Parquet file" in refusal("parquet", written(tmp_path / "a.parquet", damaged))
