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
from contextlib import contextmanager
from pathlib import Path

from rskd.errors import OutputError, RskdError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_TEXT = re.compile(rf"(?:os error |errno )({'|'.join(map(str, _FULL))})\b", re.IGNORECASE)


def filled_folder(fill: Callable[[Path], None]) -> Path:
    """A new temporary folder that `fill` has filled, for the caller to remove; none is left where that fails.

    Raises OutputError, naming the temporary folder, if that is full.
    """
    with full_disk_explained(Path(tempfile.gettempdir()), "set TMPDIR to a larger folder"):
        folder = Path(tempfile.mkdtemp())
        try:
            fill(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


@contextmanager
def temporary_folder(fill: Callable[[Path], None]) -> Iterator[Path]:
    """`filled_folder(fill)` for the length of the block."""
    folder = filled_folder(fill)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
