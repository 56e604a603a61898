"""Compressed files of a corpus source: .gz, .bz2, .xz and .zst, by the suffix of their name.

A file may hold several compressed streams, one after the other.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from rskd.errors import ConfigError, printable
from rskd.storage import Store

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_BLOCK = 1 << 20  # bytes decompressed at a time
_LONG_WINDOW = "requires too much memory"  # zstd, of a window beyond 2^27 bytes


def codec(name: str) -> str | None:
    """How a file is compressed, by its name."""
    return _CODECS.get(PurePosixPath(name).suffix.lower())


@contextmanager
def decompressed(store: Store, name: str) -> Iterator[io.BufferedReader]:
    """The contents of a compressed file; ConfigError, naming it, where what is read of them cannot be decompressed."""
    kind = codec(name)
    with store.open(name) as stream:
        try:
            opened: Any = lzma.LZMAFile if kind == "xz" else partial(pa.CompressedInputStream, compression=kind)
            yield io.BufferedReader(opened(stream), _BLOCK)
        except (OSError, EOFError, lzma.LZMAError) as error:
            fix = "recompress it with zstd --long=27 or less" if _LONG_WINDOW in str(error) else "replace it"
            raise ConfigError(
                f"{printable(name)} of the corpus source cannot be decompressed as {kind} ({error}): {fix}, or correct "
                "its suffix"
            ) from None
