"""Cache the teacher: packed windows ─► teacher actors (Ray Data) ─► one cache for each sampling, from one pass.

    driver: check inputs ─► parts that a cache lacks ─► a pool of TeacherWorker, one part at a time
            ◄─ a row for each part, when it is committed ─► progress ─► manifests

A killed run goes on where it was: committed parts are skipped. A dead actor is restarted and its parts are done again.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from rskd import records, tracking
from rskd.cache.manifest import CacheManifest, cache_recipe
from rskd.cache.writer import CacheWriter
from rskd.config import DistillConfig, PlannedTeacher
from rskd.cores import warn_of_threads
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.corpus.sources import list_files, located
from rskd.errors import ConfigError
from rskd.jobs.at_work import AtWork, at_work, costs_of
from rskd.jobs.cache_worker import CacheRun, TeacherWorker, teacher_trial
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.plan import plan_stage, resources
from rskd.jobs.ray_session import ensure_ray
from rskd.jobs.vllm_environment import VllmEnvironment
from rskd.lineage.cache import cache_head
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs
from rskd.models.files import tensor_files
from rskd.out_of_memory import out_of_memory_explained
from rskd.plan import Plan, plan_teacher, planned_teacher
from rskd.progress import progress_bar
from rskd.storage import Store

_logger = logging.getLogger(__name__)

_THREADS = 2  # of a worker: one infers while the other reads and writes


@on_cluster
@one_at_a_time
def cache_logits(config: DistillConfig) -> dict[str, dict[str, Any]]:
    """Write every cache of `config` that is not finished; the teacher runs over what any of them lacks, once.

    Returns for each cache uri, parts, rows, tokens, loss_tokens (of conversations), bytes_per_token, unique_per_token,
    teacher_lm_loss (nats/token, None if a part was made before it was measured), skipped, and what all caches share:
    cost (`rskd.costs`) of all attempts, None where none was recorded; of those that were worked on also seconds,
    startup_seconds (until the first inference), tokens_per_s (of all workers, after start-up), stall_seconds (of
    workers that waited for storage or for work). Warns if the loss on the first part is implausible.

    Raises ConfigError for a wrong config or path, MissingOutputError for a corpus that was not packed,
    CacheMismatchError for a corpus or cache made with other settings, CorruptPartError.
    """
    started = time.time()
    run_by, heads, corpus = _prepare(config)
    writers = {name: CacheWriter(config.cache_uri(name), manifest_head=head) for name, head in heads.items()}
    parts = corpus.manifest.parts
    committed = {name: writer.committed_parts(parts) for name, writer in writers.items()}
    lacking = {part.index: [name for name in writers if part.index not in committed[name]] for part in parts}
    tasks: list[dict[str, Any]] = [{"part": index, "caches": names} for index, names in lacking.items() if names]
    tasks = [task | {"is_first": task is tasks[0]} for task in tasks]
    if not tasks:
        shared = {"cost": costs_of(config, "cache"), "skipped": True}
        return {
            name: _summary(config.cache_uri(name), writer.finish(parts)) | shared for name, writer in writers.items()
        }

    warn_of_threads("teacher.threads_per_worker", config.teacher.threads_per_worker)
    ensure_ray(config.ray)
    worked_on = {name for task in tasks for name in task["caches"]}
    plan = _plan(config, run_by)
    plan = replace(plan, workers=min(plan.workers, len(tasks)))
    run = run_by(planned_teacher(config.teacher, plan))
    makes = {name: records.digest(cache_recipe(head)) for name, head in heads.items()}
    with at_work(config, "cache", reserves=plan.reserved, makes=makes, planned=plan.params) as work:
        tracked = work.run
        described = {"digest": corpus.manifest.digest, "totals": corpus.manifest.totals}
        tracked.dataset(corpus.uri, described, name="train windows")
        run = replace(run, monitored=tracking.for_workers(tracked, config), live=work.live)
        done = _follow(config, run, tasks, work, rows=sum(parts[task["part"]].rows for task in tasks))
        timing = {"seconds": time.time() - started, **_timing(done, started)}
        summaries = {}
        for name, writer in writers.items():
            summary = _summary(config.cache_uri(name), writer.finish(parts))
            summaries[name] = summary | (timing if name in worked_on else {}) | {"skipped": name not in worked_on}
            measured = ("bytes_per_token", "unique_per_token", "teacher_lm_loss")
            tracked.metrics({f"{name}/{key}": summary[key] for key in measured if summary[key] is not None})
        tracked.metrics(timing)
    cost = costs_of(config, "cache")
    return {name: summary | {"cost": cost} for name, summary in summaries.items()}


def _plan(config: DistillConfig, run_by: Callable[[PlannedTeacher], CacheRun]) -> Plan:
    """What the teacher runs on. Its batch is the largest whose windows pass through it and all samplers."""
    of = {
        "teacher": config.teacher.model_dump(mode="json", include={"model", "revision", "dtype", "attention"}),
        "samplings": {name: sampling.model_dump(mode="json") for name, sampling in config.cache_samplings.items()},
        "corpus": config.corpus.model_dump(mode="json", include={"seq_len", "isolate_documents"}),
    }
    return plan_stage(
        partial(plan_teacher, config),
        resources(config.ray),
        config.ray,
        Store(config.home),
        of=of,
        trial=lambda plan: partial(teacher_trial, run_by(planned_teacher(config.teacher, replace(plan, batch=1)))),
    )


def _prepare(
    config: DistillConfig,
) -> tuple[Callable[[PlannedTeacher], CacheRun], dict[str, dict[str, Any]], PackedCorpus]:
    """Check the config and the paths it names, then the corpus; what makes a run, and the heads of its caches."""
    list_files(located(config.corpus.source), chat=config.corpus.kind == "chat")
    Store(config.storage.root).check_writable()
    inputs = Inputs(config)
    tensor_files(inputs.teacher_dir, f"teacher {config.teacher.model}")  # whole, before any worker starts
    environment = VllmEnvironment.find(config.teacher.python) if config.teacher.engine == "vllm" else None
    corpus = open_corpus(inputs, "train")
    if not corpus.manifest.parts:
        raise ConfigError(f"{corpus.uri} has no windows: add documents to the source, or lower corpus.eval_windows")
    vllm_version = environment.vllm_version if environment else None
    heads = {name: cache_head(inputs, name, corpus, vllm_version) for name in config.cache_samplings}
    run_by = partial(
        CacheRun,
        Store(corpus.uri).absolute_uri,
        teacher_dir=inputs.teacher_dir,
        teachers_uri=Store(config.teachers_uri).absolute_uri,
        samplings=config.cache_samplings,
        cache_uris={name: Store(config.cache_uri(name)).absolute_uri for name in config.cache_samplings},
        heads=heads,
        runtime_env=environment.runtime_env(config.teacher.threads_per_worker) if environment else {},
    )
    return run_by, heads, corpus


def _follow(
    config: DistillConfig, run: CacheRun, tasks: list[dict[str, Any]], work: AtWork, *, rows: int
) -> list[dict[str, Any]]:
    """Run the tasks to their end; what the workers say of each."""
    done: list[dict[str, Any]] = []
    seq_len = config.corpus.seq_len
    batch = f"teacher.batch_windows (now {run.teacher.batch_windows})"
    lower = batch if config.teacher.engine == "transformers" else f"teacher.gpu_memory_utilization or {batch}"
    with out_of_memory_explained(f"lower {lower}"), progress_bar("cache windows", rows) as advance:
        for row in _run(config, run, tasks):
            if row["doubt"]:
                _logger.warning(row["doubt"])
            done.append(row)
            timing = _timing(done, row["started"])
            work.add(tokens=row["tokens"], bytes_written=row["bytes"])
            work.live.add("rskd_parts_total")
            work.live.set("rskd_tokens_per_second", timing["tokens_per_s"])
            work.live.set("rskd_stall_seconds", timing["stall_seconds"])
            advance(row["tokens"] // seq_len, f"{timing['tokens_per_s']:.0f} tokens/s")
    return done


def _run(config: DistillConfig, run: CacheRun, tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What workers say of each task, as soon as its part is committed."""
    if config.ray.enabled:
        from rskd.jobs.on_ray import map_by_teachers

        yield from map_by_teachers(config, run, tasks, threads=_THREADS)
    else:
        pool = ThreadPoolExecutor(_THREADS, "teacher")
        try:
            yield from pool.map(TeacherWorker(run), tasks)
        except Exception:
            pool.shutdown()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after ctrl-C nobody waits for parts that are half done


def _timing(done: list[dict[str, Any]], started: float) -> dict[str, float]:
    """What the clocks of the workers say of a run that began at `started`."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in done:
        spans[row["worker"]].append((row["started"], row["ended"]))
    first = min(row["started"] for row in done)
    last = max(row["ended"] for row in done)
    busy = sum(row["ended"] - row["started"] for row in done)
    present = sum(max(end for _, end in times) - min(start for start, _ in times) for times in spans.values())
    return {
        "startup_seconds": first - started,
        "tokens_per_s": sum(row["tokens"] for row in done) / (last - first),
        "stall_seconds": present - busy,
    }


def _summary(uri: str, manifest: CacheManifest) -> dict[str, Any]:
    totals = manifest.totals
    return {
        "uri": uri,
        "parts": len(manifest.parts),
        "rows": totals["rows"],
        "tokens": totals["tokens"],
        **({"loss_tokens": manifest.loss_tokens} if manifest.masked else {}),
        "bytes_per_token": totals["bytes"] / totals["tokens"],
        "unique_per_token": totals["samples"] / totals["tokens"],
        "teacher_lm_loss": manifest.teacher_lm_loss,
    }
