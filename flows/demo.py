"""The demo: a real teacher distilled into three students that differ in their targets alone.

make demo          # ce, top_k and rskd, equal tokens each
make demo-seeds    # ce against rskd at three seeds of data order and of sampling
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.distill import distill
from flows.settings import run_app
from rskd.cli import Outcome
from rskd.config import DistillConfig, load_config
from rskd.dashboard.publish import write_dashboard
from rskd.jobs.promote import promote_student
from rskd.storage import Store
from rskd.tracking.connection import tracking_uri_of

CONFIGS = Path(__file__).parent / "configs"
METRICS = {
    "lm_loss": "lm loss ↓\nnats/token",
    "ece": "ece ↓",
    "top1_agreement": "top-1\nagreement ↑",
    "acceptance": "acceptance ↑",
    "kl_to_teacher": "KL to\nteacher ↓ nats",
}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(seeds: Annotated[bool, typer.Option(help="Compare CE and sampled KD at three seeds.")] = False) -> Outcome:
    """Run the demo and show its table of students."""
    return compare_seeds() if seeds else demo()


def demo() -> Outcome:
    """Distil, make `rskd` the champion of the registry, print the table, and write summary.json beside the report."""
    config = load_config(CONFIGS / "demo.yaml")
    started = time.monotonic()
    result = distill(config)
    promoted = promote_student(config, "rskd")
    dashboard = write_dashboard(config.storage.root, tracking_uri=tracking_uri_of(config))["dashboard"]

    models = metrics_of(config, result["metrics"])
    found = models | {"cache": cache_figures(result["caches"]["rskd"])}
    summary = write_summary(config, found, started, skipped=result["metrics"]["skipped"])
    print_metrics("held-out windows of CPython's documentation", models)
    champion = f"version {promoted['champion']} of {promoted['model']}"
    shown = {"report": result["report"], "dashboard": dashboard, "students": f"{config.home}/students"}
    return Outcome(summary, "demo", {"seconds": summary["seconds"], "champion": champion} | shown)


def compare_seeds() -> Outcome:
    """Train CE and sampled KD at each seed from one teacher pass; exit 1 unless sampled KD is closer at every seed."""
    config = load_config(CONFIGS / "demo-seeds.yaml")
    metrics = distill(config)["metrics"]
    models = metrics_of(config, metrics)
    print_metrics("held-out windows, by seed", models)
    closer = {
        f"seed {seed}": models[f"rskd-{seed}"]["kl_to_teacher"] < models[f"ce-{seed}"]["kl_to_teacher"]
        and models[f"rskd-{seed}"]["acceptance"] > models[f"ce-{seed}"]["acceptance"]
        for seed in seed_names(config)
    }
    return Outcome(
        models | {"closer": closer},
        "sampled KD is closer to the teacher than CE",
        closer,
        exit_code=int(not all(closer.values())),
    )


def seed_names(config: DistillConfig) -> list[str]:
    """The seeds that students `ce-SEED` and `rskd-SEED` are named after."""
    return [name.removeprefix("ce-") for name in config.student_specs if name.startswith("ce-")]


def print_metrics(title: str, models: dict[str, dict[str, float]]) -> None:
    """A table of models and their metrics on stdout; ↓ and ↑ say which way is better."""
    table = Table("model", *METRICS.values(), title=title, title_justify="left")
    for name, metrics in models.items():
        table.add_row(name, *(f"{value:.4f}" for value in metrics.values()))
    Console().print(table)


def metrics_of(config: DistillConfig, evaluated: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of the table, of the teacher and each student."""
    names = ("teacher", *config.student_specs)
    return {name: {metric: evaluated[name][metric] for metric in METRICS} for name in names}


def cache_figures(cache: dict[str, Any]) -> dict[str, float]:
    """What a summary says of a cache; of conversations also how many tokens have a loss."""
    wanted = ("tokens", "loss_tokens", "bytes_per_token", "unique_per_token")
    return {key: cache[key] for key in wanted if key in cache}


def write_summary(config: DistillConfig, found: dict[str, Any], started: float, *, skipped: bool) -> dict[str, Any]:
    """Write what was found to summary.json, with the seconds since `started`; return it.

    A run that skipped all keeps the seconds of the one that did the work.
    """
    store, seconds = Store(config.home), time.monotonic() - started
    if skipped and store.exists("summary.json"):
        seconds = json.loads(store.read("summary.json"))["seconds"]
    summary = found | {"seconds": seconds}
    store.write("summary.json", json.dumps(summary, indent=2).encode())
    return summary


if __name__ == "__main__":
    run_app(app)
