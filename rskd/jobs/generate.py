"""Generate: sets of prompts, and a student, the teacher or another checkpoint ─► answers as Parquet, part by part.

A part is skipped if its file is there and the model, the settings and its prompts are unchanged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rskd.config import DistillConfig, GenerateConfig
from rskd.cores import usable_cores
from rskd.evaluation.answers import AnswerPart, missing_parts, read_answers, remove_other_parts
from rskd.evaluation.prompts import PAPERS_PROMPTS
from rskd.jobs.at_work import at_work
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.generate_worker import GenerationRun, Made, generate_parts
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.plan import plan_stage, resources
from rskd.jobs.ray_session import ensure_ray
from rskd.lineage.answers import Model, Parts, PromptSets, find_model, generate_section, parts_of, prompt_sets
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.models.memory import released_after
from rskd.out_of_memory import out_of_memory_explained
from rskd.plan import plan_generation, planned_generate
from rskd.progress import progress_bar
from rskd.storage import Store

_logger = logging.getLogger(__name__)


@on_cluster
@one_at_a_time
def generate_answers(config: DistillConfig, model: str) -> dict[str, Any]:
    """The answers of one model (`models_that_answer`) to all sets of prompts, in `config.answers_uri(model)`.

    Returns {<set>: {prompts, answers, mean_tokens, length, no_room}, "skipped": bool}: how many answers were cut at
    max_new_tokens, and had no room beside their prompt. Raises ConfigError for the config, a path or a prompt;
    MissingOutputError and CacheMismatchError for a student that is not there or not as configured.
    """
    sets = prompt_sets(config)
    with inputs_first(config):
        found = find_model(Inputs(config), model)
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


def _generate(config: DistillConfig, model: str, found: Model, parts: Parts, pending: Sequence[AnswerPart]) -> None:
    settings = generate_section(config)
    runtime_env = _runtime_env(settings)
    ensure_ray(config.ray)
    there, home = resources(config.ray), Store(config.home)
    plan = plan_stage(lambda there, _: plan_generation(settings, model, there), there, config.ray, home)
    run = GenerationRun(
        source=found.source,
        attention=found.attention,
        trust_remote_code=config.teacher.trust_remote_code,
        answers_uri=Store(config.answers_uri(model)).absolute_uri,
        parts=tuple(pending),
        settings=planned_generate(settings, plan),
    )
    makes = {part.file: part.file for of_set in parts.values() for part in of_set}
    num_answers = sum(len(part.prompts) for part in pending) * settings.generations
    with (
        at_work(config, "generate", model, reserves=plan.reserved, makes=makes, planned=plan.params) as work,
        out_of_memory_explained(f"lower generate.{_memory_key(settings)}"),
        progress_bar(f"generate {model}", num_answers) as advance,
    ):
        for made in _made(config, run, runtime_env):
            work.add(tokens=made.tokens, bytes_written=made.bytes_written)
            advance(made.answers)


def _memory_key(settings: GenerateConfig) -> str:
    """What takes less memory when it is lowered."""
    if settings.engine == "vllm":
        return "engine_args.gpu_memory_utilization"
    return f"batch_answers (now {settings.batch_answers})"


def _runtime_env(settings: GenerateConfig) -> dict[str, Any] | None:
    """Of vLLM's environment, which is looked for before anything else; None for this one."""
    if settings.engine == "transformers":
        return None
    from rskd.jobs.vllm_environment import VllmEnvironment

    return VllmEnvironment.find(settings.python, "generate").runtime_env(usable_cores())


def _made(config: DistillConfig, run: GenerationRun, runtime_env: dict[str, Any] | None) -> Iterator[Made]:
    if not config.ray.enabled:
        return released_after(generate_parts(run))
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
