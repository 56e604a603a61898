"""Documents of a Hugging Face dataset: of the hub, of a local folder that `datasets` can load, or of `save_to_disk`.

The only file that imports datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rskd.config import SourceConfig
from rskd.corpus.columns import column_path, texts_of
from rskd.corpus.readers import Row, refused_row
from rskd.errors import ConfigError

Columns = Callable[[list[str], str], list[str]]  # from all names, and that of the dataset for a message

_BATCH = 256  # rows made Python strings at once
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes


def hf_size(source: SourceConfig, columns: Columns | None = None) -> int:
    """Rows of the split; ConfigError if the dataset has none, or no such column: of text, or those of `columns`."""
    rows = _rows(source)
    if columns is None:
        _path(rows, source)
    else:
        columns(rows.column_names, str(source.uri))
    if not len(rows):
        raise ConfigError(f"corpus.source.uri={source.uri} has no rows: name another dataset")
    return len(rows)


def hf_documents(source: SourceConfig, start: int, end: int) -> Iterator[str | None]:
    """Column `field` of rows [start, end)."""
    rows = _rows(source)
    path = _path(rows, source)
    tables = rows.select_columns(path[:1]).with_format("arrow")
    for first in range(start, end, _BATCH):
        yield from texts_of(tables[first : min(first + _BATCH, end)], path, str(source.uri))


def hf_rows(source: SourceConfig, start: int, end: int, columns: Columns) -> Iterator[Row]:
    """Rows [start, end), of the columns that `columns` chooses of all."""
    rows, name = _rows(source), str(source.uri)
    tables = rows.select_columns(columns(rows.column_names, name)).with_format("arrow")
    for first in range(start, end, _BATCH):
        for number, content in enumerate(tables[first : min(first + _BATCH, end)].to_pylist(), first + 1):
            yield Row(content, partial(refused_row, name, number))


def _path(rows: Any, source: SourceConfig) -> list[str]:
    return column_path(rows.features.arrow_schema, source.field, str(source.uri))


def _rows(source: SourceConfig) -> Any:
    return _loaded(str(source.uri), source.config_name, source.split)


@lru_cache(maxsize=1)
def _loaded(uri: str, config_name: str | None, split: str) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetGenerationError
    except ImportError:
        raise ConfigError("corpus.source.kind=hf needs the package datasets: pip install 'rskd[hf]'") from None
    datasets.disable_progress_bars()
    try:
        if any((Path(uri) / name).is_file() for name in _SAVED):
            return _saved_split(datasets.load_from_disk(uri), uri, config_name, split)
        return datasets.load_dataset(uri, config_name, split=split)
    except ConfigError:
        raise
    except Exception as error:  # the hub's client, fsspec and the builders each raise their own
        # "An error occurred while generating the dataset" has the reason behind it.
        behind = (isinstance(error, DatasetGenerationError) and error.__cause__) or error
        reason = " ".join(str(behind).split())
        raise ConfigError(
            f"corpus.source.uri={uri} is no dataset with a split {split} that can be loaded "
            f"({type(behind).__name__}: {reason[:300]}): name a dataset of the hub or a local directory, and its "
            "corpus.source.config_name and split"
        ) from None


def _saved_split(saved: Any, uri: str, config_name: str | None, split: str) -> Any:
    """The split of what save_to_disk wrote: a dictionary of splits, or a single one."""
    where = f"corpus.source.uri={uri} was written by save_to_disk"
    if config_name is not None:
        raise ConfigError(f"{where}, so it has no configurations: remove corpus.source.config_name")
    if isinstance(saved, dict):
        if split not in saved:
            raise ConfigError(f"{where} and has no split {split}, only {', '.join(saved)}: set corpus.source.split")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise ConfigError(f"{where} as a single split, {saved.split}: remove corpus.source.split={split}")
    return saved
