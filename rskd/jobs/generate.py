"""Generate: sets of prompts, and a student, the teacher or another checkpoint ─► answers as Parquet, part by part.

A part is skipped if its file is there and the model, the settings and its prompts are unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rskd import records
from rskd.config import DistillConfig, GenerateConfig
from rskd.cores import usable_cores
from rskd.costs import Reserved
from rskd.errors import ConfigError
from rskd.evaluation.answers import (
    AnswerPart,
    answer_parts,
    missing_parts,
    read_answers,
    remove_other_parts,
)
from rskd.evaluation.prompts import PAPERS_PROMPTS, Prompt, load_prompts
from rskd.jobs.at_work import at_work
from rskd.jobs.generate_worker import GenerationRun, Made, generate_parts
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.ray_session import ensure_ray, require_gpus
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import check_student
from rskd.models.digests import sha256_of, whole_copy
from rskd.models.files import model_fingerprint, resolve_model
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.student.checkpoint import student_digest

TEACHER = "teacher"
_VOICE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_EXECUTION = {"prompt_sets", "teacher", "checkpoints", "batch_answers", "gpus", "python"}  # no answer depends on it

_logger = logging.getLogger(__name__)

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


@one_at_a_time
def generate_answers(config: DistillConfig, model: str) -> dict[str, Any]:
    """The answers of one model (`models_that_answer`) to all sets of prompts, in `config.answers_uri(model)`.

    Returns {<set>: {prompts, answers, mean_tokens, length, no_room}, "skipped": bool}: how many answers were cut at
    max_new_tokens, and had no room beside their prompt. Raises ConfigError for the config, a path or a prompt;
    MissingOutputError and CacheMismatchError for a student that is not there or not as configured.
    """
    sets = prompt_sets(config)
    with inputs_first(config):
        found = find_model(config, model)
    parts = parts_of(config, found, sets)
    store = Store(config.answers_uri(model))
    Store(config.storage.root).check_writable()
    pending = [part for of_set in parts.values() for part in missing_parts(store, of_set)]
    if pending:
        _compare_with_paper(config, sets)
        _generate(config, model, found, parts, pending)
    for name, of_set in parts.items():
        remove_other_parts(store, name, of_set)
    return {name: _summary(store, of_set) for name, of_set in parts.items()} | {"skipped": not pending}


def _compare_with_paper(config: DistillConfig, sets: PromptSets) -> None:
    """Warn about a published set that has not as many prompts as the paper's."""
    for name, settings in generate_section(config).prompt_sets.items():
        papers = PAPERS_PROMPTS.get(settings.kind)
        if papers is not None and settings.limit is None and len(sets[name]) != papers:
            _logger.warning("prompt set %s has %d prompts, the paper's %d (E.3)", name, len(sets[name]), papers)


def find_model(config: DistillConfig, model: str) -> Model:
    """Where a model that answers is, and its digest. Raises what `generate_answers` does of it."""
    settings = generate_section(config)
    if model in config.student_specs:
        record = check_student(Inputs(config), model)
        uri = Store(config.student_uri(model)).absolute_uri
        return Model(uri, config.student_specs[model].student.attention, student_digest(record))
    if model == TEACHER:
        source = Inputs(config).teacher_dir
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
    sets = prompt_sets(config)
    parts = {model: parts_of(config, find_model(config, model), sets) for model in models_that_answer(config)}
    stores = {model: Store(config.answers_uri(model)) for model in parts}
    return {
        model: of_model
        for model, of_model in parts.items()
        if not any(missing_parts(stores[model], of_set) for of_set in of_model.values())
    }


def digest_of_answers(parts: Parts) -> str:
    """What tells the answers of a model from others."""
    return records.digest({name: [part.file for part in of_set] for name, of_set in parts.items()})


def _generate(config: DistillConfig, model: str, found: Model, parts: Parts, pending: Sequence[AnswerPart]) -> None:
    settings = generate_section(config)
    runtime_env = _runtime_env(settings)
    ensure_ray(config.ray)
    require_gpus(config.ray, "generate.gpus", settings.gpus)
    run = GenerationRun(
        source=found.source,
        attention=found.attention,
        trust_remote_code=config.teacher.trust_remote_code,
        answers_uri=Store(config.answers_uri(model)).absolute_uri,
        parts=tuple(pending),
        settings=settings,
    )
    makes = {part.file: part.file for of_set in parts.values() for part in of_set}
    num_answers = sum(len(part.prompts) for part in pending) * settings.generations
    reserves = Reserved(usable_cores(), settings.gpus)
    with (
        at_work(config, "generate", model, reserves=reserves, makes=makes) as work,
        progress_bar(f"generate {model}", num_answers) as advance,
    ):
        for made in _made(config, run, runtime_env):
            work.add(tokens=made.tokens, bytes_written=made.bytes_written)
            advance(made.answers)


def _runtime_env(settings: GenerateConfig) -> dict[str, Any] | None:
    """Of vLLM's environment, which is looked for before anything else; None for this one."""
    if settings.engine == "transformers":
        return None
    from rskd.jobs.vllm_environment import VllmEnvironment

    return VllmEnvironment.find(settings.python, "generate").runtime_env(usable_cores())


def _made(config: DistillConfig, run: GenerationRun, runtime_env: dict[str, Any] | None) -> Iterator[Made]:
    if not config.ray.enabled:
        return generate_parts(run)
    from rskd.jobs import on_ray

    return on_ray.follow(generate_parts, run, gpus=run.settings.gpus, runtime_env=runtime_env)


def _summary(store: Store, parts: Sequence[AnswerPart]) -> dict[str, Any]:
    answers = [answered.answer for answered in read_answers(store, parts)]
    finishes = Counter(answer.finish for answer in answers)
    return {
        "prompts": sum(len(part.prompts) for part in parts),
        "answers": len(answers),
        "mean_tokens": sum(answer.num_tokens for answer in answers) / len(answers),
        "length": finishes["length"],
        "no_room": finishes["no room"],
    }
