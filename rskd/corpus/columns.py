"""Text columns of Arrow tables, of Parquet files and of Hugging Face datasets alike.

Strings of any kind are text: plain, large, views, dictionary-encoded; a column of nulls has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from rskd.corpus.decoding import decoded
from rskd.errors import ConfigError


def column_path(schema: pa.Schema, field: str, name: str) -> list[str]:
    """The column `field`, or the path to it in nested structs: a column of that very name comes first.

    Raises ConfigError, naming `name`, if there is none, or if it is not text.
    """
    found = _find(schema, field)
    if found is None:
        columns = ", ".join(schema.names)
        raise ConfigError(
            f"{name} of the corpus source has no text in {field!r}, only {columns}: set corpus.source.field"
        )
    path, kind = found
    if not _is_text(kind):
        raise ConfigError(
            f"{name} of the corpus source has no text in {field!r}, but {kind}: set corpus.source.field to a column of "
            "strings, or convert it"
        )
    return path


def texts_of(batch: pa.RecordBatch | pa.Table, path: list[str], name: str) -> Iterator[str | None]:
    """The values at `path`; bytes that are not UTF-8, which Parquet lets pass, as in any text."""
    column = batch.column(path[0])
    if len(path) > 1:
        column = pc.struct_field(column, path[1:])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        for data in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
            yield None if data is None else decoded(data, f"a row of {name}")


def _find(fields: pa.Schema | pa.StructType, field: str) -> tuple[list[str], pa.DataType] | None:
    if (index := fields.get_field_index(field)) >= 0:
        return [field], fields.field(index).type
    column, _, rest = field.partition(".")
    index = fields.get_field_index(column)
    if index < 0 or not rest or not pa.types.is_struct(kind := fields.field(index).type):
        return None
    found = _find(kind, rest)
    return found and ([column, *found[0]], found[1])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)
