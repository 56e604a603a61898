"""Two processes that run every stage of one config at the same time end as one would have; no Ray."""

import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml

from rskd.config import DistillConfig, load_config
from rskd.jobs.one_at_a_time import _lock_path
from rskd.jobs.pack import pack_corpus

ALL_STAGES = """
import sys
from rskd.config import load_config
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
config = load_config(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
skipped = [pack_corpus(config)["skipped"], cache_logits(config)["default"]["skipped"],
           train_student(config)["skipped"], evaluate_students(config)["skipped"]]
print(skipped)
"""


def write_config(folder: Path, teacher: Path, root: str = "out") -> Path:
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for name in sorted(topics)[:6]:
        (text / f"{name}.txt").write_text(topics[name])
    config = {
        "name": "tiny",
        "storage": {"root": str(folder / root)},
        "corpus": {
            "source": {"kind": "text", "uri": str(text)},
            "seq_len": 16,
            "eval_windows": 4,
            "max_windows": 48,
            "windows_per_part": 4,
        },
        "teacher": {"model": str(teacher), "dtype": "float32", "threads_per_worker": 1},
        "sampling": {"num_samples": 8},
        "train": {
            "steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "precision": "float32",
            "workers": 0,
            "threads_per_worker": 1,
            "checkpoint_every": 2,
        },
        "evaluate": {"max_windows": 4},
        "ray": {"enabled": False},
        "tracking": {"enabled": False},
    }
    file = folder / f"{root}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def contents(config: DistillConfig) -> dict[str, bytes]:
    """Every file whose bytes no clock decides: data and weights."""
    home = Path(config.home)
    wanted = (*home.glob("corpus/**/*"), *home.glob("caches/**/*"), *home.glob("students/**/*.safetensors"))
    return {str(path.relative_to(home)): path.read_bytes() for path in wanted if path.is_file()}


def run_together(*configs: Path) -> list[str]:
    """What each process says, all of which begin at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALL_STAGES, config], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for config in configs
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return said


@pytest.mark.e2e
def test_two_runs_of_one_config_end_as_one(tmp_path: Path, tiny_teacher_dir: Path) -> None:
    shared, alone = (write_config(tmp_path, tiny_teacher_dir, root) for root in ("shared", "alone"))
    together = run_together(shared, shared)
    assert run_together(alone) == ["[False, False, False, False]"]
    # Each stage was worked on by one of the two.
    assert [sum(flags) for flags in zip(*map(eval, together))] == [1, 1, 1, 1]
    assert contents(load_config(shared)) == contents(load_config(alone))
    assert not list((tmp_path / "shared").glob(".*"))


def test_a_stage_says_that_it_waits(tmp_path: Path, tiny_teacher_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(write_config(tmp_path, tiny_teacher_dir))
    path = _lock_path(config, "pack_corpus")
    code = f"""
import time
from pathlib import Path
from rskd.file_lock import file_lock
with file_lock(Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(5)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert not pack_corpus(config)["skipped"]
    assert holder.wait() == 0
    assert caplog.messages[0] == f"another process is running pack_corpus of {config.home}: waiting for it to end"


def test_packs_that_no_lock_keeps_apart_end_as_one(tmp_path: Path, tiny_teacher_dir: Path) -> None:
    """As on an object store, from two machines: here the lock is taken from under the first."""
    shared, alone = (load_config(write_config(tmp_path, tiny_teacher_dir, root)) for root in ("shared", "alone"))
    code = """
import sys
from rskd.config import load_config
from rskd.jobs.pack import pack_corpus
pack_corpus.__wrapped__(load_config(sys.argv[1]))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "shared.yaml"]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    pack_corpus(alone)
    assert contents(shared) == contents(alone)
