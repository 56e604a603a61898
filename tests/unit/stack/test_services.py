import importlib.util
import shutil
from collections.abc import Iterator

import pytest
import yaml
from live_metrics import PROMETHEUS

from infra.stack.services import (
    WORKER,
    credentials_of,
    environment_of,
    make_folders,
    missing_services,
    server_environment_of,
    services_of,
    short_ray_folder,
)
from infra.stack.settings import MlflowSettings, PrefectSettings, StackSettings
from infra.stack.supervision import configuration
from rskd.errors import ConfigError


@pytest.fixture
def settings(tmp_path) -> Iterator[StackSettings]:
    settings = StackSettings(folder=tmp_path / "stack")
    yield settings
    short_ray_folder(settings).unlink(missing_ok=True)


def without(monkeypatch, missing: str) -> None:
    """As on a machine where `missing` is not installed: a module or a program."""
    find_module, find_program = importlib.util.find_spec, shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_module(name))
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == missing else find_program("sh"))


@pytest.mark.parametrize("module", ["supervisor", "prefect", "mlflow"])
def test_what_must_be_there_is_named(monkeypatch, settings, module):
    without(monkeypatch, module)
    with pytest.raises(ConfigError, match=rf"{module} is not installed in .*: make install"):
        services_of(settings)


def test_what_may_be_missing_is_left_out(monkeypatch, settings):
    everything = ["prefect", WORKER, "mlflow", "dashboard", "object-store", "ray", "prometheus"]
    without(monkeypatch, "nothing")
    assert [service.name for service in services_of(settings)] == everything
    assert missing_services(settings) == []
    for program, names in {
        "weed": ["object-store"],
        "prometheus": ["prometheus"],
        "ray": ["ray", "prometheus"],
    }.items():
        without(monkeypatch, program)
        assert [service.name for service in services_of(settings)] == [name for name in everything if name not in names]
        assert missing_services(settings) == names
        monkeypatch.undo()


def test_two_services_on_one_port(settings):
    clash = settings.model_copy(update={"mlflow": MlflowSettings(port=settings.prefect.port)})
    with pytest.raises(ConfigError, match=r"prefect\.port and mlflow\.port are both 4200: give each a port of its own"):
        services_of(clash)


def test_secrets_are_made_once_and_for_the_owner(monkeypatch, settings):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    make_folders(settings)
    first = credentials_of(settings), (settings.folder / "ray-token").read_text()
    make_folders(settings)
    assert (credentials_of(settings), (settings.folder / "ray-token").read_text()) == first
    assert first[0]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:8333"
    assert {path.stat().st_mode & 0o077 for path in (settings.folder / "ray-token", settings.folder / "s3.json")} == {0}
    written = configuration(settings, services_of(settings))
    assert first[0]["AWS_SECRET_ACCESS_KEY"] not in written
    assert first[1] not in written


def test_prometheus_reads_the_rules_and_names_of_dashboards(settings):
    """Of the stack's own Ray, whatever folder it is started in."""
    make_folders(settings)
    ours = yaml.safe_load((settings.folder / "prometheus" / "prometheus.yml").read_text())
    theirs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert ours["rule_files"] == [str(PROMETHEUS / "alerts.yml")]
    assert ours["global"] == theirs["global"]
    ((own,), (given,)) = ours["scrape_configs"], theirs["scrape_configs"]
    assert own["metric_relabel_configs"] == given["metric_relabel_configs"]
    [targets] = own["file_sd_configs"]
    assert targets["files"] == [str(settings.folder / "ray" / "prom_metrics_service_discovery.json")]


def test_an_object_store_of_the_users_own_is_kept(monkeypatch, settings):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    make_folders(settings)
    assert credentials_of(settings) == {}


def test_a_teams_databases(settings):
    prefect, mlflow = "postgresql+asyncpg://rskd@db.example/prefect", "postgresql+psycopg2://rskd@db.example/mlflow"
    team = settings.model_copy(
        update={"prefect": PrefectSettings(database=prefect), "mlflow": MlflowSettings(database=mlflow)}
    )
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in server_environment_of(settings)
    assert server_environment_of(team)["PREFECT_API_DATABASE_CONNECTION_URL"] == prefect
    assert server_environment_of(team)["MLFLOW_BACKEND_STORE_URI"] == mlflow
    assert (
        server_environment_of(settings)["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{settings.folder}/mlflow/mlflow.db"
    )


def test_without_ray_a_run_may_join_another_cluster(settings):
    assert "RAY_AUTH_MODE" in environment_of(settings)
    alone = settings.model_copy(update={"optional": ()})
    assert not any(name.startswith("RAY_") for name in environment_of(alone))
