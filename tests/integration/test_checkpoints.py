"""Which checkpoint of a run is gone on from, on a disk and on an object store alike."""

import logging
from pathlib import Path

import pytest

from rskd import records
from rskd.jobs.training.checkpoints import finished, newest_whole, tidy, unused_name
from rskd.models.digests import describe_files
from rskd.storage import Store

RUN = "0123456789abcdef"


@pytest.fixture(params=["disk", "object store"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "checkpoints"))
    return Store(f"{request.getfixturevalue('object_store').make_bucket()}/checkpoints")


def _write(folder: Store, step: int, tmp_path: Path) -> None:
    local = tmp_path / f"local-{step}"
    (local / "more").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (local / "more" / "file").write_text(f"step {step}")
    record = {"step": step, "loader": {}, "files": describe_files(local)}
    (local / "trainer.json").write_bytes(records.seal(record))
    for name in Store(str(local)).sizes(recursive=True):
        folder.put(local / name, name)


def test_the_newest_whole_one_is_found_and_the_rest_removed(checkpoints: Store, tmp_path: Path, caplog):
    assert unused_name(checkpoints, RUN) == RUN
    with newest_whole(checkpoints, RUN) as directory:
        assert directory is None
    _write(checkpoints.child(f"{RUN}/checkpoint-00000002"), 2, tmp_path)
    _write(checkpoints.child(f"{RUN}-1/checkpoint_2026-01-02"), 4, tmp_path)
    _write(checkpoints.child(f"{RUN}-2/checkpoint_2026-01-01"), 6, tmp_path)
    _write(checkpoints.child("another/checkpoint-00000008"), 8, tmp_path)
    checkpoints.write(f"{RUN}-2/checkpoint_manager_snapshot.json", b"")
    checkpoints.write(f"{RUN}-2/checkpoint_unfinished/model.safetensors", b"")
    assert unused_name(checkpoints, RUN) == f"{RUN}-3"
    with newest_whole(checkpoints, RUN) as directory:
        assert directory is not None
        assert Path(directory, "more", "file").read_text() == "step 6"

    checkpoints.write(f"{RUN}-2/checkpoint_2026-01-01/more/file", b"step 7")
    with caplog.at_level(logging.WARNING), newest_whole(checkpoints, RUN, remove_damaged=True) as directory:
        assert directory is not None
        assert Path(directory, "more", "file").read_text() == "step 4"
    assert f"{checkpoints.uri}/{RUN}-2/checkpoint_2026-01-01/more/file is damaged" in caplog.text
    assert len(finished(checkpoints, RUN)) == 2

    tidy(checkpoints, RUN)
    assert {name.rsplit("/", 1)[0] for name in checkpoints.sizes(recursive=True) if name.endswith(".json")} == {
        f"{RUN}/checkpoint-00000002",
        f"{RUN}-1/checkpoint_2026-01-02",
        "another/checkpoint-00000008",
    }
