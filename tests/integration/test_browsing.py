"""What people browse in MLflow after a run: a parent run to sort by, students as models with their metrics."""

import json
from pathlib import Path

import yaml
from mlflow import MlflowClient
from tiny_runs import STAGES, tiny_settings, write_texts

from rskd.config import validate_config
from rskd.evaluation.window_values import METRICS
from rskd.tracking import distillation
from rskd.tracking.connection import client_of, tracking_uri_of


def test_parent_models_and_artifacts(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir, tracking={"enabled": True}))
    for stage in STAGES.values():
        stage(config)

    client = MlflowClient(tracking_uri_of(config))
    experiment = client.get_experiment_by_name("rskd")
    assert experiment is not None
    [view] = [json.loads(value) for key, value in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")]
    shown = json.loads(view["state"])
    [parent] = client.search_runs([experiment.experiment_id], shown["searchFilter"])
    assert {column.split("`")[1] for column in shown["selectedColumns"]} <= parent.data.metrics.keys()
    assert {*METRICS, "tokens_per_s", "bytes_per_token"} <= parent.data.metrics.keys()
    assert parent.data.params["teacher.dtype"] == "float32"
    assert "| default |" in parent.data.tags["mlflow.note.content"]
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "report.html"} <= artifacts
    written = Path(client.download_artifacts(parent.info.run_id, "config.yaml")).read_text()
    assert validate_config(yaml.safe_load(written)) == config

    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {
        "tiny",
        "tiny pack",
        "tiny cache",
        "tiny train default",
        "tiny evaluate",
    }
    [model] = client.search_logged_models([experiment.experiment_id])
    assert model.name == "tiny default"
    logged = {metric.key: metric for metric in model.metrics or []}
    assert METRICS[0] in logged
    assert logged["lm_loss"].value == parent.data.metrics["lm_loss"]
    assert logged["lm_loss"].dataset_name == "held-out windows"


def test_views_are_given_to_an_older_experiment_once(tmp_path: Path, tiny_teacher_dir: Path):
    config = validate_config(tiny_settings(tmp_path, tiny_teacher_dir, tracking={"enabled": True}))
    client = client_of(tracking_uri_of(config))
    experiment = client.create_experiment("rskd")
    distillation(config)
    tags = client.get_experiment(experiment).tags
    [view] = [key for key in tags if key.startswith("mlflow.sharedViewState.")]
    assert view.removeprefix("mlflow.sharedViewState.") in distillation(config).view_url
    client.delete_experiment_tag(experiment, view)  # a user removes it
    distillation(config)
    assert view not in client.get_experiment(experiment).tags
