"""A cell is one student: trained, by Ray only where train.workers asks for it, and evaluated; its record says so.

    cell ─► train_student ─► held-out windows, beside the teacher ─► cells/<cell>.json

A cell whose record is there, made with the same settings from the same corpus, teacher and cache, is skipped: a matrix
can be stopped at any time, and records can be carried to where everything is recomputed bit for bit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rskd import records
from rskd.cache.reader import LogitCache
from rskd.config import DistillConfig, RayConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.evaluation.language_modeling import TEACHER, over_windows
from rskd.evaluation.results import WINDOW_VALUES
from rskd.jobs.evaluate import evaluation_run, plan_for
from rskd.jobs.evaluate_worker import compare_models, score, window_batches
from rskd.jobs.train import train_student
from rskd.lineage.evaluation import precision
from rskd.models.files import model_fingerprint, resolve_teacher
from rskd.plan import planned_evaluate
from rskd.progress import progress_bar
from rskd.provenance import provenance
from rskd.reproduction.setting import Cell, cell_name
from rskd.storage import Store
from rskd.student.trainer import NonFiniteError

CELLS_FOLDER = "cells"

Records = Mapping[Cell, Mapping[str, Any]]  # of cells that are done


def run_cells(config: DistillConfig, cells: Sequence[Cell], processes: int, hours: float) -> dict[str, int]:
    """Train and evaluate what is not done yet, `processes` at once; none is begun after `hours`.

    Returns how many are `done` and how many are `left`. A student whose loss diverges is done: that is its result.
    """
    deadline = time.time() + 3600 * hours
    todo = [cell for cell in cells if not _is_done(config, cell)]
    done = len(cells) - len(todo)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_without_bars)
    try:
        with progress_bar("cells", len(cells)) as advance:
            advance(done)
            for task in as_completed([pool.submit(_run_before, deadline, config, cell) for cell in todo]):
                if task.result():
                    done += 1
                    advance(1)
    finally:
        pool.shutdown(cancel_futures=True)  # a cell that failed, or Ctrl-C, ends the matrix
    return {"done": done, "left": len(cells) - done}


def read_cells(config: DistillConfig, cells: Sequence[Cell]) -> Records:
    """The records of those cells that are done."""
    store = Store(config.home).child(CELLS_FOLDER)
    found = {cell: records.read(store, f"{cell_name(cell)}.json") for cell in cells}
    return {cell: record for cell, record in found.items() if record is not None}


def _without_bars() -> None:
    """Several processes would draw their progress bars over each other."""
    os.environ["TTY_COMPATIBLE"] = "0"  # Rich's: stderr is no terminal
    disable_progress_bar()  # Transformers'


def _run_before(deadline: float, config: DistillConfig, cell: Cell) -> bool:
    if time.time() > deadline:
        return False
    run_cell(config, cell)
    return True


def _recipe(config: DistillConfig, cell: Cell) -> dict[str, Any]:
    """What the record of a cell depends on: settings, and the content, wherever it lies, of what it was made from."""
    spec = config.student_specs[cell_name(cell)]
    settings = spec.model_dump(mode="json")
    del settings["train"]["at_once"]  # records from before it are as good
    if spec.student.model and (architecture := Path(spec.student.model, "config.json")).is_file():
        settings["student"]["model"] = records.digest(json.loads(architecture.read_text()))
    cache = LogitCache.open(config.cache_uri(spec.sampling)) if spec.objective.kind == "sparse_kd" else None
    return {
        "spec": settings,
        "evaluate": config.evaluate.model_dump(mode="json", exclude={"workers", "dtype"}) | precision(config.evaluate),
        "cache": cache and records.digest({"parts": [part.sha256 for part in cache.manifest.parts]}),
        "corpus": [PackedCorpus.open(config.corpus_uri(split)).manifest.fingerprint for split in ("train", "eval")],
        "teacher": _fingerprint(resolve_teacher(config)),
    }


_fingerprint = lru_cache(model_fingerprint)


def _is_done(config: DistillConfig, cell: Cell) -> bool:
    record = read_cells(config, [cell]).get(cell)
    return record is not None and record["recipe"] == _recipe(config, cell)


def run_cell(config: DistillConfig, cell: Cell) -> None:
    """Train the student of a cell, evaluate it, and write its record."""
    torch.set_num_threads(config.train.threads_per_worker)
    started = time.monotonic()
    name = cell_name(cell)
    try:
        trained = train_student(config, name)
        result = {"tokens_per_s": trained["tokens_per_s"], **_evaluate(config, name)}
    except NonFiniteError as error:
        result = {"diverged": str(error)}
    facts = {"recipe": _recipe(config, cell), "seconds": time.monotonic() - started, "provenance": provenance()}
    records.write(Store(config.home).child(CELLS_FOLDER), f"{name}.json", facts | result)


def _evaluate(config: DistillConfig, student: str) -> dict[str, Any]:
    """Metrics of the student: on the held-out windows, and of each window so that students can be paired; of tasks."""
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    alone, teacher_dir = config.model_copy(update={"ray": RayConfig(enabled=False)}), resolve_teacher(config)
    plan = plan_for(alone, corpus, teacher_dir, Store(config.home), student)
    run = evaluation_run(config, corpus, teacher_dir, [student], planned_evaluate(config.evaluate, plan))
    *_, findings = compare_models(run, window_batches(run))
    assert isinstance(findings, dict)
    values = {name: findings[name][WINDOW_VALUES] for name in (TEACHER, student)}
    return {
        "metrics": over_windows(values[student]),
        "teacher": over_windows(values[TEACHER]),
        "windows": {metric: means.tolist() for metric, means in values[student].means.items()},
        "parameters": run.load_student(student).num_parameters(),
        "tasks": {task: score(task, run, student) for task in config.evaluate.tasks},
    }
