"""A secret of the environment turns up in nothing that a distillation leaves behind or shows while it runs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_runs import tiny_settings, write_texts

pytestmark = pytest.mark.e2e

SECRET = "a-planted-secret-4711"
VARIABLES = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "HF_TOKEN", "OPENAI_API_KEY")


def command_lines() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_a_planted_secret_is_nowhere(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    on_ray = {"ray": {"enabled": True}, "train": {"workers": 1}, "tracking": {"enabled": True}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(tmp_path, tiny_teacher_dir, **on_ray)))
    with tempfile.TemporaryDirectory(prefix="r") as ray:  # short: sockets are in it
        environment = dict.fromkeys(VARIABLES, SECRET) | {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "RAY_TMPDIR": ray,
            "AWS_ACCESS_KEY_ID": "somebody",
        }
        log = tmp_path / "log.txt"
        command = [sys.executable, "-m", "flows.distill", str(config)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        shown: list[str] = []
        while process.poll() is None:
            shown += command_lines()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 0, log.read_text()[-3000:]
        assert not [line for line in shown if SECRET in line]
        left = [file for folder in (tmp_path, Path(ray)) for file in folder.rglob("*") if file.is_file()]
        assert any(file.name == "mlflow.db" for file in left)
        assert any("raylet" in file.name for file in left)
        assert [str(file) for file in left if SECRET.encode() in file.read_bytes()] == []
