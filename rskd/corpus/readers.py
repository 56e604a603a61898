"""The documents of one file, or of a range of it, by the kind of source; `rskd.corpus.sources` describes the kinds.

A range holds the documents that *begin* in it, so adjacent ranges share a file without overlap or gap.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rskd.config import SourceConfig
from rskd.errors import ConfigError
from rskd.storage import Store

TOPICS_FILE = "pydoc_data/topics.py"
_BLOCK = 1 << 20  # bytes read at a time
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


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
    assignment = next(node for node in tree.body if isinstance(node, ast.Assign))
    topics = ast.literal_eval(assignment.value)
    yield from (topics[name] for name in sorted(topics))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):  # expressions, most of the nodes, define nothing
            yield from _docstrings(child)


def text(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """The whole file; bytes that are not UTF-8 become U+FFFD."""
    data = store.read(file.name) if codec(file.name) is None else b"".join(_lines(store, file))
    yield data.decode("utf-8", errors="replace")


def jsonl(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """`field` of each line."""
    for line in _lines(store, file):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{file.name} of the corpus source is not JSON Lines: {line[:40]!r}") from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str | None) or field not in row:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise _no_field(file.name, field, found)
        if row[field]:
            # A lone surrogate, which JSON can spell, is no text.
            yield row[field].encode("utf-8", errors="replace").decode()


def parquet(store: Store, file: FileRange, field: str) -> Iterator[str]:
    """Column `field` of the row groups that begin in the range."""
    with store.open(file.name) as stream:
        try:
            rows = pq.ParquetFile(stream, pre_buffer=True)
        except pa.ArrowInvalid:
            raise ConfigError(f"{file.name} of the corpus source is not a Parquet file") from None
        schema = rows.schema_arrow
        if field not in schema.names or not _is_string(schema.field(field).type):
            raise _no_field(file.name, field, ", ".join(schema.names))
        starts = [_first_byte(rows.metadata.row_group(index)) for index in range(rows.num_row_groups)]
        groups = [index for index, start in enumerate(starts) if file.start <= start < file.end]
        for batch in rows.iter_batches(row_groups=groups, columns=[field]):
            yield from batch.column(0).to_pylist()


READERS: dict[str, Callable[[Store, FileRange, str], Iterator[str]]] = {
    "python_docs": python_docs,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
}


def hf_size(source: SourceConfig) -> int:
    """Rows of the train split of a Hugging Face dataset; ConfigError if it has none, or no such column."""
    rows = _hf_rows(str(source.uri))
    if source.field not in rows.column_names:
        raise _no_field(str(source.uri), source.field, ", ".join(rows.column_names))
    if not len(rows):
        raise ConfigError(f"corpus.source.uri={source.uri} has no rows: name another dataset")
    return len(rows)


def hf_documents(source: SourceConfig, start: int, end: int) -> Iterator[str]:
    """Column `field` of rows [start, end)."""
    yield from _hf_rows(str(source.uri)).select(range(start, end))[source.field]


@lru_cache(maxsize=1)
def _hf_rows(uri: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError("corpus.source.kind=hf needs the package datasets: pip install 'rskd[hf]'") from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(uri, split="train")
    except Exception as error:  # the hub's client, fsspec and the builders each raise their own
        raise ConfigError(
            f"corpus.source.uri={uri} is no dataset with a train split that can be loaded ({type(error).__name__}): "
            "name a dataset of the hub or a local directory"
        ) from None


def codec(name: str) -> str | None:
    """How a file is compressed, by its name."""
    return _CODECS.get(PurePosixPath(name).suffix)


@contextmanager
def _decompressed(store: Store, file: FileRange, codec: str) -> Iterator[io.BufferedReader]:
    with store.open(file.name) as stream:
        try:
            yield io.BufferedReader(pa.CompressedInputStream(stream, codec), _BLOCK)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            raise ConfigError(f"{file.name} of the corpus source cannot be decompressed ({error})") from None


def _lines(store: Store, file: FileRange) -> Iterator[bytes]:
    """Lines that begin in the range; a compressed file is one range."""
    compression = codec(file.name)
    if compression is not None:
        with _decompressed(store, file, compression) as stream:
            yield from stream
        return
    # From the byte before, so that a line that begins exactly at `start` is seen to begin there.
    data = store.read(file.name, max(file.start - 1, 0), file.end)
    if file.start > 0:
        data = data.partition(b"\n")[2]
    position = file.end
    while data and not data.endswith(b"\n") and position < file.size:
        line_end, newline, _ = store.read(file.name, position, position + _BLOCK).partition(b"\n")
        data += line_end + newline
        position += _BLOCK
    yield from io.BytesIO(data)


def _first_byte(row_group: Any) -> int:
    column = row_group.column(0)
    return min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset is not None)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _no_field(name: str, field: str, found: str) -> ConfigError:
    return ConfigError(f"{name} of the corpus source has no text in {field!r}, only {found}: set corpus.source.field")
