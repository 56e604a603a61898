"""The command line as a process: exit codes, one line of error, and nothing but JSON on stdout with --json."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from rskd.cli import main; main()"]


def rskd(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, check=False, timeout=120, cwd=cwd)


@pytest.mark.parametrize("args", [["frobnicate"], ["pack"], ["pack", "absent.yaml"], ["audit", "x"], ["train", "--x"]])
def test_wrong_calls_exit_2_with_one_line(args: list[str], tmp_path: Path) -> None:
    done = rskd(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("rskd: ")


def test_json_failure_is_one_object_on_stdout(tmp_path: Path) -> None:
    done = rskd("inspect", str(tmp_path / "absent"), "--json")
    assert done.returncode == 3
    failure = json.loads(done.stdout)
    assert failure["ok"] is False
    assert failure["exit_code"] == 3
    assert "absent" in failure["error"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in rskd("--debug", "pack", "absent.yaml", cwd=tmp_path).stderr


def test_help_lists_every_stage() -> None:
    done = rskd("--help")
    assert done.returncode == 0
    for verb in ("pack", "cache", "train", "evaluate", "report", "estimate", "inspect", "verify", "audit", "export"):
        assert verb in done.stdout
