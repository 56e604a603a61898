"""Deployments on a real Prefect server: what is declared arrives, and what a user switched stays."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.deployments import DEPLOYMENTS, main, register
from flows.stage import SHARED_LIMIT
from rskd.errors import ConfigError

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        yield client


def test_what_is_declared_arrives(client, tmp_path):
    names = register(pool="machines", directory=tmp_path, tracking_uri="http://127.0.0.1:5000")
    assert {"distill", "pack-corpus", "cache-logits", "train-student", "evaluate-student"} <= set(names)
    for declared in DEPLOYMENTS:
        name = declared.flow.name
        found = client.read_deployment_by_name(f"{name}/{name}")
        assert found.work_pool_name == "machines"
        env = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}
        assert found.job_variables == {"working_dir": str(tmp_path), "env": env}
        assert Path(*found.entrypoint.split(".")[:-1]).with_suffix(".py").exists()
        assert found.description
        assert "rskd" in found.tags
        assert found.enforce_parameter_schema
        assert found.global_concurrency_limit.limit == 1
        assert found.concurrency_options.collision_strategy == "ENQUEUE"
        assert not found.paused
        assert all(schedule.slug for schedule in found.schedules)
        assert {schedule.active for schedule in found.schedules} <= {name == "crash-dead-runs"}
    distill = client.read_deployment_by_name("distill/distill")
    assert [schedule.slug for schedule in distill.schedules] == ["weekly"]
    assert distill.parameters["config"]["name"] == "demo"
    assert distill.parameters["config"]["tracking"] == {"uri": "http://127.0.0.1:5000"}
    form = distill.parameter_openapi_schema["definitions"]["TeacherConfig"]["properties"]
    assert "Hub id" in form["model"]["description"]
    assert client.read_work_pool("machines").type == "process"
    assert client.read_global_concurrency_limit_by_name(SHARED_LIMIT).limit == 1


def test_forms_are_filled_in_with_what_a_cluster_needs(client, tmp_path):
    overrides = ["storage.root=s3://rskd", "ray.address=http://rskd-head-svc:8265"]
    register(pool="machines", directory=tmp_path, tracking_uri="http://mlflow:5000", overrides=overrides)
    parameters = client.read_deployment_by_name("post-train/post-train").parameters
    for form in (parameters["config"], parameters["before"]):
        assert form["storage"]["root"] == "s3://rskd"
        assert form["ray"]["address"] == "http://rskd-head-svc:8265"
        assert form["tracking"]["uri"] == "http://mlflow:5000"
    assert parameters["before"]["name"] == "demo"
    with pytest.raises(ConfigError, match=r"storage\.rot"):
        register(pool="machines", directory=tmp_path, overrides=["storage.rot=s3://rskd"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, r"PREFECT_API_URL is not set: name the server to register with, as http://HOST:4200/api"),
        (
            "http://127.0.0.1:9/api",
            r"PREFECT_API_URL=http://127\.0\.0\.1:9/api does not answer \(.*\): start the server",
        ),
    ],
)
def test_registering_alone_starts_no_server(url, message):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ConfigError, match=message):
        main(register_only=True)


def test_the_form_of_a_judge(client, tmp_path):
    """The server checks it against the schema."""
    register(pool="machines", directory=tmp_path)
    judge = client.read_deployment_by_name("judge/judge")
    sections = {
        "generate": {"prompt_sets": {"dolly": {"kind": "dolly", "uri": "data/dolly", "limit": 100}}, "generations": 2},
        "judge": {"endpoint": "http://127.0.0.1:8000/v1", "model": "judge", "api_key_env": None},
    }
    config = judge.parameters["config"] | sections
    run = client.create_flow_run_from_deployment(judge.id, parameters={"config": config})
    assert run.parameters["config"]["judge"] == sections["judge"]
    config["judge"] = {"model": "judge"}
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(judge.id, parameters={"config": config})


def test_a_wrong_form_is_refused(client, tmp_path):
    register(pool="machines", directory=tmp_path)
    distill = client.read_deployment_by_name("distill/distill")
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(distill.id, parameters={"config": {"name": "x", "nonsense": 1}})


def test_registering_again_leaves_what_a_user_switched(client, tmp_path):
    register(pool="machines", directory=tmp_path)
    distill = client.read_deployment_by_name("distill/distill")
    client.update_deployment_schedule(distill.id, distill.schedules[0].id, active=True)
    own = IntervalSchedule(interval=3600)
    client.create_deployment_schedules(distill.id, [DeploymentScheduleCreate(schedule=own, active=True)])
    client.update_deployment(distill.id, DeploymentUpdate(paused=True, tags=["mine"]))
    client.update_global_concurrency_limit(SHARED_LIMIT, _limit(3))
    before = _schedules(client)
    assert {slug for slug, _, _ in before} == {"weekly", None}

    register(pool="machines", directory=tmp_path)
    distill = client.read_deployment_by_name("distill/distill")
    assert distill.paused
    assert _schedules(client) == before
    assert distill.tags == ["rskd", "distillation"]
    assert client.read_global_concurrency_limit_by_name(SHARED_LIMIT).limit == 3

    client.update_deployment(distill.id, DeploymentUpdate(paused=False))
    for schedule in distill.schedules:
        client.update_deployment_schedule(distill.id, schedule.id, active=False)
    before = _schedules(client)
    register(pool="machines", directory=tmp_path)
    assert not client.read_deployment_by_name("distill/distill").paused
    assert _schedules(client) == before
    assert not any(active for _, active, _ in before)


def test_a_declared_schedule_that_is_missing_comes_switched_off(client, tmp_path):
    register(pool="machines", directory=tmp_path)
    distill = client.read_deployment_by_name("distill/distill")
    for schedule in distill.schedules:
        client.delete_deployment_schedule(distill.id, schedule.id)
    register(pool="machines", directory=tmp_path)
    assert [(slug, active) for slug, active, _ in _schedules(client)] == [("weekly", False)]


def test_a_user_who_disabled_an_automation_keeps_it_so(client, tmp_path):
    register(pool="machines", directory=tmp_path)
    names = ["rskd-crash-silent-runs", "rskd-source-changed"]
    crash, changed = (client.read_automations_by_name(name)[0] for name in names)
    assert crash.enabled
    assert changed.enabled
    client.pause_automation(crash.id)
    register(pool="machines", directory=tmp_path)
    again = [client.read_automations_by_name(name) for name in names]
    assert [len(found) for found in again] == [1, 1]
    assert [found[0].enabled for found in again] == [False, True]
    assert [found[0].trigger.model_dump() | {"id": 0} for found in again] == [
        before.trigger.model_dump() | {"id": 0} for before in (crash, changed)
    ]
    assert crash.trigger.within >= timedelta(seconds=3 * 60)
    client.resume_automation(crash.id)


def test_the_housekeeper_starts_switched_on_and_stays_off_where_a_user_switched_it(client, tmp_path):
    register(pool="machines", directory=tmp_path)
    housekeeper = client.read_deployment_by_name("crash-dead-runs/crash-dead-runs")
    assert [(schedule.slug, schedule.active) for schedule in housekeeper.schedules] == [("five-minutes", True)]
    client.update_deployment_schedule(housekeeper.id, housekeeper.schedules[0].id, active=False)
    register(pool="machines", directory=tmp_path)
    housekeeper = client.read_deployment_by_name("crash-dead-runs/crash-dead-runs")
    assert [schedule.active for schedule in housekeeper.schedules] == [False]


def _limit(limit: int):
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    return GlobalConcurrencyLimitUpdate(limit=limit)


def _schedules(client) -> set:
    """Slug, switch and identity of each schedule of distill."""
    found = client.read_deployment_by_name("distill/distill").schedules
    return {(schedule.slug, schedule.active, schedule.id) for schedule in found}
