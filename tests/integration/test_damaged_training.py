"""What is damaged in a checkpoint or a student costs steps, never a wrong result: without Ray, and with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from transformers import AutoModelForCausalLM

from rskd.config import DistillConfig, validate_config
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.student.checkpoint import export_checkpoint

STEPS = 6
TRAIN = {
    "steps": STEPS,
    "global_batch": 2,
    "micro_batch": 2,
    "lr": 1e-2,
    "min_lr": 1e-3,
    "precision": "float32",
    "threads_per_worker": 1,
    "checkpoint_every": 2,
    "workers": 0,
}


def _config(root: Path, teacher: Path, text: Path | None = None, **train) -> DistillConfig:
    text = text or root / "text"
    if not text.exists():
        text.mkdir(parents=True)
        for name in sorted(topics)[:12]:
            (text / f"{name}.txt").write_text(topics[name])
    ray = {"enabled": bool(train.get("workers"))}
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root / "store")},
            "corpus": {"source": {"kind": "text", "uri": str(text)}, "seq_len": 16, "eval_windows": 2},
            "teacher": {"model": str(teacher), "dtype": "float32", "threads_per_worker": 1},
            "objective": {"kind": "ce"},
            "train": TRAIN | train,
            "ray": ray,
            "tracking": {"enabled": False},
        }
    )


def _log(config: DistillConfig) -> list[dict]:
    return [json.loads(line) for line in Path(config.student_uri("default"), "training_log.jsonl").open()]


def _losses(config: DistillConfig) -> list[float]:
    assert [record["step"] for record in _log(config)] == list(range(1, STEPS + 1))
    return [record["loss"] for record in _log(config)]


def _checkpoints(config: DistillConfig) -> list[Path]:
    found = Path(config.checkpoints_uri("default")).glob("*/checkpoint*/trainer.json")
    return [file.parent for file in sorted(found, key=lambda file: json.loads(file.read_text())["step"])]


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> DistillConfig:
    config = _config(tmp_path_factory.mktemp("damaged"), tiny_teacher_dir)
    pack_corpus(config)
    train_student(config)
    return config


@pytest.fixture
def copy(trained: DistillConfig, tmp_path: Path, tiny_teacher_dir: Path) -> DistillConfig:
    """A distillation of its own, trained to the end."""
    shutil.copytree(trained.storage.root, tmp_path / "store")
    return _config(tmp_path, tiny_teacher_dir, Path(str(trained.corpus.source.uri)))


def _forget_student(config: DistillConfig) -> None:
    Path(config.student_uri("default"), "rskd.json").unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.safetensors", _flip),
        ("model.safetensors", _cut),
        ("trainer.json", _cut),
        ("config.json", Path.unlink),
    ],
)
def test_training_goes_on_from_the_checkpoint_before(
    trained: DistillConfig, copy: DistillConfig, caplog, name: str, damage: Callable[[Path], object]
):
    _forget_student(copy)
    before, newest = _checkpoints(copy)
    kept = (before / "training_log.jsonl").read_text()
    damage(newest / name)
    assert train_student(copy)["steps"] == STEPS
    assert _losses(copy) == _losses(trained)  # bit for bit
    log = Path(copy.student_uri("default"), "training_log.jsonl").read_text()
    assert log.startswith(kept)  # with the timings of then: these steps were not trained again
    assert f"checkpoint {newest} is passed over for the one before: " in caplog.text
    assert name in caplog.text
    assert len(_checkpoints(copy)) == 2


def test_without_a_whole_checkpoint_training_starts_anew(trained: DistillConfig, copy: DistillConfig, caplog):
    _forget_student(copy)
    for folder in _checkpoints(copy):
        _flip(folder / "model.safetensors")
    train_student(copy)
    assert _losses(copy) == _losses(trained)
    assert caplog.text.count("is passed over") == 2


def test_checkpoints_without_digests_are_gone_on_from(trained: DistillConfig, copy: DistillConfig, caplog):
    _forget_student(copy)
    for folder in _checkpoints(copy):
        record = json.loads((folder / "trainer.json").read_text())
        (folder / "trainer.json").write_text(json.dumps({"step": record["step"], "loader": record["loader"]}))
    _, newest = _checkpoints(copy)
    _cut(newest / "optimizer.safetensors")
    train_student(copy)
    assert _losses(copy) == _losses(trained)
    assert _log(copy)[3] == _log(trained)[3]  # step 4, of the checkpoint before
    assert "optimizer.safetensors is not a whole safetensors file" in caplog.text


@pytest.mark.parametrize("damage", [_flip, _cut])
def test_a_damaged_student_is_neither_exported_nor_evaluated_nor_gone_on_from(
    copy: DistillConfig, tmp_path: Path, damage: Callable[[Path], None]
):
    student = Path(copy.student_uri("default"))
    damage(student / "model.safetensors")
    with pytest.raises(CorruptPartError, match=r"model\.safetensors is damaged .*: remove it and run rskd train"):
        export_checkpoint(student, tmp_path / "exported")
    assert not (tmp_path / "exported" / "model.safetensors").exists()
    with pytest.raises(CorruptPartError, match=r"model\.safetensors is damaged"):
        evaluate_students(copy)
    further = copy.model_copy(
        update={
            "name": "further",
            "student": copy.student.model_copy(update={"model": str(student), "init": "checkpoint"}),
        }
    )
    shutil.copytree(copy.corpus_uri("train"), further.corpus_uri("train"))
    with pytest.raises(CorruptPartError, match=r"model\.safetensors is damaged"):
        train_student(further)


def test_a_student_without_weights_is_not_skipped(trained: DistillConfig, copy: DistillConfig):
    assert train_student(copy)["skipped"] is True
    Path(copy.student_uri("default"), "model.safetensors").unlink()
    with pytest.raises(MissingOutputError, match=r"model\.safetensors is missing: run rskd train"):
        evaluate_students(copy)
    assert train_student(copy)["skipped"] is False
    AutoModelForCausalLM.from_pretrained(copy.student_uri("default"))
    assert _losses(copy) == _losses(trained)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("of_ray", ["empty snapshot", pytest.param("no newest folder", marks=pytest.mark.e2e)])
def test_with_ray_train_it_goes_on_alike(trained, copy, tiny_teacher_dir: Path, caplog, of_ray: str):
    """Also from the checkpoints that training in process left: how a run is executed is no part of it."""
    _forget_student(copy)
    config = _config(Path(copy.storage.root).parent, tiny_teacher_dir, Path(str(copy.corpus.source.uri)), workers=1)
    _, newest = _checkpoints(copy)
    _flip(newest / "optimizer.safetensors")
    train_student(config)
    assert _losses(config) == pytest.approx(_losses(trained), rel=1e-5)
    assert f"checkpoint {newest} is passed over" in caplog.text

    _forget_student(config)
    first, last = _checkpoints(config)
    if of_ray == "empty snapshot":
        for folder in {first.parent, last.parent}:
            (folder / "checkpoint_manager_snapshot.json").write_text("")
    shutil.rmtree(last)
    train_student(config)
    assert _losses(config) == pytest.approx(_losses(trained), rel=1e-5)
    assert len(_checkpoints(config)) == 2
