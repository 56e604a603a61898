"""Retraining as Prefect runs it: a first champion, nothing new, new text, and a run started when files arrive."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from tiny_runs import tiny_settings, write_texts

from flows.deployments import register
from flows.registry import promote, rollback
from flows.retrain import retrain
from flows.watch_source import watch_source
from rskd.config import DistillConfig, validate_config
from rskd.tracking.connection import tracking_uri_of

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def config(tmp_path: Path, tiny_teacher_dir: Path) -> DistillConfig:
    write_texts(tmp_path / "text")
    return validate_config(
        tiny_settings(
            tmp_path,
            tiny_teacher_dir,
            corpus={"eval_windows": 24},
            evaluate={"max_windows": 32},
            tracking={"enabled": True},
        )
    )


def files_of(config: DistillConfig) -> dict[Path, int]:
    """Every file of the distillation with the nanosecond in which it was written."""
    return {file: file.stat().st_mtime_ns for file in Path(config.home).rglob("*") if file.is_file()}


def test_champion_then_nothing_new_then_new_text_and_back(config: DistillConfig, tmp_path: Path):
    first = retrain(config)
    assert (first["verdict"], first["version"], first["champion"], first["skipped"]) == ("PROMOTE", 1, 1, False)
    made = files_of(config)
    second = retrain(config)
    assert (second["version"], second["champion"], second["skipped"]) == (1, 1, True)
    assert files_of(config) == made

    write_texts(tmp_path / "text", range(8, 12))
    third = retrain(config)
    assert (third["version"], third["against"], third["skipped"]) == (2, 1, False)
    assert third["champion"] == (2 if third["verdict"] == "PROMOTE" else 1)
    assert all(row["challenger"] is not None and row["champion"] is not None for row in third["ledger"])
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    pages = [artifact.data for artifact in artifacts if artifact.key == "verdict"]
    shown = [artifact for artifact in artifacts if artifact.key == "progress"]
    assert any("train default: 2 of 2" in str(artifact.description) for artifact in shown)
    assert all(artifact.flow_run_id and artifact.data == 100 for artifact in shown)
    assert any("nothing new" in str(page) for page in pages)
    assert any("| lm_loss |" in str(page) and "against version\n1" in str(page) for page in pages)

    uri = tracking_uri_of(config)
    assert promote("tiny", version=2, tracking_uri=uri)["champion"]["version"] == 2
    back = rollback("tiny", tracking_uri=uri)
    assert (back["champion"]["version"], back["previous"]["version"]) == (1, 2)


def test_a_look_starts_one_run_for_each_state_of_the_source(config: DistillConfig, tmp_path: Path):
    register(pool="machines", directory=tmp_path)
    first, second = watch_source(config), watch_source(config)
    assert (first["new"], second["new"]) == (True, False)
    assert first | {"new": False} == second
    write_texts(tmp_path / "text", range(8, 9))
    third = watch_source(config)
    assert third["run"] != first["run"]
    assert third["files"] == first["files"] + 1
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        runs = [run for run in client.read_flow_runs() if run.deployment_id == UUID(str(deployment.id))]
    assert {run.name for run in runs} == {first["run"], third["run"]}
    assert runs[0].parameters["config"]["name"] == "tiny"
