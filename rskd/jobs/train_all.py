"""Train the students of a distillation, side by side where resources allow.

    students ─► at_once threads, a student each ─┬─► summaries
                     each waits for its workers   └─► failures ─► one error, once all have ended

`train.at_once` says how many; auto is as many as there are GPUs for. A student that fails stops none of the others. An
interrupt stops all of them, and each goes on from its own checkpoints when it is run again. One at a time, they run in
the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rskd import tracking
from rskd.config import DistillConfig, RayConfig
from rskd.errors import RskdError, explained_by, first_line
from rskd.interrupts import in_threads
from rskd.jobs.plan import resources
from rskd.jobs.ray_session import ensure_ray
from rskd.plan import resources_here, students_at_once

T = TypeVar("T")


def train_all(
    config: DistillConfig,
    students: Sequence[str],
    train: Callable[[DistillConfig, str], T],
    *,
    start: Callable[[RayConfig], None] = ensure_ray,
) -> dict[str, T]:
    """What `train(config, student)` returns of each, by name; several at once need Ray, which `start` starts.

    Raises the error of the student that failed; of several one of the first's class that names them all. Each has been
    tried by then.
    """
    done: dict[str, T] = {}
    failed: dict[str, Exception] = {}

    def attempt(student: str) -> None:
        try:
            done[student] = train(config, student)
        except Exception as error:
            failed[student] = error

    num = at_once(config, students)
    if num > 1:
        start(config.ray)  # here: it ends with the thread that starts it
    with tracking.one_end():
        in_threads(attempt, students, num)
    if failed:
        raise _as_one(failed, num_students=len(students))
    return {student: done[student] for student in students}


def at_once(config: DistillConfig, students: Sequence[str]) -> int:
    """How many are trained at the same time."""
    if len(students) == 1:
        return 1
    if config.train.at_once != "auto" or config.ray.address is None:
        return students_at_once(config, students, resources_here())  # without Ray, which may have nothing to do
    ensure_ray(config.ray)
    return students_at_once(config, students, resources(config.ray))


def _as_one(failed: dict[str, Exception], *, num_students: int) -> Exception:
    """The error that stands for all: as it is where there was one student, or where all fail alike."""
    errors = list(failed.values())
    if num_students == 1 or (len(errors) == num_students and len({str(error) for error in errors}) == 1):
        return errors[0]
    said = "; ".join(f"student {name}: {_line(error)}" for name, error in failed.items())
    one = type(explained_by(errors[0]) or RskdError())(said)
    one.__context__ = errors[0]  # which --debug shows
    return one


def _line(error: Exception) -> str:
    known = explained_by(error)
    return str(known) if known is not None else f"{type(error).__name__}: {first_line(error)}"
