"""Local copies of models that lie elsewhere: made whole or not at all, and kept for the next run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rskd.full_disk import full_disk_explained


def kept_copies(kind: str) -> Path:
    """The folder of this user that holds copies of one kind, a folder each; all of it may be deleted at any time."""
    return Path.home() / ".cache" / "rskd" / kind


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A temporary folder that becomes `directory` as a whole at the end, unless another process was faster."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (
        full_disk_explained(directory.parent, "put that folder on a larger disk"),
        tempfile.TemporaryDirectory(prefix=".tmp-", dir=directory.parent, ignore_cleanup_errors=True) as parent,
    ):
        temporary = Path(parent) / directory.name
        temporary.mkdir()
        yield temporary
        try:
            temporary.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
