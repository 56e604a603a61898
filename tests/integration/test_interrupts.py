"""Ctrl-C and SIGTERM in the middle of every stage, as the real commands get them: what is said, what is left, a rerun.

A terminal sends ctrl-C to all processes in its foreground, `kill` sends SIGTERM to one.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from rskd.config import DistillConfig, load_config
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student

MESSAGE = "stopped; what was finished is kept, run again to go on"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
STAGES: dict[str, Callable[[DistillConfig], dict]] = {
    "pack": pack_corpus,
    "cache": cache_logits,
    "train": train_student,
    "evaluate": evaluate_students,
}
OUTPUTS = {"pack": "corpus", "cache": "caches", "train": "students", "evaluate": "evaluation"}
SIGNS = {"pack": "../.lock-*", "cache": "caches/*/parts/*", "train": "checkpoints/*/*/checkpoint*/trainer.json"}
ONE_EACH = [
    ("train", signal.SIGTERM),
    *(
        pytest.param(stage, by, marks=pytest.mark.e2e)
        for stage, by in [("pack", signal.SIGTERM), ("cache", signal.SIGINT), ("evaluate", signal.SIGINT)]
    ),
]


@dataclass
class Distillation:
    """A distillation in a root of its own, whose commands leave a mark in the environment of all they start."""

    path: Path
    flow: bool

    @property
    def config(self) -> DistillConfig:
        return load_config(self.path)

    def start(self, *args: str) -> "Command":
        program = ["flows.distill"] if self.flow else ["rskd", args[0]]
        return Command([sys.executable, "-m", *program, str(self.path), *args[1:], "--json"], self.path.parent)

    def run_status(self, stage: str) -> dict[str, str]:
        """Status in MLflow of the newest run of a stage and of its parent; empty where there is none yet."""
        config = self.config
        if not Path(str(config.tracking.uri).removeprefix("sqlite:///")).exists():
            return {}
        client = MlflowClient(config.tracking.uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            return {}
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        newest = next((run for run in runs if run.data.tags.get("rskd.stage") == stage), None)
        parent = next(run for run in runs if run.data.tags.get("rskd.stage") == "distillation") if newest else None
        return {stage: newest.info.status, "parent": parent.info.status} if newest and parent else {}

    def is_done(self, stage: str) -> bool:
        done = {"pack": "corpus/train/manifest.json", "cache": "caches/default/manifest.json"}
        done |= {"train": "students/default/rskd.json", "evaluate": "evaluation.json"}
        return Path(self.config.home, done[stage]).exists()

    def is_at_work(self, stage: str) -> bool:
        if stage in SIGNS:
            return any(Path(self.config.home).glob(SIGNS[stage]))
        return self.run_status(stage).get(stage) == "RUNNING"


class Command:
    """A command that was started in a session of its own."""

    def __init__(self, command: list[str], folder: Path):
        self.mark = uuid.uuid4().hex
        self.stderr = folder / f"{self.mark}.stderr"
        environment = {"RSKD_TEST_MARK": self.mark, "PREFECT_HOME": str(folder / "prefect")}
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env=os.environ | environment,
                cwd=Path(__file__).parents[2],
            )

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.stderr.read_text()[-3000:]
            assert time.monotonic() < deadline, self.stderr.read_text()[-3000:]
            time.sleep(0.02)

    def stop(self, by: signal.Signals) -> None:
        if by == signal.SIGINT:
            os.killpg(self.process.pid, by)
        else:
            self.process.send_signal(by)

    def assert_stopped(self, by: signal.Signals, seconds: float = 120) -> None:
        """It ends in time with the line, the object and the code, and nothing that it started is left."""
        began = time.monotonic()
        stdout, _ = self.process.communicate(timeout=seconds)
        print(f"ended {time.monotonic() - began:.1f} s after {by.name}")
        stderr = self.stderr.read_text()
        assert self.process.returncode == CODES[by], stderr[-3000:]
        lines = [line for line in stderr.splitlines() if line.startswith("rskd: ")]
        assert lines == [f"rskd: {MESSAGE}"], stderr[-3000:]
        assert "Traceback" not in stderr, stderr[-3000:]
        assert json.loads(stdout) == {"ok": False, "error": MESSAGE, "exit_code": CODES[by]}
        deadline = time.monotonic() + 10
        while left := list(self._left()):
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.1)
        print(f"nothing left {time.monotonic() - began:.1f} s after {by.name}")

    def _left(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("RSKD_TEST_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


def _write_config(folder: Path, teacher: Path, text: Path, *, ray: bool) -> Path:
    config = {
        "name": "tiny",
        "storage": {"root": str(folder / "store")},
        "corpus": {
            "source": {"kind": "text", "uri": str(text)},
            "seq_len": 16,
            "max_windows": 512,
            "eval_windows": 32,
            "windows_per_part": 32,
        },
        "teacher": {"model": str(teacher), "dtype": "float32", "threads_per_worker": 1},
        "sampling": {"num_samples": 8},
        "train": {
            "steps": 60,
            "global_batch": 2,
            "precision": "float32",
            "threads_per_worker": 1,
            "checkpoint_every": 10,
            "workers": int(ray),
        },
        "evaluate": {"batch_windows": 1},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "ray": {"enabled": ray},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for copy in range(2):
        for name in sorted(topics):
            (folder / f"{name}-{copy}.txt").write_text(f"{copy} {topics[name]}")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path, text: Path) -> Path:
    """The folder of a distillation that nobody stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = load_config(_write_config(folder, tiny_teacher_dir, text, ray=False))
    for stage in STAGES.values():
        stage(config)
    return folder


def _files(home: Path) -> dict[str, str]:
    """The sha256 of all that does not tell the time, by name."""
    patterns = ("corpus/**/*.*", "caches/**/*.*", "students/*/*.safetensors")
    files = [file for pattern in patterns for file in home.glob(pattern)]
    found = {str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    evaluation = json.loads(next(home.glob("evaluation*.json")).read_text())
    return found | {"evaluation": json.dumps(evaluation["models"])}


@pytest.fixture
def without(undisturbed: Path, tiny_teacher_dir: Path, text: Path, tmp_path: Path):
    """A function that copies the undisturbed distillation without a stage's output and what is made from it."""

    def copy(stage: str, *, ray: bool = False, flow: bool = False) -> Distillation:
        shutil.copytree(undisturbed / "store", tmp_path / "store")
        shutil.copy(undisturbed / "mlflow.db", tmp_path)
        home = tmp_path / "store" / "tiny"
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
        for output in list(OUTPUTS.values())[list(OUTPUTS).index(stage) :]:
            for path in home.glob(f"{output}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Distillation(_write_config(tmp_path, tiny_teacher_dir, text, ray=ray), flow)

    return copy


def _stop_and_rerun(distillation: Distillation, undisturbed: Path, stage: str, by: signal.Signals) -> None:
    command = distillation.start(stage)
    try:
        command.wait_until(lambda: distillation.is_at_work(stage))
        command.stop(by)
        command.assert_stopped(by)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
    assert not distillation.is_done(stage)
    if stage != "pack":  # which may be stopped before its run in MLflow begins
        assert distillation.run_status(stage) == {stage: "KILLED", "parent": "KILLED"}
    later = list(STAGES)[list(STAGES).index(stage) :]
    if distillation.flow:
        rerun = distillation.start(stage)
        rerun.process.communicate(timeout=300)
        assert rerun.process.returncode == 0, rerun.stderr.read_text()[-3000:]
    else:
        config = load_config(distillation.path, ["ray.enabled=false", "train.workers=0"])
        for name in later:
            STAGES[name](config)
    assert _files(Path(distillation.config.home)) == _files(undisturbed / "store" / "tiny")


@pytest.mark.parametrize(("stage", "by"), ONE_EACH)
def test_a_stage_ends_in_order_and_goes_on(without, undisturbed: Path, stage: str, by: signal.Signals):
    _stop_and_rerun(without(stage), undisturbed, stage, by)


@pytest.mark.e2e
def test_ray_train_ends_in_order_and_goes_on(without, undisturbed: Path):
    _stop_and_rerun(without("train", ray=True), undisturbed, "train", signal.SIGINT)


@pytest.mark.parametrize(
    "by",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.e2e),
    ],
)
def test_students_side_by_side_end_in_order_and_go_on(without, undisturbed: Path, by: signal.Signals):
    distillation = without("train", ray=True)
    settings = yaml.safe_load(distillation.path.read_text())
    settings["students"] = {"default": {}, "twin": {}}
    settings["train"]["at_once"] = 2
    distillation.path.write_text(yaml.safe_dump(settings))
    home = Path(distillation.config.home)

    def have_checkpoints() -> bool:
        return all(any(home.glob(f"checkpoints/{name}/*/checkpoint_*/trainer.json")) for name in ("default", "twin"))

    command = distillation.start("train")
    try:
        command.wait_until(have_checkpoints)
        command.stop(by)
        command.assert_stopped(by)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
    assert not list(home.glob("students/*/rskd.json"))
    assert distillation.run_status("train") == {"train": "KILLED", "parent": "KILLED"}
    config = load_config(distillation.path, ["ray.enabled=false", "train.workers=0", "train.at_once=1"])
    for student in config.student_specs:
        kept = min(home.glob(f"checkpoints/{student}/*/checkpoint_*/training_log.jsonl")).read_text()
        train_student(config, student)
        assert (home / f"students/{student}/training_log.jsonl").read_text().startswith(kept)  # it went on from there
        weights = home / f"students/{student}/model.safetensors"
        wanted = undisturbed / "store" / "tiny" / "students/default/model.safetensors"
        assert weights.read_bytes() == wanted.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("by", CODES)
@pytest.mark.parametrize("how", ["in process", "ray", "flow", "flow on ray"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_however_it_is_run(without, undisturbed: Path, stage: str, how: str, by: signal.Signals):
    distillation = without(stage, ray="ray" in how, flow="flow" in how)
    _stop_and_rerun(distillation, undisturbed, stage, by)
