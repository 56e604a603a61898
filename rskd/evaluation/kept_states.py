"""A model's final hidden states, kept on disk so that the model need not stay loaded.

    teacher ─► append [N, D] … ─► a file without a name ─► read(first, count) [n, D] ─► beside each student

With its output head they give its logits again, bit for bit: D numbers a position, where a distribution would be V.
Whatever ends the process, SIGKILL too, the file is gone with it. Memory holds what is being written or read, no more.

Shapes: N rows (positions), D hidden.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import cast

import torch
from torch import Tensor

from rskd.full_disk import temporary_space_explained

MOST_BYTES = 16 * 2**30  # of one file; and a quarter of what is free in its folder


class KeptStates:
    """Rows [N, D] of one dtype in a file; `kept_states` makes one."""

    def __init__(self, file: FileIO):
        self._file = file
        self._most_bytes = min(MOST_BYTES, shutil.disk_usage(tempfile.gettempdir()).free // 4)
        self._no_rows = torch.empty(0, 0)  # like those that are kept
        self._num_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be appended before `clear`."""
        return self._num_bytes >= self._most_bytes

    def append(self, hidden: Tensor) -> None:
        """Keep rows [n, D]. Raises OutputError, naming the folder, where it has no room."""
        rows = hidden.cpu().contiguous()
        self._no_rows = rows.new_empty(0, rows.shape[1])
        left = _bytes_of(rows)
        self._file.seek(self._num_bytes)
        self._num_bytes += len(left)
        with temporary_space_explained():
            while left:  # one call writes 2 GiB at most
                left = left[self._file.write(left) :]

    def read(self, first: int, count: int) -> Tensor:
        """Rows `first` to `first + count`, [count, D] on the CPU."""
        rows = self._no_rows.new_empty(count, self._no_rows.shape[1])
        left = _bytes_of(rows)
        self._file.seek(first * rows.shape[1] * rows.itemsize)
        while left:
            num_read = self._file.readinto(left)
            assert num_read, "rows that were never kept"
            left = left[num_read:]
        return rows

    def clear(self) -> None:
        """Forget all rows, and give their room back."""
        self._file.truncate(0)
        self._num_bytes = 0


@contextmanager
def kept_states() -> Iterator[KeptStates]:
    """No rows yet, in the temporary folder (TMPDIR)."""
    with tempfile.TemporaryFile(buffering=0) as file:
        yield KeptStates(cast(FileIO, file))


def _bytes_of(rows: Tensor) -> memoryview:
    """The memory of contiguous rows."""
    return rows.flatten().view(torch.uint8).numpy().data
