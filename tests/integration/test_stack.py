"""The stack of one machine as a user runs it: `python -m infra.stack` over real servers, on free ports."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import live_metrics
import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from stacks import ROOT, Stack, answers, api_of, command_of, stack_file, stack_up, wait_until
from tiny_runs import STAGES, tiny_settings, write_texts

from flows.stage import SHARED_LIMIT
from infra.stack.leftovers import left_of
from infra.stack.services import WORKER, environment_of, services_of, short_ray_folder
from rskd.cache.reader import LogitCache
from rskd.config import validate_config
from rskd.jobs.promote import promote_student
from rskd.jobs.train import train_student
from rskd.models.digests import check_files

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that is up."""
    with stack_up(stack_file(tmp_path_factory.mktemp("up"))) as stack:
        yield stack


@pytest.fixture
def other_stack(tmp_path: Path) -> Iterator[Stack]:
    """One that is down, without the optional services."""
    file = stack_file(tmp_path)
    file.write_text("optional = []\n" + file.read_text())
    stack = Stack(file)
    yield stack
    stack("down")


@pytest.fixture
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with api_of(stack) as client:
        yield client


def test_it_answers_and_says_where(stack):
    assert stack("status").returncode == 0
    said = json.loads(stack("status", "--json").stdout)
    assert list(said) == [service.name for service in services_of(stack.settings)]
    assert {"prefect", WORKER, "mlflow", "dashboard", "object-store", "ray"} <= set(said)
    assert all(said[name].startswith(("running", "starting")) for name in said)
    for service in services_of(stack.settings):
        assert f"answers at {service.address}" in said[service.name]
        if service.name in ("prefect", "mlflow", "dashboard", "ray"):
            page = urllib.request.urlopen(service.address, timeout=10)
            assert page.headers["content-type"].startswith("text/html")


def test_up_twice_is_once(stack):
    before = stack.pids()
    again = stack("up")
    assert again.returncode == 0, again.stderr
    assert stack.pids() == before


def test_everything_listens_on_loopback_alone(stack):
    pids = {process.pid for process in stack.left}
    listening = [c for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert len(listening) > 10
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_secrets_are_for_the_owner_and_not_in_command_lines_or_logs(stack):
    settings = stack.settings
    secrets = [
        (settings.folder / "ray-token").read_text(),
        json.loads((settings.folder / "s3.json").read_text())["identities"][0]["credentials"][0]["secretKey"],
    ]
    assert settings.folder.stat().st_mode & 0o077 == 0
    shown = [command_of(process) for process in stack.left]
    written = [log.read_text(errors="replace") for log in settings.logs.iterdir()]
    written.append((settings.folder / "supervisord.conf").read_text())
    for secret in secrets:
        assert not any(secret in text for text in shown + written)


def test_deployments_are_registered(client):
    distill = client.read_deployment_by_name("distill/distill")
    assert distill.job_variables["working_dir"] == str(ROOT)
    assert distill.parameters["config"]["tracking"]["uri"].startswith("http://127.0.0.1:")


def test_a_schedule_that_is_on_has_runs(client):
    housekeeper = client.read_deployment_by_name("crash-dead-runs/crash-dead-runs")
    chosen = FlowRunFilter(deployment_id={"any_": [housekeeper.id]})
    wait_until(lambda: client.read_flow_runs(flow_run_filter=chosen), seconds=120)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed: apt install prometheus")
def test_every_panel_and_rule_has_its_series_while_a_job_runs(stack, tmp_path, tiny_teacher_dir):
    """Of each expression a series, but for GPUs where there is none; and the figures are those of the outputs."""
    prometheus, folder = stack.settings.prometheus.port, str(stack.settings.folder)

    def series(expression: str) -> list[dict]:
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{prometheus}/api/v1/query?{asked}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def value(expression: str) -> float:
        (one,) = series(f"sum({expression})")
        return float(one["value"][1])

    missing = set(live_metrics.panel_expressions().values())
    missing.update(*map(live_metrics.selectors, live_metrics.rule_expressions().values()))
    if not shutil.which("nvidia-smi"):
        missing = {expression for expression in missing if not re.search("ray_node_(gpus|gram)_", expression)}

    def look() -> bool:
        missing.difference_update([expression for expression in missing if series(expression)])
        return job.poll() is not None or (not missing and bool(series('rskd_attempts_total{state="failed"}')))

    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(live_settings(stack, tmp_path, tiny_teacher_dir)))
    environment = os.environ | environment_of(stack.settings) | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "tests" / "live_job.py"), str(settings), folder]
    with (
        (tmp_path / "job.log").open("w") as log,
        subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log) as job,
    ):
        with suppress(AssertionError):
            wait_until(look)
        assert missing == set(), (tmp_path / "job.log").read_text()[-2000:]
        cached = LogitCache.open(str(tmp_path / "store" / "tiny" / "caches" / "default")).manifest
        assert value('rskd_tokens_total{stage="cache"}') == cached.totals["tokens"]
        assert value('rskd_written_bytes_total{stage="cache"}') == cached.totals["bytes"]
        assert value("rskd_parts_total") == len(cached.parts)
        steps = (tmp_path / "store" / "tiny" / "students" / "good" / "training_log.jsonl").read_text().splitlines()
        last = json.loads(steps[-1])
        assert value('last_over_time(rskd_step{student="good"}[30m])') == last["step"] == 200
        assert value('last_over_time(rskd_loss_nats{student="good"}[30m])') == pytest.approx(last["loss"])
        assert value('rskd_retries_total{student="good"}') == 1
        assert value('rskd_failures_total{student="diverging", error="NonFiniteError"}') == 1
        assert value('rskd_attempts_total{state="finished"}') == 3
        states = {one["metric"]["state"] for one in series('rskd_attempts_total{student="diverging"}')}
        assert states == {"started", "failed"}
        wait_until(lambda: series('ALERTS{alertname="RskdLossNotFinite"}'))  # rules are evaluated now and then
        job.communicate(b"")
        assert job.returncode == 0


def test_an_event_starts_a_look_at_the_source(stack, client, tmp_path, tiny_teacher_dir):
    """Of the configuration in the event, or in the deployment's form; of no other. The pool is paused meanwhile."""
    pool, look = stack.settings.prefect.pool, client.read_deployment_by_name("watch-source/watch-source")
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps(tiny_config(tmp_path, tiny_teacher_dir) | {"name": "mine"}))
    environment = os.environ | {"PREFECT_API_URL": f"http://127.0.0.1:{stack.settings.prefect.port}/api"}

    def tell(*words: str) -> None:
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, check=True, capture_output=True)

    def started() -> list[FlowRun]:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [look.id]}))

    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    try:
        emit = ("prefect", "event", "emit", "rskd.source.changed", "--resource-id")
        tell(*emit, "rskd.source.unknown")
        tell(*emit, "rskd.source.demo")
        tell("flows.watch_source", str(config), "--student", "default")
        wait_until(lambda: len(started()) >= 2, seconds=60)
        parameters = {run.parameters["config"]["name"]: run.parameters for run in started()}
        assert set(parameters) == {"demo", "mine"}
        assert parameters["demo"] == look.parameters
        assert parameters["mine"]["student"] == "default"
        assert parameters["mine"]["config"]["corpus"]["seq_len"] == 64
    finally:
        for run in started():
            client.delete_flow_run(run.id)
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))


@pytest.mark.parametrize("service", ["prefect", WORKER, "mlflow", "object-store", "ray"])
def test_what_is_killed_is_restarted(stack, service):
    """And nothing of its last process is left, which might answer in its place."""
    before, last = stack.pids()[service], left_of(str(stack.settings.folder), service)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not any(process in left_of(str(stack.settings.folder), service) for process in last))
    wait_until(lambda: stack.pids()[service] not in (0, before) and answers(stack, service))
    assert 0 not in stack.pids().values()


@pytest.mark.parametrize(("service", "part"), [("ray", "raylet"), ("ray", "gcs_server"), ("mlflow", "uvicorn")])
def test_so_is_a_service_whose_part_is_killed(stack, service, part):
    def parts() -> list[psutil.Process]:
        of_service = left_of(str(stack.settings.folder), service)
        return [process for process in of_service if part in " ".join(command_of(process).split()[:3])]

    killed = parts()[0]
    killed.kill()
    wait_until(lambda: killed not in parts())
    time.sleep(2)  # until those that watch it have noticed
    wait_until(lambda: parts() and answers(stack, service))


def test_other_settings_need_a_restart(stack, tmp_path):
    other = tmp_path / "stack.toml"
    other.write_text(stack.file.read_text() + "\n[unknown]\nport = 1")
    refused(Stack(other)("up"), "unknown: unknown key")
    changed = stack.file.read_text().replace("prefect = {", 'prefect = {pool = "other", ')
    other.write_text(changed)
    refused(Stack(other)("up"), "runs with other settings: make down, then make up")


def test_a_cancelled_run_leaves_no_process_and_its_rerun_resumes(stack, client, tmp_path, tiny_teacher_dir):
    """With a local Ray of its own, cancelled in the middle of caching."""
    root = Path(stack.settings.dashboard.root)
    config = tiny_config(tmp_path, tiny_teacher_dir) | {"storage": {"root": str(root)}}
    distill = client.read_deployment_by_name("distill/distill")
    before = {process.pid for process in left_of(str(stack.settings.folder), WORKER)}
    run = client.create_flow_run_from_deployment(distill.id, parameters={"config": config})
    parts = root / "tiny" / "caches" / "default" / "parts"
    wait_until(lambda: len(list(parts.glob("part-*.json"))) >= 1)
    of_the_run = [p for p in left_of(str(stack.settings.folder), WORKER) if p.pid not in before]
    names = " ".join(command_of(process).partition(" ")[0] for process in of_the_run)
    assert "raylet" in names
    assert "gcs_server" in names
    client.set_flow_run_state(run.id, Cancelling())
    wait_until(lambda: client.read_flow_run(run.id).state.name == "Cancelled")
    wait_until(lambda: not any(process.is_running() for process in of_the_run), seconds=60)
    committed = {part.name: part.read_bytes() for part in parts.glob("part-*.json")}
    assert committed

    again = client.create_flow_run_from_deployment(distill.id, parameters={"config": config})
    wait_until(lambda: places_taken(client) == 1)
    server = stack.pids()["prefect"]
    os.kill(server, signal.SIGKILL)  # the run outlives it, and keeps its place
    wait_until(lambda: stack.pids()["prefect"] not in (0, server) and answers(stack, "prefect"))
    assert places_taken(client) == 1 or client.read_flow_run(again.id).state.is_final()
    wait_until(lambda: client.read_flow_run(again.id).state.is_final())
    assert client.read_flow_run(again.id).state.is_completed(), client.read_flow_run(again.id).state.message
    now = {part.name: part.read_bytes() for part in parts.glob("part-*.json")}
    assert committed.items() < now.items()
    assert (root / "tiny" / "report.html").exists()
    links = [str(artifact.data) for artifact in client.read_artifacts() if artifact.key == "dashboard"]
    address = f"http://127.0.0.1:{stack.settings.dashboard.port}/"
    assert f"({address}#view=students&q=tiny)" in links[-1]
    wait_until(lambda: b'"stage":"evaluate","state":"done"' in urllib.request.urlopen(address, timeout=60).read())


def test_a_registered_student_is_downloaded_once(stack, tmp_path, tiny_teacher_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_texts(tmp_path / "text")
    tracking = {"uri": f"http://127.0.0.1:{stack.settings.mlflow.port}"}
    settings = tiny_settings(tmp_path, tiny_teacher_dir, tracking=tracking | {"enabled": True})
    config = validate_config(settings)
    for stage in ("pack", "cache", "train"):
        STAGES[stage](config)
    assert promote_student(config)["champion"] == 1
    kept = tmp_path / "home" / ".cache" / "rskd" / "registered"
    for name in ("challenger", "another"):
        student = {"model": "models:/tiny@champion", "init": "checkpoint"}
        train_student(validate_config(settings | {"students": {name: {"student": student}}}), name)
        [copy] = kept.iterdir()
        assert copy.name.startswith("tiny-1-")
    check_files(copy / "artifacts")


def test_a_supervisor_that_died(stack):
    supervisord = int((stack.settings.folder / "supervisord.pid").read_text())
    os.kill(supervisord, signal.SIGKILL)
    refused(stack("status"), f"no stack runs in {stack.settings.folder}: make up")
    healed = stack("up")
    assert healed.returncode == 0, healed.stderr
    assert stack("status").returncode == 0


def test_down_leaves_data_and_nothing_running_and_a_backup_restores(other_stack, tmp_path):
    stack = other_stack
    folder = stack.settings.folder
    assert stack("down").returncode == 0
    assert stack("up").returncode == 0
    assert set(stack.pids()) == {"prefect", WORKER, "mlflow", "dashboard"}
    with api_of(stack) as client:
        client.pause_deployment(client.read_deployment_by_name("distill/distill").id)
    mlflow = MlflowClient(f"http://127.0.0.1:{stack.settings.mlflow.port}")
    run = mlflow.create_run("0").info.run_id
    mlflow.log_text(run, "kept", "note.txt")

    assert stack("down").returncode == 0
    assert stack.left == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", stack.settings.prefect.port))
    assert not short_ray_folder(stack.settings).is_symlink()
    assert (folder / "prefect" / "prefect.db").exists()
    assert (folder / "mlflow" / "mlflow.db").exists()
    assert stack("down").returncode == 0
    refused(stack("status"), f"no stack runs in {folder}: make up")
    assert "Application startup complete" in stack("logs", "mlflow").stdout
    refused(stack("logs", "nonsense"), "no log of nonsense in")

    restored = tmp_path / "restored"
    shutil.copytree(folder, restored, ignore=shutil.ignore_patterns("ray", "logs", "*.sock"))
    shutil.rmtree(folder)
    stack.file.write_text(stack.file.read_text().replace(str(folder), str(restored)))
    assert stack("up").returncode == 0
    with api_of(stack) as client:
        assert client.read_deployment_by_name("distill/distill").paused
    assert mlflow.get_run(run).info.run_id == run
    assert Path(mlflow.download_artifacts(run, "note.txt", str(tmp_path))).read_text() == "kept"


def test_a_port_in_use(other_stack):
    port = other_stack.settings.mlflow.port
    with socket.create_server(("127.0.0.1", port)):
        said = refused(other_stack("up"), f"mlflow.port={port} is in use by ")
        assert f"(pid {os.getpid()}): end that, or set another port" in said
    assert other_stack.left == []


def test_a_service_that_cannot_start(other_stack):
    """Its database cannot be made: named with the last line of its log, and `make down` cleans up."""
    nowhere = "prefect = {database = 'sqlite+aiosqlite:////dev/null/prefect.db', "
    other_stack.file.write_text(other_stack.file.read_text().replace("prefect = {", nowhere))
    refused(other_stack("up"), "prefect keeps ending (")
    shown = other_stack("status")
    assert shown.returncode == 2
    assert "does not answer" in shown.stdout
    assert other_stack("down").returncode == 0
    assert other_stack.left == []


def refused(done: subprocess.CompletedProcess[str], message: str) -> str:
    """One line on stderr and exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert message in line
    return line


def places_taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(SHARED_LIMIT).active_slots


def live_settings(stack: Stack, folder: Path, teacher: Path) -> dict:
    """A job of seconds on the stack's Ray, with a student whose learning rate is absurd."""
    write_texts(folder / "text", range(3))
    diverging = {"steps": 5, "lr": 1e30, "min_lr": 1e30}
    return tiny_settings(
        folder,
        teacher,
        corpus={"windows_per_part": 64},
        train={"steps": 200, "checkpoint_every": 100},
        students={"good": {"train": {"workers": 1}}, "diverging": {"train": diverging}},
        ray={"enabled": True, "address": f"127.0.0.1:{stack.settings.ray.port}"},
    )


def tiny_config(folder: Path, teacher: Path) -> dict:
    return {
        "name": "tiny",
        "storage": {"root": str(folder / "root")},
        "corpus": {
            "source": {"kind": "python_docs"},
            "seq_len": 64,
            "max_windows": 256,
            "eval_windows": 8,
            "windows_per_part": 8,
        },
        "teacher": {"model": str(teacher), "dtype": "float32", "batch_windows": 1},
        "student": {"init": "teacher_layers", "num_layers": 1},
        "train": {"steps": 4, "global_batch": 2, "micro_batch": 2, "precision": "float32"},
        "evaluate": {"max_windows": 4},
        "tracking": {"enabled": False},
    }
