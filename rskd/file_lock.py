"""One process at a time, by a lock file: freed by the operating system when its holder ends, however that happens."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `path`, which exists as long as it is held or waited for; `on_wait` is called before waiting.

    Raises OSError where the folder cannot be written or its file system has no locks.
    """
    while True:
        with path.open("a") as file:
            _lock(file, on_wait)
            if _is_at(file, path):  # not one that its last holder removed meanwhile
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _lock(file: IO[str], on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
