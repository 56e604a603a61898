"""Stages as jobs of a real Ray cluster: found again, cancelled, their errors, and what of them can be read where."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import Cluster
from ray.job_submission import JobDetails
from stacks import ROOT, wait_until

from rskd.config import DistillConfig, to_yaml
from rskd.costs import total
from rskd.errors import ConfigError, MissingOutputError, RskdError
from rskd.jobs.cache import cache_logits
from rskd.jobs.cluster.client import JobsApi
from rskd.jobs.cluster.stage import Caller, submitted_by
from rskd.jobs.cluster.submit import run_as_job
from rskd.jobs.train import train_student
from rskd.progress import Standing, watched_by
from rskd.storage import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300, func_only=True)]


class Command:
    """`rskd VERB`, in a process that can be killed."""

    def __init__(self, verb: str, config: DistillConfig, folder: Path):
        (folder / "config.yaml").write_text(to_yaml(config))
        self.stderr = folder / f"{verb}.stderr"
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rskd", verb, str(folder / "config.yaml"), "--json"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
            )

    def wait_until_it_says(self, words: str) -> None:
        wait_until(lambda: words in self.stderr.read_text() or self.process.poll() is not None, 120)
        assert words in self.stderr.read_text()

    def result(self) -> tuple[int, dict]:
        stdout, _ = self.process.communicate(timeout=200)
        return self.process.returncode, json.loads(stdout)


@pytest.fixture
def jobs_of(cluster: Cluster) -> Callable[[DistillConfig], list[JobDetails]]:
    """Jobs of a distillation in the order in which they were submitted."""
    api = JobsApi(cluster.address, print)

    def jobs(config: DistillConfig) -> list[JobDetails]:
        of_it = [job for job in api.list_jobs() if config.home in (job.metadata or {}).get("job_name", "")]
        return sorted(of_it, key=lambda job: job.start_time or 0)

    return jobs


def test_a_job_is_found_again_and_its_result_is_taken_once(
    make_clustered, jobs_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By a command that takes the place of one that was killed, and by a flow run under its own id."""
    config = make_clustered("found-again")
    killed = Command("cache", config, tmp_path)
    killed.wait_until_it_says("Running entrypoint")
    killed.process.kill()
    killed.process.wait()

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the configuration wins
    code, summaries = Command("cache", config, tmp_path).result()
    said = (tmp_path / "cache.stderr").read_text()
    assert (code, summaries["default"]["skipped"]) == (0, False), said
    [job] = jobs_of(config)
    assert f"job {job.submission_id} on {config.ray.address} is at work" in said
    assert "rskd-progress" not in said

    said_by_flow: list[str] = []
    seen: list[Standing] = []
    with submitted_by(Caller(lambda: "a-flow-run", said_by_flow.append)), watched_by(seen.append):
        first = cache_logits(config)
        again = cache_logits(config)
    assert first == again
    assert first["default"]["skipped"]
    assert [job.submission_id for job in jobs_of(config)][1:] == [f"{job.submission_id[:-1]}a-flow-run-1"]
    assert said_by_flow[-1].endswith("has ended meanwhile: its result is taken")


def test_a_cancelled_job_ends_and_the_next_attempt_goes_on(make_clustered, jobs_of, tmp_path: Path):
    config = make_clustered("cancelled", objective={"kind": "ce"}, train={"steps": 40})
    steps: list[int] = []
    command = Command("train", config, tmp_path)
    store = Store(config.checkpoints_uri("default"))
    wait_until(lambda: any(name.endswith("trainer.json") for name in store.sizes(recursive=True)), 120)
    command.process.send_signal(signal.SIGTERM)
    code, failure = command.result()
    assert (code, failure["error"]) == (143, "stopped; what was finished is kept, run again to go on")
    [job] = jobs_of(config)
    assert job.status == "STOPPED"
    assert "rskd: stopped; what was finished is kept" in JobsApi(config.ray.address, print).get_job_logs(
        str(job.submission_id)
    )
    with watched_by(lambda standing: steps.append(standing.done)):
        summary = train_student(config)
    assert summary["steps"] == 40
    assert steps[0] > 4  # it did not begin anew
    assert [job.status for job in jobs_of(config)] == ["STOPPED", "SUCCEEDED"]


def test_errors_are_those_of_the_stage(make_clustered, cluster: Cluster, tmp_path: Path):
    config = make_clustered("errors")
    with pytest.raises(MissingOutputError, match="run rskd cache"):
        train_student(config)
    wrong = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": "nowhere/at-all"})})
    code, failure = Command("cache", wrong, tmp_path).result()
    assert (code, failure["exit_code"]) == (2, 2)
    assert "nowhere/at-all" in failure["error"]
    local = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(tmp_path)})})
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        cache_logits(local)


def test_other_settings_wait_for_their_turn(make_clustered, jobs_of, tmp_path: Path):
    config = make_clustered("turns")
    first = Command("cache", config, tmp_path)
    first.wait_until_it_says("Running entrypoint")
    said: list[str] = []
    other = config.model_copy(update={"train": config.train.model_copy(update={"steps": 7})})
    with submitted_by(Caller(say=said.append)):
        assert cache_logits(other)["default"]["skipped"]
    assert first.result()[0] == 0
    assert said[0].endswith("with other settings: waiting for its end")
    one, two = jobs_of(config)
    assert one.end_time <= two.start_time


def test_the_code_can_be_sent_and_secrets_are_not(make_clustered, cluster: Cluster):
    """An unexpected error has its traceback in the log, in files of the code that was sent."""
    config = make_clustered("sent", ray={"code": "sent", "driver_cpus": 0.5})
    said: list[str] = []
    with pytest.raises(RskdError, match="TypeError"):
        run_as_job(cluster.address, total, [config], Caller(say=said.append))
    files = [line for line in said if "jobs/cluster/records.py" in line]
    assert files, said
    assert all("py_modules_files" in line for line in files)

    api = JobsApi(cluster.address, print)
    secrets = [os.environ[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN")]
    known = [str(job) for job in api.list_jobs()] + said
    store = Store(config.home).child("jobs")
    known += [store.read(name).decode() for name in store.list()]
    assert len(known) > 4
    assert not [secret for secret in secrets if any(secret in text for text in known)]


def test_a_wrong_token_is_refused(make_clustered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_clustered("token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    code, failure = Command("cache", config, tmp_path).result()
    assert code == ConfigError.exit_code
    assert "refuses the token" in failure["error"]
