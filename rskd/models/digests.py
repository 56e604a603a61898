"""Whether the files of a student or a checkpoint are still those that rskd wrote.

    files of a folder ─► bytes and sha256 of each ─► `files` of its record, sealed and written last
                         rskd.json: a student        trainer.json: a checkpoint

A folder without such a record is not rskd's, and nothing is known of it. Records of before there were digests have no
`files`: then the safetensors must at least be whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rskd import records
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError, first_line
from rskd.storage import Store

RESULT_FILE = "rskd.json"  # what a finished student was made from
TRAINER_FILE = "trainer.json"  # how far the training of a checkpoint has come
_RECORDS = (RESULT_FILE, TRAINER_FILE)
_FIX = "remove it and run rskd train"

Files = dict[str, dict[str, Any]]  # {"bytes": …, "sha256": …} by name


def describe_files(directory: str | Path) -> Files:
    """Bytes and sha256 of each file of a folder and its subfolders, but for the records. Reads them once."""
    return {
        name: {"bytes": size, "sha256": sha256_of(Path(directory, name))}
        for name, size in Store(str(directory)).sizes(recursive=True).items()
        if name not in _RECORDS
    }


def read_record(folder: Store) -> dict[str, Any] | None:
    """What rskd recorded of a student or checkpoint; None where it wrote neither. CorruptPartError if it changed."""
    for name in _RECORDS:
        try:
            data = folder.read(name)
        except MissingOutputError:
            continue
        origin = f"{folder.uri}/{name}"
        try:
            content = json.loads(data)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise CorruptPartError(f"{origin} is damaged (it is no JSON object): {_FIX}")
        return records.unseal(data, origin) if "digest" in content or "files" in content else content
    return None


def check_sizes(folder: Store, record: dict[str, Any]) -> None:
    """Compare a listing of the folder with its record: what is missing or has another size is found without a read.

    Raises MissingOutputError and CorruptPartError, which name the file.
    """
    found = folder.sizes(recursive=True)
    for name, file in record.get("files", {}).items():
        if name not in found:
            raise MissingOutputError(f"{folder.uri}/{name} is missing: run rskd train")
        if found[name] != file["bytes"]:
            raise CorruptPartError(
                f"{folder.uri}/{name} is damaged ({found[name]} bytes, of {file['bytes']} that were written): {_FIX}"
            )
    if not any(name.endswith(".safetensors") for name in found):
        raise MissingOutputError(f"{folder.uri} has no weights (*.safetensors): run rskd train")


def check_files(directory: str | Path, origin: str | None = None) -> Files:
    """Check every file of a local folder that rskd wrote, and say what they are; {} for a folder of anybody else's.

    `origin` is what messages call the folder. Raises MissingOutputError and CorruptPartError, which name the file.
    """
    folder, origin = Store(str(directory)), origin or str(directory)
    record = read_record(folder)
    if record is None:
        return {}
    check_sizes(folder, record)
    files = describe_files(directory)
    for name, written in record.get("files", {}).items():
        if files[name] != written:
            raise CorruptPartError(f"{origin}/{name} is damaged (its sha256 is not that of what was written): {_FIX}")
    if "files" not in record and (broken := _broken_weights(directory)):
        raise CorruptPartError(f"{origin}/{broken}: {_FIX}")
    return files


def _broken_weights(directory: str | Path) -> str | None:
    """Name of a safetensors file that is not whole, and why not."""
    for file in sorted(Path(directory).glob("*.safetensors")):
        try:
            tensors_in(file)
        except ValueError as error:
            return f"{file.name} {error}"
    return None


def tensors_in(file: Path) -> list[str]:
    """Names of the tensors of a safetensors file, from its header alone. ValueError, saying why, if it is not whole."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"is not a whole safetensors file ({first_line(error)})") from None


@contextmanager
def whole_copy(folder: Store) -> Iterator[tuple[Path, Files]]:
    """A local copy of a folder (or itself) whose files are those that were written, and `check_files` of it.

    ConfigError for a folder that is not rskd's and holds safetensors that are cut off.
    """
    with folder.local_copy() as directory:
        files = check_files(directory, folder.uri)
        if not files and (broken := _broken_weights(directory)):
            raise ConfigError(f"{folder.uri}/{broken}: download it again")
        yield Path(directory), files


def sha256_of(file: Path) -> str:
    """sha256 of a file, in hex; holds little of it in memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
