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
from pathlib import Path
from typing import Any

from rskd import records, tracking
from rskd.cache.histogram import percentile
from rskd.cache.reader import LogitCache
from rskd.config import DistillConfig, SamplingConfig, StudentSpec
from rskd.cores import warn_of_threads
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError, MissingOutputError
from rskd.inputs import inputs_first
from rskd.jobs.corpus_head import check_made_with, corpus_head
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.training.in_process import train_in_process
from rskd.jobs.training.run import TrainingRun
from rskd.models.digests import RESULT_FILE, Files, check_files, check_sizes, whole_copy
from rskd.models.files import model_fingerprint, model_fingerprints, resolve_teacher
from rskd.progress import progress_bar
from rskd.storage import Store
from rskd.student.architecture import student_architecture
from rskd.student.bias import loss_bias, sampling_bias
from rskd.student.checkpoint import LOG_FILE, copy_student, files_of_student
from rskd.student.router_loss import balances_router
from rskd.student.trainer import Log

_logger = logging.getLogger(__name__)

# How a run is executed: its result does not depend on that, but for the order of floating-point sums.
_EXECUTION = {"micro_batch", "workers", "gpus_per_worker", "threads_per_worker", "checkpoint_every", "max_failures"}
_CUTS_OF_A_STEP = {"micro_batch", "workers"}  # into forwards, over each of which a router's auxiliary loss is a mean


@one_at_a_time
def train_student(config: DistillConfig, student: str = "default") -> dict[str, Any]:
    """Train one student of `config` and write it to `config.student_uri(student)`; skipped if it is there and matches.

    Returns uri, steps, tokens, loss (of the last step, nats/token), tokens_per_s, seconds, and `skipped`.

    Raises ConfigError for a wrong config or path, MissingOutputError and CacheMismatchError for the corpus or cache,
    NonFiniteError for a loss that diverged. None of them is retried; a lost worker is, from the newest checkpoint.
    """
    run, source, recipe = _prepare(config, student)
    target = Store(config.student_uri(student))
    done = records.read(target, RESULT_FILE)
    if done is not None and done.get("recipe") == recipe and _is_whole(target, done):
        return done["summary"] | {"skipped": True}

    if isinstance(source, LogitCache) and (reason := _bias(run.spec, source.manifest.sampling)):
        _logger.warning("student %s learns from a biased target: %s", student, reason)
    warn_of_threads("train.threads_per_worker", run.spec.train.threads_per_worker)
    started = time.monotonic()
    with tracking.stage(config, "train", student) as tracked:
        manifest = {"digest": source.manifest.digest, "totals": source.manifest.totals}
        tracked.dataset(source.uri, manifest, name=source.uri.rsplit("/", 1)[-1])
        checkpoints = Store(config.checkpoints_uri(student))
        name = records.digest(recipe)[:16]
        with progress_bar(f"train {student}", run.spec.train.steps) as advance:
            show = _shown_once(advance, tracked)
            if run.spec.train.workers == 0:
                checkpoint = train_in_process(run, checkpoints, show, name=name)
            else:
                from rskd.jobs.training.on_ray import train_on_ray

                checkpoint = train_on_ray(run, checkpoints, show, name=name, config=config.ray)
        summary, files = _publish(checkpoint, target)
        summary["seconds"] = time.monotonic() - started
        records.write(target, RESULT_FILE, {"recipe": recipe, "summary": summary, "files": files})
        tracked.model(target.uri, name=student)
    return summary | {"skipped": False}


def _prepare(config: DistillConfig, student: str) -> tuple[TrainingRun, LogitCache | PackedCorpus, dict[str, Any]]:
    """Check the config and the paths it names, then the outputs of earlier stages. The run, its source and recipe."""
    if student not in config.student_specs:
        raise ConfigError(f"student {student} is not in students ({', '.join(config.student_specs)}): name one of them")
    spec = config.student_specs[student]
    Store(config.storage.root).check_writable()
    teacher_dir = resolve_teacher(config)
    head, _ = corpus_head(config, teacher_dir)
    if spec.student.model is not None:
        model = _absolute(spec.student.model)
        if spec.student.init == "checkpoint" and Path(model).is_dir():
            check_files(model)
        located = spec.student.model_copy(update={"model": model})
        spec = spec.model_copy(update={"student": located})
    fit = {key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id")} | {"seq_len": head["seq_len"]}
    architecture = student_architecture(spec.student, teacher_dir=teacher_dir, **fit)
    reads_teacher = spec.objective.kind != "ce" or spec.student.init == "teacher_layers"
    fingerprints = model_fingerprints(teacher_dir) if reads_teacher else ()
    with inputs_first(config):
        source = _open_source(config, spec, head, fingerprints)
    run = TrainingRun(
        spec=spec,
        teacher=config.teacher,
        teacher_dir=teacher_dir,
        tokenizer=_absolute(config.corpus.tokenizer or teacher_dir),
        source_uri=Store(source.uri).absolute_uri,
        isolate_documents=config.corpus.isolate_documents,
        hard_threshold=_hard_threshold(source, spec),
        balances_router=balances_router(architecture),
        **fit,
    )
    return run, source, _recipe(config.student_specs[student], run, source, fingerprints)


def _open_source(
    config: DistillConfig, spec: StudentSpec, head: dict[str, Any], fingerprints: tuple[str, ...]
) -> LogitCache | PackedCorpus:
    """The cache (sparse_kd) or the packed corpus, checked against `corpus_head(config)`.

    Both give the same windows in the same order, so students that differ in their objective alone are paired.
    """
    packed = Store(config.corpus_uri("train"))
    if spec.objective.kind == "sparse_kd":
        source = LogitCache.open(config.cache_uri(spec.sampling))
        corpus = source.manifest.corpus
        _check_targets(source, config, spec.sampling, fingerprints)
        if packed.exists("manifest.json"):  # a cache alone is enough to train from
            _check_covers(source, PackedCorpus.open(packed.uri))
    else:
        source = PackedCorpus.open(packed.uri)
        corpus = source.manifest.to_dict()
    check_made_with(head, corpus, source.manifest.tokenizer, source.uri)
    batch = spec.train.global_batch
    if source.num_rows < batch:
        raise ConfigError(f"train.global_batch={batch} exceeds the {source.num_rows} windows of {source.uri}: lower it")
    return source


def _check_targets(cache: LogitCache, config: DistillConfig, sampling: str, fingerprints: tuple[str, ...]) -> None:
    """CacheMismatchError, naming the key, unless the cache has the sampling and the teacher of the configuration."""
    made_by, teacher = cache.manifest.teacher, config.teacher
    same_model = made_by["fingerprint"] in fingerprints
    stored, wanted = (
        settings.model_dump(mode="json")  # an older cache lacks options that were the default then
        for settings in (SamplingConfig.model_validate(cache.manifest.sampling), config.cache_samplings[sampling])
    )
    found_and_wanted = {
        **{f"sampling.{key}": (stored[key], wanted[key]) for key in wanted},
        **{f"teacher.{key}": (made_by[key], getattr(teacher, key)) for key in ("dtype", "engine")},
        "teacher.quantization": (made_by.get("quantization"), teacher.quantization),
        "teacher.model": (made_by["model"], made_by["model"] if same_model else f"{teacher.model} (as it is now)"),
    }
    for name, (found, configured) in found_and_wanted.items():
        if found != configured:
            raise CacheMismatchError(
                f"cache {cache.uri} was made with {name}={found}, not {configured}: undo the change, or choose another "
                "name for the run or the sampling and run rskd cache"
            )


def _check_covers(cache: LogitCache, corpus: PackedCorpus) -> None:
    if cache.manifest.corpus["fingerprint"] != corpus.manifest.fingerprint:
        raise CacheMismatchError(
            f"cache {cache.uri} was not made from all of {corpus.uri} as it is now: run rskd cache"
        )


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


def _shown_once(advance: Callable[..., None], tracked: tracking.Run) -> Log:
    """Show and track the metrics of each step; one that a restart repeats is the same, bit for bit, and left out."""
    last = 0

    def show(step: int, metrics: dict[str, float]) -> None:
        nonlocal last
        if step > last:
            advance(step - last, f"loss {metrics['loss']:.3f}")
            tracked.metrics(metrics, step)
            last = step

    return show


def _is_whole(student: Store, record: dict[str, Any]) -> bool:
    try:
        check_sizes(student, record)
    except (MissingOutputError, CorruptPartError) as error:
        _logger.warning("student is written again from its last checkpoint: %s", error)
        return False
    return True


def _publish(checkpoint: Store, target: Store) -> tuple[dict[str, Any], Files]:
    """Replace the student in `target` by the one of `checkpoint`, with its log; what the log says, and the files."""
    with whole_copy(checkpoint) as (local, files):
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


def _recipe(
    spec: StudentSpec, run: TrainingRun, source: LogitCache | PackedCorpus, fingerprints: tuple[str, ...]
) -> dict[str, Any]:
    """All that the result depends on: what the config says, and digests of what it reads."""
    inputs = {"source": source.manifest.digest}
    if spec.student.init == "teacher_layers" or spec.objective.kind == "full_kd":
        inputs["teacher"] = fingerprints[0]
    model = run.spec.student.model
    if spec.student.init == "checkpoint" and model is not None and Path(model).is_dir():
        inputs["checkpoint"] = model_fingerprint(model)
    execution = _EXECUTION - _CUTS_OF_A_STEP if run.balances_router else _EXECUTION
    return {"spec": spec.model_dump(mode="json", exclude={"sampling": True, "train": execution}), "inputs": inputs}


def _absolute(name: str) -> str:
    """A local path made absolute; anything else (hub id, s3://) as it is."""
    return str(Path(name).resolve()) if "://" not in name and Path(name).exists() else name
