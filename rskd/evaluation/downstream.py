"""Zero-shot scores on downstream tasks by the LM evaluation harness (Gao et al. 2024). The only module with lm-eval.

    names ─► find_tasks ─► score(model, tokenizer, task): data, requests, log-likelihoods ─► {metric: value, error}

Tasks are the harness's own (hellaswag, arc_easy, lambada_openai, lambada_standard, piqa, …), whose data come from the
Hugging Face hub, or local: YAML files below a folder, with `dataset_path: json` and files of their own.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rskd.errors import ConfigError, first_line
from rskd.models.causal_lm import cut_vocabulary

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_HEADLINE = ("acc_norm", "acc")  # what a task counts with in the mean score: the first that it has


def find_tasks(tasks: Sequence[str], task_path: str | None) -> TaskManager:
    """The harness's index of tasks; those of `task_path` stand before its own.

    Raises ConfigError where lm-eval is not installed, for a folder that is not there, and for unknown names.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("evaluate.tasks needs lm-eval, which is not installed: pip install 'rskd[downstream]'")
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if task_path is not None:
        if not Path(task_path).is_dir():
            raise ConfigError(f"evaluate.task_path {task_path} is no folder: name one with YAML files of tasks")
        index = TaskManager(include_path=task_path, include_defaults=False)
        if all(index.match_tasks([task]) for task in tasks):
            return index  # without the harness's own, of which there are thousands
    index = TaskManager(include_path=task_path)
    unknown = [task for task in tasks if not index.match_tasks([task])]
    if unknown:
        where = f", nor a YAML file in {task_path}" if task_path else ""
        raise ConfigError(
            f"evaluate.tasks: {unknown[0]} is no task of lm-eval{where}: correct its name, or set evaluate.task_path"
        )
    return index


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    *,
    vocab_size: int,
    task_path: str | None,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Zero-shot metrics of one task, or of each of a group: {metric: {"value": …, "standard_error": …}}.

    Ids from `vocab_size` on are cut off the model, for good. `limit` takes the first examples alone. Metrics of a
    group's tasks are named task/metric. Raises ConfigError as `find_tasks` does, and where the data cannot be had.
    """
    index = find_tasks([task], task_path)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        index.load([task])
    except Exception as error:  # datasets, huggingface_hub, requests and OS errors, by what is missing
        raise ConfigError(
            f"evaluate.tasks: the data of {task} cannot be had ({first_line(error)}): download it where there is a "
            "network, or remove the task"
        ) from None
    cut_vocabulary(model, vocab_size)
    os.environ["DISABLE_MULTIPROC"] = "1"  # the harness would fork a process that has threads: it may hang
    harness_model: Any = HFLM  # its constructor is untyped
    found: Any = simple_evaluate(
        harness_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[task],
        num_fewshot=0,
        limit=limit,
        log_samples=False,
        bootstrap_iters=1000,
        task_manager=index,
    )
    return _metrics(found["results"], task)


def mean_score(tasks: dict[str, dict[str, dict[str, float]]]) -> float | None:
    """Mean over tasks of acc_norm, or of acc where a task has no other (the paper's 0-shot score); None without any."""
    scores = [value for metrics in tasks.values() if (value := headline(metrics)) is not None]
    return sum(scores) / len(scores) if scores else None


def headline(metrics: dict[str, dict[str, float]]) -> float | None:
    """What a task counts with in the mean score; None for one that has neither accuracy."""
    found = _counted(metrics)
    return None if found is None else found["value"]


def score_error(tasks: dict[str, dict[str, dict[str, float]]]) -> float | None:
    """Standard error of `mean_score` over the examples of all tasks; None where that of one is not known."""
    errors = [found.get("standard_error") for metrics in tasks.values() if (found := _counted(metrics)) is not None]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(errors) else None


def _counted(metrics: dict[str, dict[str, float]]) -> dict[str, float] | None:
    return next((metrics[name] for name in _HEADLINE if name in metrics), None)


def _metrics(results: dict[str, dict[str, Any]], task: str) -> dict[str, dict[str, float]]:
    """From the harness's `{task: {"metric,filter": value, "metric_stderr,filter": error}}`."""
    metrics: dict[str, dict[str, float]] = {}
    for name, values in results.items():
        prefix = "" if name == task else f"{name}/"
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if comma and isinstance(value, int | float) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{filtered}")
                known = {"standard_error": float(error)} if isinstance(error, int | float) else {}
                label = metric if filtered == "none" else f"{metric},{filtered}"
                metrics[prefix + label] = {"value": float(value)} | known
    return metrics
