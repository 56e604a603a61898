"""A full disk is one line that names the folder, wherever it is met: the temporary folder, or the output root.

Who writes: Python (an errno), or a library in Rust or C++ (the number in its text).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rskd.errors import OutputError, RskdError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_TEXT = re.compile(rf"(?:os error |errno )({'|'.join(map(str, _FULL))})\b", re.IGNORECASE)


@contextmanager
def temporary_folder(fill: Callable[[Path], object]) -> Iterator[Path]:
    """A new temporary folder that `fill` has filled, for the length of the block.

    Raises OutputError, naming the folder of temporary ones, if that is full.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        with temporary_space_explained():
            fill(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_space_explained() -> AbstractContextManager[None]:
    """`full_disk_explained` for what is written to temporary files."""
    return full_disk_explained(Path(tempfile.gettempdir()), "set TMPDIR to a larger folder")


@contextmanager
def full_disk_explained(folder: Path, remedy: str) -> Iterator[None]:
    """Within it, which writes to `folder`, a full disk is an OutputError; anything else passes."""
    try:
        yield
    except Exception as error:
        explained = explain_full_disk(error, folder, remedy)
        if explained is None:
            raise
        raise explained from None


def explain_full_disk(error: Exception, folder: Path | str, remedy: str) -> OutputError | None:
    """What to say where writing to `folder` raised `error`; None unless its disk is full."""
    in_text = _FULL_IN_TEXT.search(str(error))
    number = int(in_text[1]) if in_text else getattr(error, "errno", None)
    if isinstance(error, RskdError) or number not in _FULL:
        return None
    reason = os.strerror(number)
    return OutputError(f"{folder} has no room left ({reason}): free some, or {remedy}, and run it again")
