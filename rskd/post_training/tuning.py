"""The two configurations of a post-training: of the tuned students, and of those that they start as. Pure functions.

TUNING, BEFORE ─┬─► tuned: TUNING with a student for each of BEFORE's, from its checkpoint
                └─► starting: BEFORE with the same students, and the tasks of TUNING
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError


def tuned(tuning: DistillConfig, before: DistillConfig, students: Sequence[str] | None = None) -> DistillConfig:
    """`tuning` with a student for each of `students`, by default of all of `before`: the same name, its checkpoint.

    `student` of `tuning` does not count but for its attention. Raises ConfigError for unknown students, for a `tuning`
    that names students of its own or has the name of `before`, and for a `before` on an object store.
    """
    names = list(dict.fromkeys(students or before.student_specs))
    for name in names:
        before.student_spec(name)
    if tuning.students is not None:
        raise ConfigError(
            f"the tuning {tuning.name} has a section students, and its students are those of {before.name}: remove the "
            "section, and choose by --student"
        )
    if tuning.home == before.home:
        raise ConfigError(f"{before.name} is the name of the distillation and of its tuning: give the tuning another")
    if "://" in before.home:
        raise ConfigError(
            f"the students of {before.name} lie at {before.home}, and a student starts from a local folder: copy that "
            "folder to a local storage.root, and name a config with it"
        )
    sampling = next(iter(tuning.cache_samplings))
    settings = tuning.model_dump(mode="json", exclude_unset=True, exclude={"student"})
    settings["students"] = {
        name: {"sampling": sampling, "student": _checkpoint(tuning, before, name)} for name in names
    }
    return validate_config(settings, origin=tuning.name)


def _checkpoint(tuning: DistillConfig, before: DistillConfig, name: str) -> dict[str, Any]:
    given = tuning.student if "attention" in tuning.student.model_fields_set else before.student_spec(name).student
    return {"model": before.student_uri(name), "init": "checkpoint", "attention": given.attention}


def starting(before: DistillConfig, tuned: DistillConfig) -> DistillConfig:
    """`before` with the students of `tuned` alone, to be evaluated on the tasks of `tuned`, and where that runs."""
    measured = {"max_windows": before.evaluate.max_windows, "num_bins": before.evaluate.num_bins, "speculative": None}
    return before.model_copy(
        update={
            "students": {name: before.student_spec(name) for name in tuned.student_specs},
            "evaluate": tuned.evaluate.model_copy(update=measured),
            "ray": tuned.ray,
        }
    )
