"""The command line as a process: exit codes, one line of error, and nothing but JSON on stdout with --json."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_caches import make_corpus, make_head, make_part, write_cache

from rskd.cache.inspection import inspect
from rskd.cache.writer import CacheWriter

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


def test_a_student_is_exported_to_an_object_store_as_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    done = rskd("export", ".", "s3://", cwd=tmp_path)  # no bucket: as far as it goes without a store
    assert done.returncode == 2
    assert done.stderr == "rskd: storage s3:// names no bucket: write s3://bucket\n"
    assert not (tmp_path / "s3:").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in rskd("--debug", "pack", "absent.yaml", cwd=tmp_path).stderr


def test_help_lists_every_stage() -> None:
    done = rskd("--help")
    assert done.returncode == 0
    for verb in (
        "pack",
        "cache",
        "train",
        "evaluate",
        "generate",
        "judge",
        "report",
        "estimate",
        "inspect",
        "verify",
        "audit",
        "export",
    ):
        assert verb in done.stdout


def test_inspect_draws_each_histogram_with_shares_that_add_up(tmp_path: Path) -> None:
    uri = str(tmp_path / "cache")
    write_cache(uri)
    done = rskd("inspect", uri)
    assert done.returncode == 0
    assert "sampling.method" in done.stdout
    drawings = done.stdout.split("share of positions by ")[1:]
    titles = [drawing.splitlines()[0].strip() for drawing in drawings]
    assert titles == ["unique tokens at a position", "log-probability of the label, nats"]
    for drawing in drawings:
        shares = [float(share) for share in re.findall(r"([0-9.]+)%", drawing)]
        assert 2 < len(shares) <= 24
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
        longest = max(drawing.splitlines()[1:], key=lambda line: line.count("█"))
        assert f"{max(shares)}%" in longest


def test_inspect_of_an_unfinished_cache_as_json_and_html(tmp_path: Path) -> None:
    uri, page, part = str(tmp_path / "cache"), tmp_path / "new" / "page.html", make_corpus()[1]
    CacheWriter(uri, manifest_head=make_head()).commit_part(1, make_part(part), corpus_sha256=part.sha256)
    done = rskd("inspect", uri, "--html", str(page), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == inspect(uri)
    text = page.read_text()
    assert "unfinished: 1 of 5 parts" in text
    assert text.count("Plotly.newPlot(") == 2


def test_a_page_that_cannot_be_written_is_a_wrong_call(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "page.html"
    done = rskd("inspect", str(tmp_path / "cache"), "--html", str(page))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"rskd: --html {page} cannot be written (File exists): name another file"]


def test_audit_tells_a_model_that_does_not_exist_before_the_cache(tmp_path: Path) -> None:
    done = rskd("audit", str(tmp_path / "cache"), "--teacher", "./absent")
    assert (done.returncode, "absent" in done.stderr) == (2, True)
