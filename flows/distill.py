"""The whole way: pack ─► cache ─► train the students, side by side where there is room ─► evaluate ─► report.

    python -m flows.distill CONFIG.yaml [--set section.key=value]...

A stage whose output exists and matches is skipped, visibly; no cache is made where no student reads one.
"""

from __future__ import annotations

import itertools
from typing import Any, cast
from uuid import UUID

import typer
from prefect import flow
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.cache_logits import cache_logits
from flows.dashboard import address
from flows.evaluate_student import evaluate_student
from flows.pack_corpus import pack_corpus
from flows.settings import run_app
from flows.stage import run_stage, show_status
from flows.train_student import train_students
from rskd.cli import ConfigArgument, Outcome, SetOption
from rskd.config import DistillConfig, load_config

_LINKS = {"report": "Report", "mlflow": "MLflow runs of this distillation", "all": "All distillations in MLflow"}


@flow(name="distill", flow_run_name="distill-{config.name}")
def distill(config: DistillConfig) -> dict[str, Any]:
    """Distil the teacher into every student of the configuration, evaluate them, and write the report."""
    from rskd.jobs.report import summary_page, write_report
    from rskd.tracking import distillation

    num_stages = 4 + len(config.student_specs)
    progress = cast(
        UUID, create_progress_artifact(progress=0.0, key="distill-progress", description=f"Stages of {config.name}")
    )

    def finished(stages: int) -> None:
        update_progress_artifact(artifact_id=progress, progress=100.0 * stages / num_stages)

    show_status(config)
    corpus = pack_corpus(config)
    finished(1)
    caches = cache_logits(config) if config.wants_caches else {}
    finished(2)
    done = itertools.count(3)
    trained = train_students(config, lambda: finished(next(done)))
    metrics = evaluate_student(config)
    finished(num_stages - 1)
    report = run_stage("report", write_report, config)
    finished(num_stages)

    links = {"report": address(report)}
    if config.tracking.enabled:
        tracked = distillation(config)
        links |= {"mlflow": tracked.url, "all": tracked.view_url}
    for key, link in links.items():
        create_link_artifact(key=key, link=link, description=_LINKS[key])
    linked = "\n".join(f"- [{_LINKS[key]}]({link})" for key, link in links.items())
    create_markdown_artifact(
        f"# {config.name}\n\n{summary_page(config)}\n{linked}\n", key="summary", description=f"Summary of {config.name}"
    )
    return {"corpus": corpus, "caches": caches, "students": trained, "metrics": metrics, "report": report}


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(config: ConfigArgument, overrides: SetOption = None) -> Outcome:
    """Run the whole distillation of a configuration."""
    result = distill(load_config(config, overrides or ()))
    return Outcome(result, "distillation", {"report": result["report"]})


if __name__ == "__main__":
    run_app(app)
