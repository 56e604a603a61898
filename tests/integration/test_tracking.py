"""Tracking against a real MLflow store in sqlite."""

import logging
import math
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from mlflow import MlflowClient

from rskd import interrupts, tracking
from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError
from rskd.storage import Store
from rskd.tracking.connection import explained
from rskd.tracking.started_by import started_by


def make_config(root: Path, **sections) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "a-teacher"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module: creating its tables takes seconds."""
    root = tmp_path_factory.mktemp("storage")
    tracking.distillation(make_config(root))
    return root


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def test_a_parent_ends_with_the_last_of_its_students(root: Path, client: MlflowClient):
    config = make_config(root, students={"a": {}, "b": {}})
    parent = tracking.distillation(config)

    def status() -> str:
        return client.get_run(parent.run_id).info.status

    with tracking.one_end():
        with tracking.stage(config, "train", "a"), suppress(ValueError), tracking.stage(config, "train", "b"):
            raise ValueError("b fails")
        assert status() == "RUNNING"
    assert status() == "FAILED"  # as the worst of them
    with tracking.stage(config, "train", "b"):
        pass
    assert status() == "FINISHED"


def test_what_is_planned_takes_the_place_of_auto(root: Path, client: MlflowClient):
    config = make_config(root)
    planned = {"train": {"workers": 8, "micro_batch": 16}, "plan": "train default: 8 workers"}
    with tracking.stage(config, "train", "default", planned) as run:
        pass
    params = client.get_run(run.run_id).data.params
    assert (params["train.workers"], params["train.micro_batch"], params["plan"]) == ("8", "16", planned["plan"])
    assert (params["train.steps"], params["train.gpus_per_worker"]) == ("1000", "auto")


def test_stages_join_one_parent_run(root: Path, client: MlflowClient):
    config = make_config(root, students={"a": {"objective": {"ce_weight": 0.25}}})
    parent = tracking.distillation(config)
    with tracking.stage(config, "train", "a") as run:
        assert client.get_run(parent.run_id).info.status == "RUNNING"
    assert tracking.distillation(config).run_id == parent.run_id
    other = make_config(root / "elsewhere", tracking={"uri": parent.tracking_uri})
    assert tracking.distillation(other).run_id != parent.run_id

    logged = client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert client.get_run(parent.run_id).info.status == "FINISHED"
    assert logged.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (logged.data.tags["rskd.stage"], logged.data.tags["rskd.student"]) == ("train", "a")
    assert logged.data.params["objective.ce_weight"] == "0.25"
    assert logged.data.params["samplings.default.num_samples"] == "22"
    assert "corpus.tokenizer" not in logged.data.params  # None


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_stage_that_stops_is_marked(root: Path, client: MlflowClient, error: type[BaseException], status: str):
    runs = []

    def stop() -> None:
        with tracking.stage(make_config(root), "pack") as run:
            runs.append(run)
            run.metrics({"tokens": 7})
            raise error

    with pytest.raises(error):
        stop()
    logged = client.get_run(runs[0].run_id)
    assert (logged.info.status, logged.data.metrics) == (status, {"tokens": 7.0})


@pytest.mark.parametrize("moment", ["create_run", "set_terminated"])
def test_a_signal_while_a_run_begins_or_ends_leaves_none_running(
    root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, moment: str
):
    of_mlflow = getattr(MlflowClient, moment)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(MlflowClient, moment, of_mlflow)
        signal.raise_signal(signal.SIGTERM)
        return of_mlflow(*args, **kwargs)

    config = make_config(root, name=f"interrupted_{moment}")
    parent = tracking.distillation(config)
    monkeypatch.setattr(MlflowClient, moment, interrupted)
    with interrupts.stoppable(), pytest.raises(KeyboardInterrupt), tracking.stage(config, "pack"):
        pass
    status = "KILLED" if moment == "create_run" else "FINISHED"
    [run] = client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert (run.info.status, client.get_run(parent.run_id).info.status) == (status, status)


def test_metrics_of_every_step_arrive(root: Path, client: MlflowClient):
    with tracking.stage(make_config(root), "train") as run:
        for step in range(1, 1201):
            run.metrics({"loss": 1 / step, "lr": 0.1}, step)
        pickle.loads(pickle.dumps(run)).flush()  # a copy has nothing to send
    history = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 1201)]


def test_inputs_figures_and_models_are_stored(root: Path, client: MlflowClient, tiny_teacher_dir: Path):
    digest = "0123456789abcdef" * 4
    with tracking.stage(make_config(root), "train") as run:
        run.dataset(str(root / "cache"), {"digest": digest, "totals": {"tokens": 5}}, name="default")
        run.figure(go.Figure(go.Scatter(y=[1, 2])), "reliability")
        run.model(str(tiny_teacher_dir), name="student-1.5", digest="d")
    logged = client.get_run(run.run_id)
    dataset = logged.inputs.dataset_inputs[0].dataset
    assert digest.startswith(dataset.digest)
    assert digest in dataset.profile
    page = next(root.glob("mlartifacts/*/artifacts/figures/reliability.html")).read_text()
    assert '<script src="http' not in page
    model = client.get_logged_model(logged.outputs.model_outputs[0].model_id)
    assert (model.name, model.status, model.source_run_id) == ("student-1-5", "READY", run.run_id)
    stored = Path(model.artifact_location) / "model.safetensors"
    assert stored.read_bytes() == (tiny_teacher_dir / "model.safetensors").read_bytes()


def test_an_s3_root_keeps_runs_here_and_artifacts_there(
    object_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher_dir: Path
):
    monkeypatch.chdir(tmp_path)
    root = object_store.make_bucket()
    config = make_config(tmp_path, storage={"root": root}, students={"a": {}})
    student = Store(config.student_uri("a"))
    for file in tiny_teacher_dir.iterdir():
        student.write(file.name, file.read_bytes())
    with tracking.stage(config, "train", "a") as run:
        run.model(student.uri, name="a", digest="d")
    assert run.tracking_uri == f"sqlite:///{tmp_path}/.rskd/mlflow.db"
    logged = MlflowClient(run.tracking_uri).get_run(run.run_id)
    model = MlflowClient(run.tracking_uri).get_logged_model(logged.outputs.model_outputs[0].model_id)
    assert model.artifact_location.startswith(f"{root}/mlartifacts/")
    assert Store(model.artifact_location).read("model.safetensors") == student.read("model.safetensors")
    kept = (tmp_path / ".rskd" / "mlflow.db").read_bytes()
    assert object_store.secret_key.encode() not in kept
    assert object_store.access_key.encode() not in kept


def test_a_store_that_fails_during_work_is_warned_about_once(
    root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*args, **kwargs):
        raise ConnectionError("server is down")

    with tracking.stage(make_config(root), "train") as run:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(MlflowClient, "log_batch", refuse)
            run.metrics({"loss": 3.0}, 1)
            run.flush()
            run.flush()
        assert len(caplog.records) == 1
        assert "server is down" in caplog.text
    assert client.get_run(run.run_id).data.metrics == {"loss": 3.0}  # sent when the store is back


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://host"])
def test_an_unusable_uri_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"tracking\.uri .* cannot be used") as caught:
        tracking.distillation(make_config(tmp_path, tracking={"uri": uri}))
    assert "\n" not in str(caught.value)


def test_names_that_mlflow_refuses_are_escaped(root: Path, client: MlflowClient, tiny_teacher_dir: Path):
    config = make_config(
        root,
        students={"t=0.8": {"sampling": "学生"}, "kd+ce": {"sampling": "t=0.8"}},
        samplings={"t=0.8": {}, "学生": {}},
    )
    with tracking.stage(config, "train", "t=0.8") as run:
        run.metrics({"t=0.8/lm_loss": 1.0, "kd+ce/lm_loss": 2.0, "学生/lm_loss": 3.0, "a:b": 4.0})
        run.params({"a=b": "x" * 7000})
        run.model(str(tiny_teacher_dir), name="kd+ce.1", digest="d")
    logged = client.get_run(run.run_id)
    assert logged.data.metrics == {
        "t:3d:0.8/lm_loss": 1.0,
        "kd:2b:ce/lm_loss": 2.0,
        "学生/lm_loss": 3.0,
        "a:3a:b": 4.0,
    }
    assert logged.data.params["samplings.t:3d:0.8.num_samples"] == "22"
    assert logged.data.params["samplings.学生.num_samples"] == "22"
    assert logged.data.params["a:3d:b"] == "x" * 5999 + "…"
    assert logged.info.run_name == f"{make_config(root).name} train t=0.8"
    assert client.get_logged_model(logged.outputs.model_outputs[0].model_id).name == "kd+ce-1"


def test_a_metric_that_mlflow_refuses_loses_no_other(
    root: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
):
    values: dict[str, Any] = {"first": 1.0, "../up": 2.0, "nothing": None, "a//b": 3.0, "last": 4.0}
    with tracking.stage(make_config(root), "train") as run:
        run.metrics(values | {"nan": math.nan, "inf": math.inf})
        run.params({"a//b": 1, "c": 2})
    logged = client.get_run(run.run_id).data
    assert {key: logged.metrics[key] for key in ("first", "last")} == {"first": 1.0, "last": 4.0}
    assert math.isnan(logged.metrics["nan"])
    assert logged.metrics.keys() == {"first", "last", "nan", "inf"}
    assert logged.params["c"] == "2"
    assert len(caplog.records) == 1


def test_a_root_with_a_percent_sign(tmp_path: Path, tiny_teacher_dir: Path):
    config = make_config(tmp_path / "a%20b c")
    with tracking.stage(config, "train") as run:
        run.model(str(tiny_teacher_dir), name="s", digest="d")
    [weights] = (tmp_path / "a%20b c" / "mlartifacts").rglob("model.safetensors")
    assert weights.read_bytes() == (tiny_teacher_dir / "model.safetensors").read_bytes()
    assert (tmp_path / "a%20b c" / "mlflow.db").stat().st_size > 0
    assert not (tmp_path / "a b c").exists()


def test_a_deleted_experiment_says_how_to_restore_it(root: Path, client: MlflowClient):
    config = make_config(root, tracking={"experiment": "gone", "uri": f"sqlite:///{root}/mlflow.db"})
    tracking.distillation(config)
    experiment = client.get_experiment_by_name("gone")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    with pytest.raises(ConfigError, match=f"experiment gone was deleted: restore it .*{command}"):
        tracking.distillation(config)
    client.restore_experiment(experiment.experiment_id)
    tracking.distillation(config)


def _write_text(database: Path, _: Path) -> None:
    database.write_text("not a database" * 100)


def _make_folder(database: Path, _: Path) -> None:
    database.mkdir()


def _make_old(database: Path, sound: Path) -> None:
    shutil.copy(sound, database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_write_text, r"mlflow.db cannot be used \(file is not a database\): permit it, move that file away"),
        (_make_folder, r"mlflow.db cannot be used \(unable to open database file\)"),
        (_make_old, r"found version 451aebb31d03, .*\): back it up and run mlflow db upgrade sqlite:///"),
    ],
)
def test_a_database_that_cannot_be_used_is_reported_at_once(root: Path, tmp_path: Path, spoil: Any, message: str):
    spoil(tmp_path / "mlflow.db", root / "mlflow.db")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as error:
        tracking.distillation(make_config(tmp_path))
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://", "tracking.uri sqlite:// would lose its runs with the process: name sqlite:///FILE"),
        ("sqlite:///:memory:", "would lose its runs"),
    ],
)
def test_a_uri_that_keeps_no_runs(tmp_path: Path, uri: str, message: str):
    config = make_config(tmp_path, tracking={"uri": uri})
    with pytest.raises(ConfigError, match=message):
        tracking.distillation(config)


def test_a_database_without_its_driver():
    with (
        pytest.raises(ConfigError, match=r"cannot be used \(No module named 'absent'\): install that module, or"),
        explained("postgresql+absent://host/runs"),
    ):
        raise ModuleNotFoundError("No module named 'absent'")


def test_a_database_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_config(tmp_path)
    tracking.distillation(config)
    connect = sqlite3.connect
    monkeypatch.setattr(  # a mode that binds root, too
        sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
    )
    with pytest.raises(ConfigError, match=r"mlflow.db cannot be used \(attempt to write a readonly database\)"):
        tracking.distillation(config)


def test_processes_may_create_the_store_together(tmp_path: Path):
    code = f"""
from rskd import interrupts, tracking
from rskd.config import validate_config
config = validate_config({make_config(tmp_path).model_dump(mode="json", exclude_unset=True)!r})
print(tracking.distillation(config).run_id)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    run_ids = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert run_ids[0] == run_ids[1]  # and nothing else on stdout
    assert len(run_ids[0].strip()) == 32


def test_a_run_leads_back_to_what_started_it(root: Path, client: MlflowClient):
    page = "http://127.0.0.1:4200/runs/1"
    with started_by("Prefect's distill-demo", page), tracking.stage(make_config(root), "train") as run:
        pass
    with tracking.stage(make_config(root), "train") as later:
        pass
    tags = client.get_run(run.run_id).data.tags
    assert tags["mlflow.note.content"] == f"Started by [Prefect's distill-demo]({page})."
    assert tags["rskd.started_by"] == page
    assert "mlflow.note.content" not in client.get_run(later.run_id).data.tags
