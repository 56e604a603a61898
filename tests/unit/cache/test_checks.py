import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_caches import write_cache

from rskd.cache.checks import keep_check, kept_checks
from rskd.cache.inspection import inspect
from rskd.cache.verify import verify
from rskd.errors import CorruptPartError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    write_cache(str(tmp_path / "cache"))
    return str(tmp_path / "cache")


def test_the_last_verify_is_kept_beside_the_cache_and_changes_nothing_of_it(uri: str):
    before = inspect(uri)
    assert kept_checks(uri) == {}
    command = [sys.executable, "-c", "from rskd.cli import main; main()", "verify", uri, "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    kept = kept_checks(uri)["verify"]
    assert kept["report"] == said
    assert kept["manifest"] == before["digest"]
    assert inspect(uri) == before
    part = next(Path(uri, "parts").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert subprocess.run(command, capture_output=True).returncode == 3
    report = kept_checks(uri)["verify"]["report"]
    assert (report["ok"], len(report["problems"])) == (False, 1)


def test_a_folder_that_may_only_be_read_costs_a_warning(uri: str, caplog: pytest.LogCaptureFixture):
    if os.geteuid() == 0:
        Path(f"{uri}.audit.json").mkdir()  # permissions do not bind root
    else:
        Path(uri).parent.chmod(0o555)
    keep_check(uri, "audit", {"ok": True}, manifest=None)
    [line] = caplog.messages
    assert "this audit is not kept beside the cache" in line
    assert verify(uri).ok


def test_a_changed_record_is_refused(uri: str):
    keep_check(uri, "verify", {"ok": False}, manifest=None)
    file = Path(f"{uri}.verify.json")
    file.write_text(file.read_text().replace("false", "true"))
    with pytest.raises(CorruptPartError, match="is not what was written"):
        kept_checks(uri)


def test_a_whole_bucket_has_nothing_beside_it(caplog: pytest.LogCaptureFixture):
    keep_check("s3://bucket", "verify", {"ok": True}, manifest=None)
    assert "s3://bucket is a whole bucket" in caplog.messages[0]
