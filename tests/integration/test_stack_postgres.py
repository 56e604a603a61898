"""The stack with both databases on a real PostgreSQL: kept over down and up, backed up with pg_dump, restored."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_ports
from mlflow import MlflowClient
from stacks import Stack, api_of, stack_file, wait_until
from tiny_runs import tiny_settings, write_texts

pytestmark = [pytest.mark.kill, pytest.mark.timeout(1800)]

_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's place: not in PATH
PROGRAMS = os.pathsep.join([*map(str, reversed(_INSTALLED)), os.environ.get("PATH", "")])
PASSWORD = "of-a-test"


class Postgres:
    """A server in a temporary folder, under a user that is not root."""

    def __init__(self, folder: Path):
        self.folder, [self.port] = folder, free_ports(1)
        self._as_user = []
        if os.getuid() == 0:  # under which it refuses to run
            shutil.chown(folder, "postgres", "postgres")
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def __call__(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, shutil.which(program, path=PROGRAMS) or program, *arguments]
        environment = os.environ | {"PGPASSWORD": PASSWORD, "PGHOST": "127.0.0.1", "PGPORT": str(self.port)}
        environment |= {"PGUSER": "rskd", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def start(self) -> None:
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        data, log = str(self.folder / "data"), str(self.folder / "log")
        self("initdb", "-D", data, "-U", "rskd", "-A", "scram-sha-256", f"--pwfile={self.folder / 'password'}")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        # Its output to a file: the server would keep the pipe of this process open.
        self("pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options)

    def stop(self) -> None:
        self("pg_ctl", "stop", "-D", str(self.folder / "data"), "-m", "fast")


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    if shutil.which("initdb", path=PROGRAMS) is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="rskd-postgres-"))  # where its user may look
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def stack(postgres: Postgres, tmp_path: Path) -> Iterator[Stack]:
    file = stack_file(tmp_path)
    file.write_text("optional = []\n" + file.read_text())
    stack = Stack(file, {"PGPASSWORD": PASSWORD})
    use(stack, postgres, "prefect", "mlflow")
    postgres("createdb", "prefect")
    postgres("createdb", "mlflow")
    yield stack
    stack("down")


def use(stack: Stack, postgres: Postgres, prefect: str, mlflow: str) -> None:
    """Name these databases in stack.toml, without a password."""
    base = stack.file.with_suffix(".base")
    if not base.exists():
        base.write_text(stack.file.read_text())
    at = f"rskd@127.0.0.1:{postgres.port}"
    text = base.read_text().replace("prefect = {", f'prefect = {{database = "postgresql+asyncpg://{at}/{prefect}", ')
    stack.file.write_text(text.replace("mlflow = {", f'mlflow = {{database = "postgresql+psycopg2://{at}/{mlflow}", '))


def up(stack: Stack) -> None:
    started = stack("up")
    assert started.returncode == 0, started.stderr


def test_kept_over_a_restart_and_restored_from_a_backup(stack, postgres, tmp_path, tiny_teacher_dir):
    write_texts(tmp_path / "text")
    uri = f"http://127.0.0.1:{stack.settings.mlflow.port}"
    config = tiny_settings(tmp_path, tiny_teacher_dir, tracking={"enabled": True, "uri": uri})
    up(stack)
    with api_of(stack) as client:
        distill = client.read_deployment_by_name("distill/distill")
        run = client.create_flow_run_from_deployment(distill.id, parameters={"config": config})
        wait_until(lambda: client.read_flow_run(run.id).state.is_final(), seconds=600)
        assert client.read_flow_run(run.id).state.is_completed(), client.read_flow_run(run.id).state.message
        client.pause_deployment(distill.id)
    assert not list((stack.settings.folder / "prefect").glob("*.db"))
    assert not list((stack.settings.folder / "mlflow").glob("*.db"))
    figures = figures_of(uri)
    assert "lm_loss" in figures

    assert stack("down").returncode == 0
    up(stack)
    check(stack, uri, run.id, figures)

    assert stack("down").returncode == 0
    for name in ("prefect", "mlflow"):
        dump = str(postgres.folder / f"{name}.dump")
        postgres("pg_dump", "--format=custom", f"--file={dump}", name)
        postgres("createdb", f"{name}-restored")
        postgres("pg_restore", "--exit-on-error", f"--dbname={name}-restored", dump)
        postgres("dropdb", name)
    use(stack, postgres, "prefect-restored", "mlflow-restored")
    up(stack)
    check(stack, uri, run.id, figures)


def check(stack: Stack, uri: str, run, figures: dict[str, float]) -> None:
    """Run, switch and figures are still there."""
    with api_of(stack) as client:
        assert client.read_flow_run(run).state.is_completed()
        assert client.read_deployment_by_name("distill/distill").paused
    assert figures_of(uri) == figures


def figures_of(uri: str) -> dict[str, float]:
    """Metrics of the newest run of the distillation that has any of its own figures."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    return next(run.data.metrics for run in runs if "lm_loss" in run.data.metrics)
