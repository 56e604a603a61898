"""The reproduction at its smallest scale: stopped before its first student, taken up again, reported."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rskd.config import load_config

pytestmark = pytest.mark.e2e


WITHOUT_SERVICES = """
import dataclasses, sys

sys.modules.update(dict.fromkeys(("ray", "prefect", "mlflow", "vllm", "fastapi")))  # None: as if not installed
from rskd.reproduction import scales
tiny = scales.SCALES["tiny"]
scales.SCALES["tiny"] = dataclasses.replace(tiny, config={**tiny.config, **scales.IN_ONE_PROCESS})
"""


def _run(home: Path, *options: str, module: str = "flows.reproduce_paper", **environment: str) -> dict:
    command = [sys.executable, "-m", module, "--scale", "tiny", "--home", str(home), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_table_is_made_in_two_calls(tmp_path: Path):
    first = _run(tmp_path, "--table", "table10", "--hours", "0")
    assert (first["done"], first["left"]) == (0, 4)
    second = _run(tmp_path, "--table", "table10", "--table", "table13")
    assert (second["done"], second["left"]) == (13, 0)
    with (tmp_path / "students" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = {row["row"]: float(row["value"]) for row in rows if row["source"] == "ours" and row["metric"] == "lm_loss"}
    assert set(ours) == {"t = 0", "t = 0.8", "t = 1", "t = 1.2", "Different", "Same", "Online"}
    assert all(0 < loss < 8 for loss in ours.values())
    assert ours["Different"] != ours["Same"]
    report = (tmp_path / "students" / "report.md").read_text()
    assert "| t = 0.8 | 1 |" in report
    assert "| Different | 3 |" in report
    assert "## Table 3: gradients beside full KD, 512 positions" in report
    assert "## Figure 5" in report
    config = load_config(tmp_path / "students" / "config.yaml")
    assert config.home == str(tmp_path / "students")
    assert {path.stem for path in (tmp_path / "students" / "cells").iterdir()} == set(config.student_specs)
    records = {path.name: path.read_bytes() for path in (tmp_path / "students" / "cells").iterdir()}
    for folder in ("students", "gradient_similarity"):  # as where records were carried to
        shutil.rmtree(tmp_path / "students" / folder)
    assert _run(tmp_path, "--table", "table10")["left"] == 0  # whose students have no gradients to measure
    assert _run(tmp_path, "--table", "table13")["left"] == 0
    assert "## Table 3" in (tmp_path / "students" / "report.md").read_text()
    assert [path.name for path in (tmp_path / "students" / "students").iterdir()] == ["random-12-seed-0"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "students" / "cells").iterdir()} == records
    again = load_config(tmp_path / "students" / "config.yaml")  # names the students of tables of before, too
    assert set(again.student_specs) == set(config.student_specs)


def test_one_process_without_ray_prefect_and_mlflow_makes_a_table(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_SERVICES)
    home = tmp_path / "home"
    table = ("--table", "table12")
    made = _run(home, *table, module="rskd.reproduction", PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert (made["done"], made["left"]) == (11, 0)
    report = (home / "students" / "report.md").read_text()
    assert "command: python -m rskd.reproduction --scale tiny" in report
    assert "| Reverse KL | 1 |" in report
    assert "## Table 3" in report
    assert not list(home.rglob("mlflow.db"))
