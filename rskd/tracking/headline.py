"""The figures of a whole distillation, on its parent run: what people sort the runs of an experiment by.

evaluation ─► best student ─► lm_loss, ece, acceptance, kl_to_teacher, tokens_per_s, bytes_per_token
                  └── others that differ in their seeds alone ─► lm_loss_mean, lm_loss_sd, …
costs of all stages ─► seconds, core_seconds, gpu_seconds, money (logged by `rskd.jobs.at_work` as each stage ends)
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from rskd import costs
from rskd.config import DistillConfig, to_yaml
from rskd.costs import Costs
from rskd.markdown import markdown_table
from rskd.tracking.runs import distillation

METRICS = ("lm_loss", "ece", "acceptance", "kl_to_teacher")


def log_headline(
    config: DistillConfig, students: Mapping[str, Mapping[str, float]], stages: Mapping[str, Costs]
) -> None:
    """Log the figures of the students, METRICS and what else is known of each, with the configuration and `page`."""
    if not config.tracking.enabled:
        return
    parent = distillation(config)
    parent.metrics(headline(config, students))
    parent.text("config.yaml", to_yaml(config))
    parent.describe(page(config, students, stages))
    parent.flush()


def headline(config: DistillConfig, students: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All that is known of the student with the least lm_loss; of METRICS also mean and deviation over its seeds."""
    best = min(students, key=lambda name: students[name]["lm_loss"])
    alike = [name for name in students if _without_seeds(config, name) == _without_seeds(config, best)]
    figures = dict(students[best])
    if len(alike) > 1:
        for metric in METRICS:
            values = [students[name][metric] for name in alike]
            figures |= {f"{metric}_mean": mean(values), f"{metric}_sd": stdev(values)}
    return figures


def _without_seeds(config: DistillConfig, student: str) -> dict[str, Any]:
    """What a student is made from, but for the seeds of its order of windows and of its sampling."""
    spec = config.student_specs[student]
    settings = spec.model_dump(mode="json", exclude={"sampling": True, "train": {"seed"}})
    if spec.objective.kind == "sparse_kd":
        settings["sampling"] = config.cache_samplings[spec.sampling].model_dump(mode="json", exclude={"seed"})
    return settings


def page(config: DistillConfig, students: Mapping[str, Mapping[str, float]], stages: Mapping[str, Costs]) -> str:
    """A distillation in Markdown: its students with their figures, and what each stage cost."""
    columns = list(dict.fromkeys(key for figures in students.values() for key in figures))
    rows = [
        [name, *(f"{figures[key]:.4g}" if key in figures else "" for key in columns)]
        for name, figures in students.items()
    ]
    source = config.corpus.source
    return (
        f"Students of `{config.teacher.model}` ({config.teacher.dtype}) on {source.kind} {source.uri or ''}, in "
        f"`{config.home}`.\n\n{markdown_table(['student', *columns], rows)}\n\n"
        f"What it cost:\n\n{markdown_table(costs.HEAD, costs.rows(stages, config.costs))}\n"
    )
