"""Where the checkpoints of a run are, whoever wrote them, and which of them is whole.

    checkpoints/<run>/checkpoint-00000200/       in process
    checkpoints/<run>-<n>/checkpoint_<time>/     by Ray Train, a folder for each start of a driver: Ray's own state in
                                                 it is of that start alone, and is never read again

A checkpoint counts once its trainer.json is there. In process that is written last; of one that Ray Train has not
uploaded to its end, the digests tell.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rskd.errors import CorruptPartError, MissingOutputError
from rskd.models.digests import TRAINER_FILE, read_record, whole_copy
from rskd.storage import Store

_KEPT = 2

_logger = logging.getLogger(__name__)


def finished(checkpoints: Store, run: str) -> list[Store]:
    """The checkpoints of a run by their steps, rising; one whose step cannot be read is last."""
    steps = []
    for name in checkpoints.sizes(recursive=True):
        if _is_of(run, name) and name.endswith(f"/{TRAINER_FILE}"):
            folder = checkpoints.child(name.removesuffix(f"/{TRAINER_FILE}"))
            steps.append((_step(folder), folder.uri, folder))
    return [folder for _, _, folder in sorted(steps, key=lambda found: found[:2])]


@contextmanager
def newest_whole(checkpoints: Store, run: str, *, remove_damaged: bool = False) -> Iterator[Path | None]:
    """A local copy of the newest checkpoint whose files are those that were written; None where there is none.

    A damaged one is passed over with a warning, and removed if asked to. Where none is whole, training starts from the
    beginning: its result is the same, and costs time alone.
    """
    for folder in reversed(finished(checkpoints, run)):
        with ExitStack() as stack:
            try:
                directory, _ = stack.enter_context(whole_copy(folder))
            except (CorruptPartError, MissingOutputError) as error:
                _logger.warning("checkpoint %s is passed over for the one before: %s", folder.uri, error)
                if remove_damaged:
                    folder.remove_all()
                continue
            yield directory
            return
    yield None


def unused_name(checkpoints: Store, run: str) -> str:
    """A name for a folder of this run that has not been used."""
    used = {name.split("/")[0] for name in checkpoints.sizes(recursive=True)}
    numbers = [int(name.removeprefix(f"{run}-")) for name in used if re.fullmatch(rf"{run}-\d+", name)]
    return run if run not in used and not numbers else f"{run}-{max(numbers, default=0) + 1}"


def tidy(checkpoints: Store, run: str) -> None:
    """Remove all that belongs to a run, but for its newest checkpoints. Not while somebody writes one."""
    kept = tuple(f"{folder.uri}/" for folder in finished(checkpoints, run)[-_KEPT:])
    names = [name for name in checkpoints.sizes(recursive=True) if _is_of(run, name)]
    for name in sorted(names, key=lambda name: not name.endswith(f"/{TRAINER_FILE}")):  # first: they make it count
        if not f"{checkpoints.uri}/{name}".startswith(kept):
            checkpoints.remove(name)


def _is_of(run: str, name: str) -> bool:
    return re.fullmatch(rf"{run}(-\d+)?", name.split("/")[0]) is not None


def _step(folder: Store) -> float:
    try:
        return (read_record(folder) or {}).get("step", float("inf"))
    except CorruptPartError:
        return float("inf")
