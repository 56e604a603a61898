"""Answers to prompts: made from a model, the settings of section generate, and the prompts of each part.

configuration ─► find_model, prompt_sets ─► parts_of ─► the files of a model's answers, by prompt set
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rskd import records
from rskd.config import DistillConfig, GenerateConfig
from rskd.errors import ConfigError
from rskd.evaluation.answers import AnswerPart, answer_parts, missing_parts
from rskd.evaluation.prompts import Prompt, load_prompts
from rskd.lineage.inputs import Inputs
from rskd.lineage.student import check_student
from rskd.models.digests import sha256_of, whole_copy
from rskd.models.files import model_fingerprint, resolve_model
from rskd.storage import Store
from rskd.student.checkpoint import student_digest

TEACHER = "teacher"
_VOICE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_EXECUTION = {"prompt_sets", "teacher", "checkpoints", "batch_answers", "gpus", "python"}  # no answer depends on it

PromptSets = Mapping[str, Sequence[Prompt]]
Parts = Mapping[str, list[AnswerPart]]  # by prompt set


@dataclass(frozen=True)
class Model:
    """A model that answers: where it is, and what its answers depend on of it."""

    source: str
    attention: str
    digest: str


def models_that_answer(config: DistillConfig) -> list[str]:
    """The names of all: the students, the teacher where it is asked for, and the other checkpoints."""
    settings = generate_section(config)
    return [*config.student_specs, *([TEACHER] if settings.teacher else []), *settings.checkpoints]


def generate_section(config: DistillConfig) -> GenerateConfig:
    """The section `generate`; ConfigError where the configuration has none."""
    if config.generate is None:
        raise ConfigError("the config has no section generate: add one, with prompt_sets")
    return config.generate


def prompt_sets(config: DistillConfig) -> dict[str, list[Prompt]]:
    """The prompts of every set. Raises ConfigError, naming file and line."""
    return {name: load_prompts(one, name) for name, one in generate_section(config).prompt_sets.items()}


def find_model(inputs: Inputs, model: str) -> Model:
    """Where a model that answers is, and its digest. Raises what `generate_answers` does of it."""
    config = inputs.config
    settings = generate_section(config)
    if model in config.student_specs:
        record = check_student(inputs, model)
        uri = Store(config.student_uri(model)).absolute_uri
        return Model(uri, config.student_specs[model].student.attention, student_digest(record))
    if model == TEACHER:
        source = inputs.teacher_dir
    elif model in settings.checkpoints:
        source = settings.checkpoints[model]
    else:
        known = ", ".join(models_that_answer(config))
        raise ConfigError(f"{model} is no model that answers ({known}): name one of them")
    with _local(config, source) as directory:
        files = {name: sha256_of(directory / name) for name in _VOICE if (directory / name).is_file()}
        digest = f"{_fingerprint(str(directory), _stamps(directory))} {sorted(files.items())}"
        source = source if "://" in source else str(directory.resolve())
    return Model(source, config.teacher.attention, digest)


@lru_cache(maxsize=8)
def _fingerprint(directory: str, stamps: tuple[Any, ...]) -> str:
    """Fingerprint of the model in a directory, whose weights are read once as long as `stamps` are the same."""
    return model_fingerprint(directory)


def _stamps(directory: Path) -> tuple[Any, ...]:
    files = sorted(file for file in directory.iterdir() if file.is_file())
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@contextmanager
def _local(config: DistillConfig, source: str) -> Iterator[Path]:
    if "://" in source:
        with whole_copy(Store(source)) as (directory, _):
            yield directory
    else:
        yield Path(resolve_model(source, revision=None, teachers=config.teachers_uri))


def parts_of(config: DistillConfig, found: Model, sets: PromptSets) -> dict[str, list[AnswerPart]]:
    """The parts of the answers of a model, by prompt set."""
    settings = generate_section(config).model_dump(mode="json", exclude=_EXECUTION)
    recipe = {"model": found.digest, "settings": settings}
    return {name: answer_parts(name, prompts, recipe) for name, prompts in sets.items()}


def answered_models(config: DistillConfig) -> dict[str, Parts]:
    """The parts of each model that has answered all prompts as they are now."""
    inputs, sets = Inputs(config), prompt_sets(config)
    parts = {model: parts_of(config, find_model(inputs, model), sets) for model in models_that_answer(config)}
    stores = {model: Store(config.answers_uri(model)) for model in parts}
    return {
        model: of_model
        for model, of_model in parts.items()
        if not any(missing_parts(stores[model], of_set) for of_set in of_model.values())
    }


def digest_of_answers(parts: Parts) -> str:
    """What tells the answers of a model from others."""
    return records.digest({name: [part.file for part in of_set] for name, of_set in parts.items()})
