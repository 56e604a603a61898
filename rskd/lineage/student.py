"""A student: made from its sections of the configuration, and from the cache or corpus that it reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rskd import records
from rskd.cache.reader import LogitCache
from rskd.config import ObjectiveConfig, PlannedTrain, SamplingConfig, StudentConfig, StudentSpec, TrainConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.difference import Difference, first_difference
from rskd.errors import CacheMismatchError, MissingOutputError
from rskd.lineage.cache import open_cache, teacher_recipe, windows_head
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs
from rskd.models.files import architecture_fingerprint
from rskd.student.checkpoint import finished_student
from rskd.tracking.registry import REGISTERED

_logger = logging.getLogger(__name__)

Source = LogitCache | PackedCorpus
Recipe = dict[str, Any]

# How a run is executed: its result does not depend on that, but for the order of floating-point sums.
EXECUTION = {
    "micro_batch",
    "workers",
    "sharding",
    "activation_checkpointing",
    "compile",
    "gpus_per_worker",
    "threads_per_worker",
    "at_once",
    "checkpoint_every",
    "max_failures",
}
_CUTS_OF_A_STEP = {"micro_batch", "workers"}  # into forwards, over each of which a router's auxiliary loss is a mean
_DEFAULTS = {
    name: section.model_dump(mode="json")
    for name, section in {
        "student": StudentConfig(),
        "objective": ObjectiveConfig(),
        "train": TrainConfig(),
        "sampling": SamplingConfig(),
    }.items()
}


def open_source(inputs: Inputs, student: str) -> Source:
    """The cache (sparse_kd) or the packed corpus that a student learns from, made as the configuration says.

    Both give the same windows in the same order, so students that differ in their objective alone are paired.
    """
    spec = inputs.config.student_specs[student]
    return open_cache(inputs, spec.sampling) if spec.objective.kind == "sparse_kd" else open_corpus(inputs, "train")


def student_recipe(
    inputs: Inputs, student: str, source: Source, *, balances_router: bool, planned: PlannedTrain | None = None
) -> Recipe:
    """All that a student depends on: what the configuration says, and digests of what it reads.

    `balances_router`: whether its loss has a router's auxiliary loss, which depends on how a step is cut into forwards:
    as `planned`.
    """
    recipe: Recipe = _settings(inputs, student, balances_router=balances_router)
    recipe["source"] = source.manifest.digest
    if balances_router and planned is not None:
        recipe["train"] |= planned.model_dump(mode="json", include=_CUTS_OF_A_STEP)
    return recipe


def check_student(inputs: Inputs, student: str, *, configured: str | None = None) -> dict[str, Any]:
    """The record of a finished student, which was trained as the configuration says, from what is there now.

    Where its cache or corpus is gone, all but the content of that is compared. One that was trained with other settings
    (as by --set) is refused, or warned about where `configured` is the digest of the settings: with them it was taken
    before. Raises MissingOutputError and CorruptPartError for its files; CacheMismatchError, naming what changed.
    """
    uri = inputs.config.student_uri(student)
    record = finished_student(uri, student)
    source = _source_if_there(inputs, student)  # if that is another's, no training helps
    changed = changed_since(record, inputs, student, source)
    if changed is None:
        return record
    if configured == settings_digest(inputs, student):
        _logger.warning("student %s is taken as it is, though it was %s", student, told(changed))
        return record
    raise CacheMismatchError(
        f"student {uri} was {told(changed)}: run rskd train --student {student}, or undo the change"
    )


def settings_digest(inputs: Inputs, student: str) -> str:
    """Digest of what the configuration says of a student."""
    return records.digest(_settings(inputs, student, balances_router=False))


def changed_since(record: dict[str, Any], inputs: Inputs, student: str, source: Source | None) -> Difference | None:
    """What is not as it was when the student of this record was trained; None where it would come out the same."""
    made = record.get("recipe", {})
    wanted = _settings(inputs, student, balances_router=made.get("train", {}).keys() >= _CUTS_OF_A_STEP)
    wanted |= {"source": source.manifest.digest if source else made.get("source")}
    cuts = {key: made["train"][key] for key in _CUTS_OF_A_STEP if wanted["train"].get(key) == "auto"}
    wanted["train"] |= cuts  # auto is whatever it was trained with
    for section in _DEFAULTS.keys() & made.keys() & wanted.keys():
        then = {key: default for key, default in _DEFAULTS[section].items() if key in wanted[section]}
        made = made | {section: then | made[section]}
    return first_difference(made, wanted)


def told(changed: Difference) -> str:
    """How a student was trained that would be trained otherwise now."""
    how = "from a source that has changed since then" if changed.key == "source" else f"with {changed}"
    return f"trained {how}"


def _source_if_there(inputs: Inputs, student: str) -> Source | None:
    try:
        return open_source(inputs, student)
    except MissingOutputError:
        return None


def _settings(inputs: Inputs, student: str, *, balances_router: bool) -> Recipe:
    spec = inputs.config.student_specs[student]
    execution = EXECUTION - _CUTS_OF_A_STEP if balances_router else EXECUTION
    return {
        "student": spec.student.model_dump(mode="json") | _starting_point(inputs, spec),
        "objective": spec.objective.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json", exclude=execution),
        **_targets(inputs, spec),
        **windows_head(inputs),
    }


def _starting_point(inputs: Inputs, spec: StudentSpec) -> dict[str, Any]:
    """The model that a student begins as, wherever it lies.

    A hub id, or a path that is gone, is known by its name; and so is an alias of the registry: a student that begins as
    the champion is not stale because there is a new one.
    """
    student, model = spec.student, spec.student.model
    if student.preset is not None or (model or "").startswith(REGISTERED):
        return {}
    directory = Path(inputs.located(model or inputs.teacher_dir))
    if student.init == "teacher_layers" or not directory.is_dir():
        return {}
    if student.init == "checkpoint":
        return {"model": _short(inputs.fingerprints(str(directory))[0])}
    return {"model": _short(architecture_fingerprint(str(directory)))}


def _targets(inputs: Inputs, spec: StudentSpec) -> Recipe:
    """What the student's targets, and weights that it has from the teacher, depend on."""
    kind = spec.objective.kind
    if kind == "ce" and spec.student.init != "teacher_layers":
        return {}
    teacher = {"model": _short(inputs.teacher_fingerprints[0])}
    if kind == "full_kd":
        teacher |= {"dtype": inputs.config.teacher.dtype}
    if kind != "sparse_kd":
        return {"teacher": teacher}
    sampling = inputs.config.cache_samplings[spec.sampling].model_dump(mode="json")
    return {"sampling": sampling, "teacher": teacher_recipe(inputs) | teacher}


def _short(fingerprint: str) -> str:
    """As messages show it."""
    return f"sha256:{fingerprint[:16]}"
