"""Train a student: cache ─► workers of Ray Train (DDP), or this process ─► checkpoints ─► Hugging Face directory.

    check inputs ─► train_on_ray, train_in_process ─► export the last checkpoint ─► training_log.jsonl, rskd.json (last)
                              └── metrics of every step ─► progress bar and tracking

A run is named by the digest of all that its result depends on. So the newest whole checkpoint of the same run is found
after a lost worker as after a lost driver, and a changed configuration starts from the beginning.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rskd import records, tracking
from rskd.cache.histogram import percentile
from rskd.cache.reader import LogitCache
from rskd.config import DistillConfig, PlannedTrain, RayConfig, StudentSpec
from rskd.cores import warn_of_threads
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError, MissingOutputError
from rskd.jobs.at_work import AtWork, at_work, costs_of
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.plan import plan_stage, resources
from rskd.jobs.ray_session import ensure_ray
from rskd.jobs.training.in_process import train_in_process
from rskd.jobs.training.run import TrainingRun, student_trial
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import changed_since, open_source, student_recipe, told
from rskd.models.digests import RESULT_FILE, Files, check_files, check_sizes, describe_files, whole_copy
from rskd.plan import Plan, plan_student, planned_train
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.student.architecture import student_architecture
from rskd.student.bias import loss_bias, sampling_bias
from rskd.student.checkpoint import LOG_FILE, copy_student, files_of_student, hugging_face_directory, student_digest
from rskd.student.router_loss import balances_router
from rskd.student.trainer import Log

_MEMORY_DEPENDS_ON = {"precision", "sharding", "activation_checkpointing", "compile"}  # of section train

_logger = logging.getLogger(__name__)


@on_cluster
@one_at_a_time
def train_student(config: DistillConfig, student: str = "default") -> dict[str, Any]:
    """Train one student of `config` and write it to `config.student_uri(student)`; skipped if it is there and matches.

    Returns uri, steps, tokens, loss (of the last step, nats/token), tokens_per_s, seconds, `skipped`, and `cost` of all
    attempts (`rskd.costs`), None where none was recorded.

    Raises ConfigError for a wrong config or path, MissingOutputError and CacheMismatchError for the corpus or cache,
    NonFiniteError for a loss that diverged. None of them is retried; a lost worker is, from the newest checkpoint.
    """
    inputs = Inputs(config)
    spec, run_by, source = _prepare(inputs, student)
    target = Store(config.student_uri(student))
    done = records.read(target, RESULT_FILE)
    if done is not None and _is_current(done, inputs, student, source) and _is_whole(target, done):
        return done["summary"] | {"uri": target.uri, "cost": costs_of(config, "train", student), "skipped": True}

    if isinstance(source, LogitCache) and (reason := _bias(spec, source.manifest.sampling)):
        _logger.warning("student %s learns from a biased target: %s", student, reason)
    warn_of_threads("train.threads_per_worker", spec.train.threads_per_worker)
    started = time.monotonic()
    ray = config.ray if spec.train.workers != 0 else RayConfig(enabled=False)
    ensure_ray(ray)
    plan = _plan(config, student, ray, run_by)
    run = run_by(planned_train(spec.train, plan))
    recipe = student_recipe(inputs, student, source, balances_router=run.balances_router, planned=run.train)
    train, name = run.train, records.digest(recipe)[:16]
    makes = {"student": name}
    with at_work(config, "train", student, reserves=plan.reserved, makes=makes, planned=plan.params) as work:
        manifest = {"digest": source.manifest.digest, "totals": source.manifest.totals}
        work.run.dataset(source.uri, manifest, name=source.uri.rsplit("/", 1)[-1])
        checkpoints = Store(config.checkpoints_uri(student))
        with progress_bar(f"train {student}", train.steps) as advance:
            show = _shown_once(advance, work, tokens=train.global_batch * run.seq_len)
            if train.workers == 0:
                checkpoint = train_in_process(run, checkpoints, show, name=name)
            else:
                from rskd.jobs.training.on_ray import train_on_ray

                tracked = tracking.for_workers(work.run, config)
                checkpoint = train_on_ray(
                    run, checkpoints, show, name=name, config=config.ray, tracked=tracked, live=work.live
                )
        summary, files = _publish(checkpoint, target)
        work.add(bytes_written=sum(file["bytes"] for file in files.values()))
        summary["seconds"] = time.monotonic() - started
        record = {"recipe": recipe, "summary": summary, "files": files}
        records.write(target, RESULT_FILE, record)
        work.run.model(target.uri, name=f"{config.name} {student}", digest=student_digest(record))
    return summary | {"cost": costs_of(config, "train", student), "skipped": False}


def _plan(config: DistillConfig, student: str, ray: RayConfig, run_by: Callable[[PlannedTrain], TrainingRun]) -> Plan:
    """What the student is trained on. Its micro-batch is the largest with which a whole step fits."""
    spec = config.student_spec(student)
    of = {
        "student": spec.student.model_dump(mode="json"),
        "objective": spec.objective.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json", include=_MEMORY_DEPENDS_ON),
        "teacher": config.teacher.model_dump(mode="json", include={"model", "revision", "dtype", "attention"}),
        "corpus": config.corpus.model_dump(mode="json", include={"seq_len", "isolate_documents"}),
    }
    if spec.objective.kind == "sparse_kd":
        of["sampling"] = config.cache_samplings[spec.sampling].model_dump(mode="json")
    return plan_stage(
        partial(plan_student, config, student),
        resources(ray),
        ray,
        Store(config.home),
        of=of,
        trial=lambda plan: partial(student_trial, run_by(planned_train(spec.train, replace(plan, batch=1)))),
    )


def _prepare(
    inputs: Inputs, student: str
) -> tuple[StudentSpec, Callable[[PlannedTrain], TrainingRun], LogitCache | PackedCorpus]:
    """Check the config and the paths it names, then the outputs of earlier stages.

    The student, what makes its run once it is planned, and what it reads.
    """
    config = inputs.config
    spec = config.student_spec(student)
    Store(config.storage.root).check_writable()
    teacher_dir, head = inputs.teacher_dir, inputs.corpus_head
    if spec.student.model is not None:
        model = inputs.located(spec.student.model)
        if spec.student.init == "checkpoint" and Path(model).is_dir():
            check_files(model)
        spec = spec.model_copy(update={"student": spec.student.model_copy(update={"model": model})})
    fit = {key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id")} | {"seq_len": head["seq_len"]}
    architecture = student_architecture(spec.student, teacher_dir=teacher_dir, **fit)
    with inputs_first(config):
        source = open_source(inputs, student)
    batch = spec.train.global_batch
    if source.num_rows < batch:
        raise ConfigError(f"train.global_batch={batch} exceeds the {source.num_rows} windows of {source.uri}: lower it")
    run_by = partial(
        TrainingRun,
        spec,
        teacher=config.teacher,
        teacher_dir=teacher_dir,
        tokenizer=inputs.located(config.corpus.tokenizer or teacher_dir),
        source_uri=Store(source.uri).absolute_uri,
        isolate_documents=config.corpus.isolate_documents,
        hard_threshold=_hard_threshold(source, spec),
        balances_router=balances_router(architecture),
        chat_template=head["chat"]["template"] if "chat" in head else None,
        **fit,
    )
    return spec, run_by, source


def _bias(spec: StudentSpec, sampling: dict[str, Any]) -> str | None:
    """Why the student's mean gradient is not that of full KD; None where it is."""
    objective = spec.objective
    of_loss = loss_bias(objective.residual, objective.divergence)
    of_targets = sampling_bias(sampling["method"], sampling["temperature"]) if objective.residual == "none" else None
    return "; ".join(reason for reason in (of_targets, of_loss) if reason) or None


def _hard_threshold(source: LogitCache | PackedCorpus, spec: StudentSpec) -> float | None:
    """Log-probability of the label at `hard_percentile` of the cache; None where all tokens weigh the same."""
    if spec.objective.hard_easy_ratio == 1.0:
        return None
    assert isinstance(source, LogitCache)  # ObjectiveConfig allows a ratio for sparse_kd alone
    histogram = source.manifest.histograms.get("label_logprob")
    if histogram is None:
        raise CacheMismatchError(
            f"{source.uri} has no label_logprob, which hard_easy_ratio needs: add it to sampling.statistics under "
            "another name, or set hard_easy_ratio=1"
        )
    return percentile(histogram, spec.objective.hard_percentile)


def _shown_once(advance: Callable[..., None], work: AtWork, *, tokens: int) -> Log:
    """Show and track the metrics of each step of so many tokens.

    One that a restart repeats is the same, bit for bit, and left out; but it costs its tokens again.
    """
    last = 0

    def show(step: int, metrics: dict[str, float]) -> None:
        nonlocal last
        work.add(tokens=tokens)
        work.live.step(step, metrics)
        if step > last:
            advance(step - last, f"loss {metrics['loss']:.3f}")
            work.run.metrics(metrics, step)
            last = step

    return show


def _is_current(record: dict[str, Any], inputs: Inputs, student: str, source: LogitCache | PackedCorpus) -> bool:
    changed = changed_since(record, inputs, student, source)
    if changed is not None:
        _logger.warning("student %s is trained again: it was %s", student, told(changed))
    return changed is None


def _is_whole(student: Store, record: dict[str, Any]) -> bool:
    try:
        check_sizes(student, record)
    except (MissingOutputError, CorruptPartError) as error:
        _logger.warning("student is written again from its last checkpoint: %s", error)
        return False
    return True


def _publish(checkpoint: Store, target: Store) -> tuple[dict[str, Any], Files]:
    """Replace the student in `target` by the one of `checkpoint`, with its log; what the log says, and the files."""
    with whole_copy(checkpoint) as (copy, _), hugging_face_directory(copy) as local:
        files = describe_files(local)
        target.remove(RESULT_FILE)  # first, so that a half-replaced student never counts as done
        for name in target.sizes(recursive=True):
            target.remove(name)
        copy_student(local, target)
        log = (local / LOG_FILE).read_bytes()
    target.write(LOG_FILE, log)
    steps = [json.loads(line) for line in log.splitlines()]
    summary = {
        "uri": target.uri,
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "loss": steps[-1]["loss"],
        "tokens_per_s": statistics.median(step["tokens_per_s"] for step in steps),
    }
    return summary, files_of_student(files)
