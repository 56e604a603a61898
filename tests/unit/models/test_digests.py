"""What rskd wrote of a student or checkpoint is found to be missing, cut off or changed, by the name of the file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rskd import records
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError
from rskd.models.digests import check_files, check_sizes, describe_files, read_record, whole_copy
from rskd.storage import Store

FILES = ("model.safetensors", "config.json", "additional_chat_templates/tool_use.jinja")


@pytest.fixture(params=["rskd.json", "trainer.json"])
def folder(request, tmp_path: Path) -> Path:
    """A student, or a checkpoint."""
    (tmp_path / "additional_chat_templates").mkdir()
    save_file({"weight": torch.arange(100.0)}, tmp_path / FILES[0])
    (tmp_path / FILES[1]).write_text("{}")
    (tmp_path / FILES[2]).write_text("{{ messages }}")
    (tmp_path / request.param).write_bytes(records.seal({"step": 3, "files": describe_files(tmp_path)}))
    return tmp_path


def _flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _record(folder: Path) -> Path:
    return next(folder / name for name in ("rskd.json", "trainer.json") if (folder / name).exists())


def test_files_are_described_by_bytes_and_sha256(folder: Path):
    files = check_files(folder)
    assert set(files) == set(FILES)
    assert files["config.json"] == {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_names_its_file(folder: Path, name: str):
    _flip_a_bit(folder / name)
    record = read_record(Store(str(folder)))
    assert record is not None
    check_sizes(Store(str(folder)), record)  # a listing cannot tell
    with pytest.raises(CorruptPartError, match=rf"s3://b/x/{name} is damaged .*: remove it and run rskd train"):
        check_files(folder, "s3://b/x")


@pytest.mark.parametrize("name", FILES)
def test_a_cut_off_or_missing_file_is_seen_in_a_listing(folder: Path, name: str):
    record = read_record(Store(str(folder)))
    assert record is not None
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(CorruptPartError, match=rf"{name} is damaged \(\d+ bytes, of \d+ that were written\)"):
        check_sizes(Store(str(folder)), record)
    (folder / name).unlink()
    with pytest.raises(MissingOutputError, match=rf"{name} is missing: run rskd train"):
        check_sizes(Store(str(folder)), record)
    with pytest.raises(MissingOutputError, match=name):
        check_files(folder)


def test_any_changed_byte_of_the_record_is_seen(folder: Path):
    data = _record(folder).read_bytes()
    for place in range(len(data)):
        _record(folder).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CorruptPartError, match=_record(folder).name):
            read_record(Store(str(folder)))
    for damaged in (b"", data[:-10], b"5", b"\xff"):
        _record(folder).write_bytes(damaged)
        with pytest.raises(CorruptPartError, match=_record(folder).name):
            read_record(Store(str(folder)))


def test_one_without_digests_must_have_whole_safetensors(folder: Path):
    _record(folder).unlink()
    (folder / "trainer.json").write_text(json.dumps({"step": 3, "loader": {}}))  # as it was written before
    assert set(check_files(folder)) == set(FILES)
    (folder / FILES[0]).write_bytes((folder / FILES[0]).read_bytes()[:-1])
    with pytest.raises(CorruptPartError, match=r"model\.safetensors is not a whole safetensors file"):
        check_files(folder)
    (folder / FILES[0]).unlink()
    with pytest.raises(MissingOutputError, match="has no weights"):
        check_files(folder)


def test_of_a_folder_of_anybody_elses_cut_off_weights_are_the_callers_to_fix(folder: Path):
    _record(folder).unlink()
    _flip_a_bit(folder / "config.json")
    assert check_files(folder) == {}
    (folder / FILES[0]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with (
        pytest.raises(ConfigError, match=r"model\.safetensors is not a whole safetensors file"),
        whole_copy(Store(str(folder))),
    ):
        pass
