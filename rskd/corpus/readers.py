"""The documents of one file, or of a range of it, by the kind of source; `rskd.corpus.sources` describes the kinds.

A range holds the documents that *begin* in it, so adjacent ranges share a file without overlap or gap.
"""

from __future__ import annotations

import ast
import codecs
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rskd.corpus.columns import column_path, texts_of
from rskd.corpus.compressed import codec, decompressed
from rskd.corpus.decoding import decoded
from rskd.errors import ConfigError, first_line, printable
from rskd.storage import Store

TOPICS_FILE = "pydoc_data/topics.py"
_BLOCK = 1 << 20  # bytes read at a time
_ROWS = 256  # of Parquet, made Python strings at once
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_JSON_TYPES = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class FileRange:
    """The documents of a file that begin in [start, end), in bytes (rows for hf); `size` is the whole file's."""

    name: str  # under the source's folder
    size: int
    start: int
    end: int


def python_docs(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """Every topic of CPython's manual, or the docstrings of one module, in the order of the source code."""
    tree = ast.parse(store.read(file.name))
    if file.name != TOPICS_FILE:
        yield "\n\n".join(_docstrings(tree))
        return
    topics = topics_of(tree)
    yield from (topics[name] for name in sorted(topics))


def topics_of(tree: ast.Module) -> dict[str, str]:
    """The topics of CPython's manual by name: what TOPICS_FILE assigns."""
    assignment = next(node for node in tree.body if isinstance(node, ast.Assign))
    return ast.literal_eval(assignment.value)


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):  # expressions, most of the nodes, define nothing
            yield from _docstrings(child)


def text(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """The whole file."""
    yield decoded(_contents(store, file.name), printable(file.name))


def jsonl(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """`field` of each line."""
    for index, line in enumerate(_lines(store, file)):
        try:
            found = None if line.isspace() else _without_surrogates(_value(_json_object(line), field))
        except (ValueError, RecursionError, ConfigError):
            raise _not_json_lines(store, file, index, line) from None
        except _NoTextError as problem:
            why = f"has no text in {field!r}, {problem}: correct the file, or set corpus.source.field"
            raise _refused(store, file, index, why) from None
        if found:
            yield found


class Row(NamedTuple):
    """A row of a file as it stands, and what refuses it: an error that names its file and number, for a reason."""

    content: dict[str, Any]
    refuse: Callable[[object], ConfigError]


def json_rows(store: Store, file: FileRange) -> Iterator[Row]:
    """The JSON object of each line."""
    for index, line in enumerate(_lines(store, file)):
        if line.isspace():
            continue
        try:
            content = _json_object(line)
        except (ValueError, RecursionError, ConfigError):
            raise _not_json_lines(store, file, index, line) from None
        yield Row(content, partial(_refused, store, file, index))


def parquet_rows(store: Store, file: FileRange, columns: Callable[[list[str], str], list[str]]) -> Iterator[Row]:
    """The rows of the row groups that begin in the range, of the columns that `columns` chooses of all."""
    name = printable(file.name)
    with store.open(file.name) as stream, _readable_parquet(name):
        rows, groups = _row_groups(stream, file)
        chosen = columns(rows.schema_arrow.names, name)
        for group in groups:
            number = sum(rows.metadata.row_group(before).num_rows for before in range(group))
            for batch in rows.iter_batches(_ROWS, row_groups=[group], columns=chosen):
                for content in batch.to_pylist():
                    number += 1
                    yield Row(content, partial(refused_row, name, number))


def refused_row(name: str, number: int, why: object) -> ConfigError:
    """The error for a row, counted from 1."""
    return ConfigError(f"{name} of the corpus source {why} (row {number})")


def _refused(store: Store, file: FileRange, index: int, why: object) -> ConfigError:
    """The error for a line, counted from 0 within its range."""
    number = _lines_before(store, file) + index + 1
    return ConfigError(f"{printable(file.name)} of the corpus source {why} (line {number})")


def _without_surrogates(text: str | None) -> str | None:
    """A lone surrogate, which JSON can spell, is no text."""
    return text if text is None or text.isascii() else text.encode("utf-8", errors="replace").decode()


class _NoTextError(Exception):
    """What was found instead of text."""


def _json_object(line: bytes) -> dict[str, Any]:
    if line.startswith(_UTF16_MARKS):
        raise ValueError("UTF-16, whose lines end elsewhere")
    row = json.loads(decoded(line, "the line"))
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    return row


def _value(row: dict[str, Any], field: str) -> str | None:
    """Text or null at `field`: a key of that very name, or one of nested objects."""
    if field in row:
        if isinstance(row[field], str | None):
            return row[field]
        raise _NoTextError(f"but {_JSON_TYPES[type(row[field])]}")
    key, _, rest = field.partition(".")
    if rest and key in row and row[key] is None:
        return None
    if not rest or not isinstance(row.get(key), dict):
        raise _NoTextError(f"only {', '.join(row)}")
    return _value(row[key], rest)


def _not_json_lines(store: Store, file: FileRange, index: int, line: bytes) -> ConfigError:
    """The error for a line that is no JSON object."""
    why = f"is not JSON Lines: {line[:40]!r}, write each document on a line, as a JSON object"
    if _lines_before(store, file) + index == 0:
        if line.startswith(_UTF16_MARKS):
            why = "is UTF-16: convert it to UTF-8"
        elif line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            why = "holds one JSON array: write each of its elements on a line (jq -c '.[]')"
    return _refused(store, file, index, why)


def parquet(store: Store, file: FileRange, field: str) -> Iterator[str | None]:
    """Column `field` of the row groups that begin in the range."""
    name = printable(file.name)
    with store.open(file.name) as stream, _readable_parquet(name):
        rows, groups = _row_groups(stream, file)
        path = column_path(rows.schema_arrow, field, name)
        for batch in rows.iter_batches(_ROWS, row_groups=groups, columns=[".".join(path)]):
            yield from texts_of(batch, path, name)


@contextmanager
def _readable_parquet(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{name} of the corpus source is not a Parquet file that can be read ({first_line(error)}): replace it"
        ) from None


def _row_groups(stream: Any, file: FileRange) -> tuple[pq.ParquetFile, list[int]]:
    """The file, and its row groups that begin in the range."""
    rows = pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True)
    starts = [_first_byte(rows.metadata.row_group(index)) for index in range(rows.num_row_groups)]
    return rows, [index for index, start in enumerate(starts) if file.start <= start < file.end]


READERS: dict[str, Callable[[Store, FileRange, str], Iterator[str | None]]] = {
    "python_docs": python_docs,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
}


def _contents(store: Store, name: str) -> bytes:
    if codec(name) is None:
        return store.read(name)
    with decompressed(store, name) as stream:
        return stream.read()


def _lines(store: Store, file: FileRange) -> Iterator[bytes]:
    """Lines that begin in the range; a compressed file is one range."""
    if codec(file.name) is not None:
        with decompressed(store, file.name) as stream:
            yield from stream
        return
    yield from io.BytesIO(_whole_lines(store, file))


def _whole_lines(store: Store, file: FileRange) -> bytes:
    """The range, from the first line that begins in it to the end of the last."""
    # From the byte before, so that a line that begins exactly at `start` is seen to begin there.
    data = store.read(file.name, max(file.start - 1, 0), file.end)
    if file.start > 0:
        data = data.partition(b"\n")[2]
    blocks, position = [data], file.end
    while blocks[-1] and not blocks[-1].endswith(b"\n") and position < file.size:
        line_end, newline, _ = store.read(file.name, position, position + _BLOCK).partition(b"\n")
        blocks.append(line_end + newline)
        position += _BLOCK
    return data if len(blocks) == 1 else b"".join(blocks)


def _lines_before(store: Store, file: FileRange) -> int:
    """Lines of the file that begin before the range; for messages, since it reads all of them."""
    if file.start == 0:
        return 0
    ends = range(0, file.start - 1, _BLOCK)
    return 1 + sum(store.read(file.name, at, min(at + _BLOCK, file.start - 1)).count(b"\n") for at in ends)


def _first_byte(row_group: Any) -> int:
    column = row_group.column(0)
    return min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset is not None)
