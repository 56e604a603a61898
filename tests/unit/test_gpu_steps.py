"""The runner of make check-gpu and bench-gpu: it resumes, outlives failing and hanging steps, and sums up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.steps import Step, read_record, run_all

ROOT = Path(__file__).parents[2]


def step(name: str, program: str, **options) -> Step:
    return Step(name, (sys.executable, "-S", "-c", program), 1, **options)


def counting(name: str, folder: Path, then: str = "print('done')") -> Step:
    """A step that notes each run in a file."""
    return step(name, f"open({str(folder / 'runs')!r}, 'a').write({name!r} + ' '); {then}")


def test_what_passed_is_not_run_again_and_failures_come_last(tmp_path, capsys):
    steps = [
        counting("broken", tmp_path, "raise SystemExit('no such kernel')"),
        counting("whole", tmp_path),
    ]
    assert run_all(steps, tmp_path / "state", environment={}) == 1
    assert "| broken | failed |" in (table := capsys.readouterr().out)
    assert "no such kernel" in table
    assert "1 passed, 1 failed" in table
    steps = [*steps, counting("new", tmp_path)]
    assert run_all(steps, tmp_path / "state", environment={}) == 1
    assert (tmp_path / "runs").read_text().split() == ["broken", "whole", "new", "broken"]
    assert "1 of 3 steps passed before" in capsys.readouterr().out
    assert run_all(steps[1:], tmp_path / "state", environment={}) == 0
    assert run_all(steps[1:], tmp_path / "state", again=True, environment={}) == 0
    assert (tmp_path / "runs").read_text().split()[4:] == ["whole", "new"]


@pytest.mark.parametrize(
    ("program", "options", "status", "note"),
    [
        ("print('3 passed')", {"proof": r"[1-9]\d* passed"}, "passed", "3 passed"),
        ("print('2 skipped')", {"proof": r"[1-9]\d* passed"}, "failed", "nothing was tested; 2 skipped"),
        ("import os; os.kill(os.getpid(), 9)", {}, "failed", "killed by signal 9; no output"),
        ("raise SystemExit('torch.OutOfMemoryError: CUDA')", {}, "out of memory", "torch.OutOfMemoryError: CUDA"),
        ("pass", {"needs": ("json", "a_package_that_no_one_has")}, "not installed", "a_package_that_no_one_has"),
        ("import os; print(os.environ['SIZE'])", {}, "passed", "small"),
    ],
)
def test_what_is_recorded(tmp_path, program, options, status, note):
    one = step("one", program, **options)
    code = run_all([one], tmp_path, environment={"SIZE": "small"})
    record = read_record(tmp_path, one)
    assert (record.status, record.note) == (status, note)
    assert code == int(status in ("failed", "out of memory"))


def test_a_step_that_hangs_is_killed_with_what_it_started(tmp_path):
    program = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    one = step("hangs", program, limit_s=1)
    started = time.monotonic()
    assert run_all([one], tmp_path, environment={}) == 1
    assert time.monotonic() - started < 30
    assert read_record(tmp_path, one).status == "too long"
    child = Path("/proc") / (tmp_path / "hangs.log").read_text().strip() / "stat"
    assert not child.exists() or child.read_text().split()[2] == "Z"


@pytest.mark.parametrize("what", ["check", "bench"])
def test_without_a_gpu_it_says_so(tmp_path, what):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "tests" / "bench" / "gpu.py", what, "--state", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith(f"make {what}-gpu needs a GPU")
    assert len(done.stdout.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["check", "bench"])
def test_every_step_runs_in_small_on_a_cpu(tmp_path, what):
    command = [sys.executable, ROOT / "tests" / "bench" / "gpu.py", what, "--tiny", "--state", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of" in done.stdout
    assert "failed" not in done.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "[1/" not in again.stdout.replace("[1/1] flash attention", "")  # which is not installed
