"""`rskd status`: the state of each output on the way from nothing to a report, and after things were lost or added."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_runs import STAGES, tiny_settings, write_texts

from rskd import cli
from rskd.config import DistillConfig, validate_config
from rskd.errors import MissingOutputError
from rskd.lineage.status import status

OUTPUTS = ["pack", "cache default", "train default", "evaluate", "report"]


def told(config: DistillConfig) -> list[str]:
    found = status(config)
    assert [one.output for one in found] == OUTPUTS
    return [f"{one.state}, {one.then}" for one in found]


@pytest.fixture
def config(tmp_path: Path, tiny_teacher_dir: Path) -> DistillConfig:
    write_texts(tmp_path / "text")
    return validate_config(tiny_settings(tmp_path, tiny_teacher_dir, corpus={"windows_per_part": 256}))


def test_the_states_of_a_run(config: DistillConfig, tmp_path: Path):
    assert told(config) == ["missing, runs"] * 5
    STAGES["pack"](config)
    assert told(config) == ["done, skipped"] + ["missing, runs"] * 4
    with pytest.raises(MissingOutputError, match="run rskd cache"):
        STAGES["train"](config)

    STAGES["cache"](config)
    cache = Path(config.cache_uri("default"))
    (cache / "manifest.json").unlink()
    (cache / "parts" / "part-00001.json").unlink()
    unfinished = status(config)[1]
    assert (unfinished.state, unfinished.then) == ("unfinished", "runs")
    assert unfinished.reason.startswith("4 of 5 parts")
    for stage in ("cache", "train", "evaluate"):
        STAGES[stage](config)
    assert told(config) == ["done, skipped"] * 4 + ["missing, runs"]
    page = STAGES["report"](config)
    assert told(config) == ["done, skipped"] * 4 + ["done, runs"]

    student = Path(config.student_uri("default"), "model.safetensors")
    weights = student.read_bytes()
    student.unlink()
    assert told(config)[2:] == ["unfinished, runs", "stale, decided later", "done, runs"]
    student.write_bytes(weights)

    write_texts(tmp_path / "text", range(8, 10))
    assert told(config)[:3] == ["unfinished, runs", "done, decided later", "done, decided later"]
    assert status(config)[0].reason == "2 files of the source are not packed"
    STAGES["pack"](config)
    assert told(config)[:3] == ["done, skipped", "unfinished, runs", "stale, decided later"]
    for stage in ("cache", "train", "evaluate"):
        STAGES[stage](config)
    assert status(config)[4].reason == "the configuration or the evaluation has changed since then"
    assert Path(page).exists()


def test_the_command_names_the_key(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    for stage in STAGES.values():
        stage(config)
    file = tmp_path / "config.json"  # JSON is YAML
    file.write_text(config.model_dump_json(exclude_unset=True))
    monkeypatch.setattr(sys, "argv", ["rskd", "status", str(file), "--set", "train.lr=0.5", "--json"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    train, evaluate = json.loads(capfd.readouterr().out)["stages"][2:4]
    assert train == {
        "stage": "train",
        "name": "default",
        "state": "stale",
        "then": "runs",
        "reason": "was trained with train.lr=0.0004, not 0.5",
    }
    assert (evaluate["state"], evaluate["then"]) == ("stale", "decided later")
    shutil.rmtree(tmp_path / "text")
    assert [one.then for one in status(config)][:2] == ["refused", "refused"]
