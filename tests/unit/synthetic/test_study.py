"""The whole study from its command, at its smallest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rskd.errors import ConfigError
from rskd.synthetic.study import Settings, run_study

SMALLEST = ["--seeds", "2", "--steps", "100", "--rounds", "64"]


def rskd(*args: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("rskd"), "synthetic", *args, "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_writes_a_page_and_its_numbers(tmp_path: Path):
    done = rskd("--out", str(tmp_path / "out"), *SMALLEST)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    numbers = json.loads((tmp_path / "out" / "synthetic.json").read_text())
    assert found == numbers | {key: found[key] for key in ("report", "results")}
    assert numbers["zipf"]["top_k"]["head_bias"]["value"] > 0.5 > abs(numbers["zipf"]["random"]["head_bias"]["value"])
    assert set(numbers["digits"]) == set(numbers["gaussian"]) >= {"teacher", "ce", "systematic", "full_kd"}
    page = Path(found["report"]).read_text()
    assert all(title in page for title in ("Figure 2a", "Figure 2b", "Figure 2c", "rskd synthetic --out"))
    assert "<script src" not in page


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"seeds": 1}, "seeds=1"), ({"steps": 0}, "steps=0"), ({"rounds": 2}, "rounds=2"), ({"rounds": 9}, "even")],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        Settings(**wrong)


def test_nothing_is_run_where_nothing_can_be_written_or_read(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        run_study(Settings(), str(tmp_path / "file" / "out"))
    with pytest.raises(ConfigError, match="cifar-100-binary"):
        run_study(Settings(cifar100=tmp_path), str(tmp_path / "out"))
