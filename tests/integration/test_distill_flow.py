"""What Prefect shows of a distillation: each stage's table with its costs, and a summary of all in Markdown."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from tiny_runs import tiny_settings, write_texts

from flows.distill import distill
from rskd import tracking
from rskd.config import validate_config
from rskd.tracking.connection import tracking_uri_of


@pytest.mark.slow
def test_students_side_by_side(tmp_path: Path, tiny_teacher_dir: Path, ray_local: None):
    """Each is a flow of its own in a thread, below the one that distils."""
    write_texts(tmp_path / "text")
    train = {"workers": 1, "at_once": 2}
    students = {"kd": {}, "ce": {"objective": {"kind": "ce"}}}
    settings = tiny_settings(tmp_path, tiny_teacher_dir, train=train, students=students, ray={"enabled": True})
    with prefect_test_harness(server_startup_timeout=120):
        result = distill(validate_config(settings))
        with get_client(sync_client=True) as client:
            runs = {run.name: run for run in client.read_flow_runs()}
    assert {name: found["steps"] for name, found in result["students"].items()} == {"kd": 2, "ce": 2}
    for name in students:
        run = runs[f"train-tiny-{name}"]
        assert run.parent_task_run_id is not None
        assert run.state is not None
        assert run.state.is_completed()
    times = [(runs[f"train-tiny-{name}"].start_time, runs[f"train-tiny-{name}"].end_time) for name in students]
    assert max(start for start, _ in times) < min(end for _, end in times)


@pytest.mark.e2e
def test_tables_and_summary(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    prices = {"price_per_core_hour": 1.2}
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir, costs=prices, tracking={"enabled": True}))
    with prefect_test_harness(server_startup_timeout=120):
        result = distill(config)
        with get_client(sync_client=True) as client:
            artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
    trained = result["students"]["default"]["cost"]
    for key, tokens in {"corpus": None, "caches": None, "student": trained["tokens"], "evaluation-cost": 32}.items():
        [row] = json.loads(str(artifacts[key].data))
        assert row["cost.money"] == pytest.approx(row["cost.core_seconds"] / 3600 * 1.2)
        assert tokens in (None, row["cost.tokens"])

    assert f"(file://{tmp_path}/store/dashboard.html)" in str(artifacts["dashboard"].data)
    shown = (tmp_path / "store" / "dashboard.html").read_text()
    assert '"stage":"evaluate","state":"done"' in shown
    uri = tracking_uri_of(config)
    logged = MlflowClient(uri).download_artifacts(tracking.distillation(config).run_id, "dashboard.html")
    assert Path(logged).read_text() == shown

    page = str(artifacts["summary"].data)
    assert page.startswith("# tiny\n")
    lm_loss = result["metrics"]["default"]["lm_loss"]
    assert f"| default | {lm_loss:.4g} |" in page
    for stage in ("pack", "cache", "train default", "evaluate", "total"):
        assert f"| {stage} |" in page
    assert f"[Report](file://{tmp_path}/store/tiny/report.html)" in page
    assert "[MLflow runs of this distillation](http://127.0.0.1:5000/#/experiments/1/runs/" in page
    assert "[All distillations in MLflow](http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=" in page
