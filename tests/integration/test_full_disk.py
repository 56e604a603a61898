"""A real file system that is full, as the temporary folder and as the output root: exit 3, one line that names it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml

from rskd.config import DistillConfig, load_config
from rskd.errors import OutputError
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student

REASON = "has no room left (No space left on device): free some, or set TMPDIR to a larger folder, and run it again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 kB: less than a checkpoint, more than a part of the corpus."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def path(tmp_path: Path, tiny_teacher_dir: Path) -> Path:
    """A configuration, whose corpus is packed."""
    (tmp_path / "text").mkdir()
    for name in sorted(topics)[:4]:
        (tmp_path / "text" / f"{name}.txt").write_text(topics[name])
    train = {"steps": 2, "global_batch": 2, "precision": "float32", "threads_per_worker": 1, "workers": 0}
    config = {
        "name": "tiny",
        "storage": {"root": str(tmp_path / "store")},
        "corpus": {"source": {"kind": "text", "uri": str(tmp_path / "text")}, "seq_len": 16, "eval_windows": 2},
        "teacher": {"model": str(tiny_teacher_dir), "dtype": "float32"},
        "objective": {"kind": "ce"},
        "train": train | {"checkpoint_every": 1},
        "tracking": {"enabled": False},
        "ray": {"enabled": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    pack_corpus(load_config(path))
    return path


def _config(path: Path, **values: object) -> DistillConfig:
    return load_config(path, [f"{key}={value}" for key, value in values.items()])


def test_a_full_temporary_folder(path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    config = load_config(path)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(small_disk))
        with pytest.raises(OutputError) as raised:
            train_student(config)
    assert str(raised.value) == f"{small_disk} {REASON}"
    assert list(small_disk.iterdir()) == []
    assert train_student(config)["steps"] == 2

    filler = small_disk / "filler"
    filler.write_bytes(bytes(48 * 1024))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(OutputError) as raised:
        evaluate_students(config)
    assert str(raised.value) == f"{small_disk} {REASON}"
    filler.unlink()
    assert evaluate_students(config)["skipped"] is False
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_a_full_temporary_folder_of_ray_train(path: Path, small_disk: Path):
    done = _train_on_ray(path, TMPDIR=str(small_disk), RAY_TMPDIR="/tmp")
    assert (done.returncode, _complaints(done)) == (3, [f"rskd: {small_disk} {REASON}"])
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_a_full_output_root_of_ray_train(path: Path, small_disk: Path):
    pack_corpus(_config(path, **{"storage.root": small_disk}))
    done = _train_on_ray(path, f"storage.root={small_disk}")
    assert done.returncode == 3, done.stderr
    (line,) = _complaints(done)
    assert line.startswith(f"rskd: {small_disk}")
    assert "No space left on device" in line


def _complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What is on stderr after the plan."""
    return [line for line in done.stderr.splitlines() if not line.startswith("plan: ")]


def _train_on_ray(path: Path, *values: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sets = [option for value in ("ray.enabled=true", "train.workers=1", *values) for option in ("--set", value)]
    return subprocess.run(
        [sys.executable, "-m", "rskd", "train", str(path), *sets],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_a_full_output_root(path: Path, small_disk: Path):
    config = _config(path, **{"storage.root": small_disk})
    pack_corpus(config)
    with pytest.raises(OutputError, match=rf"^{small_disk}/.* cannot be written \(No space left on device\): free"):
        train_student(config)
    with pytest.raises(OutputError, match=rf"^{small_disk}/.* cannot be written \(No space left on device\): free"):
        pack_corpus(_config(path, **{"storage.root": small_disk, "name": "another"}))
