import os
import subprocess
import sys
from pathlib import Path

import pytest

from rskd import environment
from rskd.errors import ConfigError

PROXIES = [name for scheme in ("http", "https", "all", "no") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())]
HOMES = ["HF_HOME", "PREFECT_HOME", "MPLCONFIGDIR"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables that are set here or by what is tested are taken back."""
    for name in [*PROXIES, *HOMES, "RAY_TMPDIR", "TMPDIR"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"http_proxy": "http://p:1"}, "127.0.0.1,localhost,::1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "intern, localhost"}, "intern,localhost,127.0.0.1,::1"),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "*"}, "*"),
    ],
)
def test_loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], wanted: str | None) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment.prepare()
    assert (os.environ.get("no_proxy"), os.environ.get("NO_PROXY")) == (wanted, wanted)


@pytest.mark.parametrize("home", ["/proc/nobody", ""])
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", "/a/place/of/its/own")
    environment.prepare()
    assert os.environ["HF_HOME"] == "/a/place/of/its/own"
    assert os.environ["HOME"] == f"{tmp_path}/rskd-home-{os.getuid()}"
    assert os.environ["PREFECT_HOME"] == f"{tmp_path}/rskd-home-{os.getuid()}/prefect"


def test_a_home_that_can_be_written_is_left_alone() -> None:
    environment.prepare()
    assert not set(HOMES) & os.environ.keys()


def test_the_folder_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environment.ray_temporary_folder() is None
    own = f"/tmp/rskd-ray-{os.getuid()}"
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / ("jobdir" * 20)))
        assert environment.ray_temporary_folder() == own
    monkeypatch.setenv("RAY_TMPDIR", "/proc/r")
    with pytest.raises(ConfigError, match="RAY_TMPDIR=/proc/r cannot be written: set RAY_TMPDIR to a folder of yours"):
        environment.ray_temporary_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/proc/t")
    assert environment.ray_temporary_folder() == own


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given: dict[str, str], found: str):
    program = (
        "import os, sys, rskd.cli, flows.distill; from rskd import environment\n"
        "assert 'torch' not in sys.modules  # which reads it when it is imported\n"
        "environment.prepare(); print(os.environ['OMP_WAIT_POLICY'])"
    )
    without = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", program], env=without | given, capture_output=True, text=True)
    assert done.stdout.strip() == found, done.stderr
