"""Students trained by Ray Train: the same losses for any number of workers, after a lost worker, and on a rerun."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from pydoc_data.topics import topics

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd.config import DistillConfig, validate_config
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError, MissingOutputError, RskdError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.student.checkpoint import export_checkpoint

pytestmark = pytest.mark.usefixtures("ray_local")

TRAIN = {
    "steps": 6,
    "global_batch": 6,
    "micro_batch": 2,
    "lr": 1e-2,
    "min_lr": 1e-3,
    "precision": "float32",
    "threads_per_worker": 1,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path, ray_local):
    """A function from students to the config of one packed and cached distillation."""
    root = tmp_path_factory.mktemp("train_job")
    config = _make_config(root / "store", _write_text(root / "text"), tiny_teacher_dir)
    pack_corpus(config)
    cache_logits(config)

    def make(**students) -> DistillConfig:
        return _make_config(root / "store", root / "text", tiny_teacher_dir, **students)

    return make


def _write_text(folder: Path) -> Path:
    folder.mkdir()
    for name in sorted(topics)[:12]:
        (folder / f"{name}.txt").write_text(topics[name])
    return folder


def _make_config(root: Path | str, text: Path, teacher: Path, **students) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {"source": {"kind": "text", "uri": str(text)}, "seq_len": 16, "eval_windows": 2},
            "teacher": {"model": str(teacher), "dtype": "float32", "threads_per_worker": 1},
            "sampling": {"num_samples": 8, "statistics": ["label_logprob"]},
            "objective": {"hard_easy_ratio": 2.0, "ce_weight": 0.1},
            "train": TRAIN,
            "students": students or {"default": {}},
        }
    )


def _losses(config: DistillConfig, student: str) -> list[float]:
    log = Path(config.student_uri(student), "training_log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in log]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def trained(make_config) -> tuple[DistillConfig, dict]:
    config = make_config(one={})
    return config, train_student(config, "one")


def test_the_student_is_an_ordinary_directory_with_its_log(trained):
    config, summary = trained
    directory = config.student_uri("one")
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(directory)) == 384
    assert summary["loss"] == _losses(config, "one")[-1]
    assert summary["steps"] == 6
    assert summary["tokens"] == 6 * 6 * 16
    assert summary["skipped"] is False
    record = json.loads(Path(directory, "training_log.jsonl").read_text().splitlines()[0])
    assert set(record) == {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "data_wait"}


def test_a_rerun_skips_what_matches(trained):
    config, _ = trained
    assert train_student(config, "one")["skipped"] is True


@pytest.mark.e2e
def test_two_workers_train_like_one(make_config, trained):
    config = make_config(two={"train": {"workers": 2}})
    train_student(config, "two")
    assert _losses(config, "two") == pytest.approx(_losses(trained[0], "one"), abs=1e-5)


def test_without_ray_the_losses_are_the_same_and_a_killed_run_goes_on(make_config, trained, tmp_path: Path):
    config = make_config(alone={"train": {"workers": 0}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    command = [Path(sys.executable).with_name("rskd"), "train", str(path), "--student", "alone"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoints = Path(config.checkpoints_uri("alone"))
    while not list(checkpoints.glob("*/checkpoint-*/trainer.json")):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    kept = min(checkpoints.glob("*/checkpoint-*/training_log.jsonl")).read_text()
    assert train_student(config, "alone")["steps"] == 6
    assert _losses(config, "alone") == _losses(trained[0], "one")  # bit for bit
    assert Path(config.student_uri("alone"), "training_log.jsonl").read_text().startswith(kept)


def test_a_cache_alone_is_enough(make_config, trained, tiny_teacher_dir: Path, tmp_path: Path):
    config, _ = trained
    elsewhere = _make_config(tmp_path, tmp_path / "no text here", tiny_teacher_dir, one={"train": {"workers": 0}})
    shutil.copytree(config.cache_uri("default"), elsewhere.cache_uri("default"))
    train_student(elsewhere, "one")
    assert _losses(elsewhere, "one") == pytest.approx(_losses(config, "one"), rel=1e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("max_failures", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_lost_worker_goes_on_from_the_last_checkpoint(make_config, trained, max_failures: int):
    name = f"lost_{max_failures}"
    config = make_config(**{name: {"train": {"max_failures": max_failures}}})
    with _a_worker_killed_after_the_first_checkpoint(config, name):
        if max_failures == 0:
            with pytest.raises(RskdError, match="run it again to go on from the newest checkpoint"):
                train_student(config, name)
        train_student(config, name)
    assert _losses(config, name) == _losses(trained[0], "one")  # bit for bit


@contextmanager
def _a_worker_killed_after_the_first_checkpoint(config: DistillConfig, student: str):
    kept = []

    def kill() -> None:
        checkpoints = Path(config.checkpoints_uri(student))
        while not list(checkpoints.glob("*/checkpoint_manager_snapshot.json")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):  # of this Ray alone
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    break
        kept.append(min(checkpoints.glob("*/checkpoint_*/training_log.jsonl")).read_text())

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join(timeout=10)
    log = Path(config.student_uri(student), "training_log.jsonl").read_text()
    assert log.startswith(kept[0])  # with the timings of then: these steps were not trained again


@pytest.mark.e2e
def test_a_sharded_student_is_the_same_and_outlives_a_killed_rank(make_config, trained):
    sharded = {"train": {"workers": 2, "sharding": "full", "activation_checkpointing": "blocks"}}
    config = make_config(sharded=sharded, killed=sharded)
    train_student(config, "sharded")
    assert _losses(config, "sharded") == pytest.approx(_losses(trained[0], "one"), abs=1e-5)
    with _a_worker_killed_after_the_first_checkpoint(config, "killed"):
        train_student(config, "killed")
    assert _losses(config, "killed") == _losses(config, "sharded")  # bit for bit
    found, wanted = (AutoModelForCausalLM.from_pretrained(config.student_uri(name)) for name in ("killed", "sharded"))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters()))
    checkpoint = max(Path(config.checkpoints_uri("sharded")).glob("*/checkpoint_*"))
    assert len(list(checkpoint.glob("shards/*.safetensors"))) == 2
    replicated = make_config(sharded={"train": {"workers": 0}})  # how a student was trained does not make it stale
    assert train_student(replicated, "sharded")["skipped"] is True


@pytest.mark.parametrize(
    ("objective", "warning"),
    [
        ({"divergence": "reverse"}, "student other learns from a biased target: the gradient of divergence=reverse"),
        ({"kind": "full_kd", "divergence": "mse"}, ""),
        pytest.param({"kind": "ce"}, "", marks=pytest.mark.slow),
    ],
)
def test_other_objectives_train_and_biased_ones_warn(make_config, caplog, objective: dict, warning: str):
    plain = {"hard_easy_ratio": 1.0, "ce_weight": 0.0}
    config = make_config(other={"objective": plain | objective, "train": {"steps": 2}})
    train_student(config, "other")
    assert len(_losses(config, "other")) == 2
    said = [line for record in caplog.records if "biased" in (line := record.getMessage())]
    assert len(said) == bool(warning)
    assert warning in "".join(said)


def test_a_truncated_part_ends_the_run_with_its_name(make_config):
    config = make_config()
    damaged = config.model_copy(update={"name": "damaged"})
    shutil.copytree(config.home, damaged.home)
    for part in Path(damaged.cache_uri("default"), "parts").glob("*.parquet"):
        part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CorruptPartError, match="part-0000"):
        train_student(damaged)
    assert not Path(damaged.student_uri("default")).exists()


@pytest.mark.slow
def test_everything_on_an_object_store(
    object_store, tmp_path: Path, tiny_teacher_dir: Path, make_config, trained, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where the runs of an S3 root are tracked
    config = _make_config(
        f"{object_store.make_bucket()}/root", _write_text(tmp_path / "text"), tiny_teacher_dir, one={}
    )
    pack_corpus(config)
    cache_logits(config)
    summary = train_student(config, "one")
    assert summary["loss"] == trained[1]["loss"]
    assert train_student(config, "one")["skipped"] is True
    local = tmp_path / "student"
    export_checkpoint(config.student_uri("one"), local)
    assert AutoModelForCausalLM.from_pretrained(local).config.vocab_size == 400


def test_what_is_wrong_is_said_before_training(make_config, tmp_path: Path):
    config = make_config()
    with pytest.raises(ConfigError, match="student nobody is not in students"):
        train_student(config, "nobody")
    elsewhere = config.model_copy(update={"name": "elsewhere"})
    with pytest.raises(MissingOutputError, match="run rskd cache"):
        train_student(elsewhere)
    shorter = config.model_copy(update={"corpus": config.corpus.model_copy(update={"seq_len": 8})})
    with pytest.raises(CacheMismatchError, match=r"corpus\.seq_len=16, not 8"):
        train_student(shorter)
    with pytest.raises(ConfigError, match="global_batch=100000 exceeds"):
        train_student(make_config(default={"train": {"global_batch": 100000}}))
    with pytest.raises(ConfigError, match="nowhere cannot be loaded"):
        train_student(make_config(default={"student": {"model": str(tmp_path / "nowhere")}}))
