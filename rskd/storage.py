"""A folder on a local disk or in an object store, behind one small interface (fsspec).

Two ways to write, and both leave either the whole file or nothing: `write` replaces, `create` never does.
`create` is the commit: of any number of writers exactly one gets True. Locally it is a hard link to a finished
temporary file, or where there are none (exFAT, some FUSE and SMB mounts) a rename of it under a lock file; on S3 a
conditional put (If-None-Match). An outage of an object store that was there is waited for (`rskd.object_store`).
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from rskd.errors import ConfigError, MissingOutputError, RskdError, StoreAccessError, printable
from rskd.file_lock import file_lock
from rskd.full_disk import temporary_folder

_TEMPORARY_PREFIX = ".tmp-"
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}  # what link answers then
_inherited: list[Any] = []  # kept from collection: closing one would unhook the parent's sockets, whose epoll is shared


class Store:
    """The folder `uri`; names are relative to it and use `/`."""

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        if protocol not in ("file", "s3"):
            raise ConfigError(f"storage {uri}: protocol {protocol} is not supported: use a local path or s3://bucket")
        self._fs, self._pid = _filesystem(protocol), os.getpid()
        self.path: str = self.fs._strip_protocol(self.uri)
        if protocol == "s3" and not uri.removeprefix("s3://").strip("/"):
            raise ConfigError(f"storage {uri} names no bucket: write s3://bucket")

    @property
    def fs(self) -> Any:
        """The fsspec filesystem, another one in a forked process: connections to S3 stay behind."""
        if self._pid != os.getpid():
            _inherited.append(self._fs)
            self._fs, self._pid = _filesystem("file" if self.is_local else "s3"), os.getpid()
        return self._fs

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    @property
    def absolute_uri(self) -> str:
        """The URI as a process with another working directory must call it."""
        return str(Path(self.path).resolve()) if self.is_local else self.uri

    def expect(self) -> None:
        """Wait for outages of this store from the first request on: another process has used it."""
        if not self.is_local:
            type(self.fs).known_to_answer = True

    def child(self, name: str) -> Store:
        return Store(f"{self.uri}/{name}")

    def full_path(self, name: str = "") -> str:
        """Path of a file for `self.fs` (without the protocol)."""
        return f"{self.path}/{name}" if name else self.path

    def exists(self, name: str = "") -> bool:
        with self.explained(name):
            return self.fs.exists(self.full_path(name))

    def size(self, name: str) -> int:
        """Bytes of a file; MissingOutputError where there is none."""
        with self.explained(name):
            return self.fs.size(self.full_path(name))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes of a file, or of the range [start, end); MissingOutputError where there is none."""
        with self.explained(name):
            return self.fs.cat_file(self.full_path(name), start=start, end=end)

    def open(self, name: str) -> BinaryIO:
        """A file to read ranges of; on an object store each is a request."""
        with self.explained(name):
            return cast(BinaryIO, self.fs.open(self.full_path(name), "rb"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, replacing an older one."""
        path = self.full_path(name)
        with self.explained(name, writing=True):
            if self.is_local:
                with _temporary(Path(path), data) as temporary:
                    temporary.replace(path)
            else:
                self.fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file whole unless it exists; True for the one writer that made it."""
        path = self.full_path(name)
        with self.explained(name, writing=True):
            if self.is_local:
                with _temporary(Path(path), data) as temporary:
                    return _moved(temporary, Path(path))
            try:
                self.fs.pipe_file(path, data, mode="create")
            except OSError as error:
                if isinstance(error, PermissionError) or not self.fs.exists(path):
                    raise
                return False
            return True

    def list(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted; empty where there is no such folder."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str = "", *, recursive: bool = False, temporary: bool = False) -> dict[str, int]:
        """Bytes of each file of a folder by name (relative to `folder`), and of its subfolders if `recursive`.

        `temporary` includes the unfinished files of local writers, of which some may have died. Symbolic links are
        followed, except to a folder that the link is in; one whose target is missing has 0 bytes.
        """
        path = self.full_path(folder)
        with self.explained(folder):
            if self.is_local:
                names = dict(_local_sizes(path, "", recursive=recursive))
            else:
                names = self._remote_sizes(path, recursive=recursive)
        return {
            name: size
            for name, size in names.items()
            if name and (temporary or not Path(name).name.startswith(_TEMPORARY_PREFIX))
        }

    def _remote_sizes(self, path: str, *, recursive: bool) -> dict[str, int]:
        found = []
        with suppress(FileNotFoundError):
            # `find` with a maxdepth would take a refused listing for an empty one.
            found = self.fs.find(path, detail=True).values() if recursive else self.fs.ls(path, detail=True)
        return {entry["name"][len(path) :].lstrip("/"): entry["size"] for entry in found if entry["type"] == "file"}

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted; empty where there is no such folder."""
        path = self.full_path(folder)
        found = []
        with self.explained(folder), suppress(FileNotFoundError, NotADirectoryError):
            found = self.fs.ls(path, detail=True)
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")
        return sorted(name for name in names if not name.startswith("."))

    def modified(self, name: str = "") -> float:
        """When a file was written, or a local folder changed, in seconds since 1970; 0 for a folder of a bucket."""
        if not self.is_local and not name:
            return 0.0
        with self.explained(name):
            return self.fs.modified(self.full_path(name)).timestamp()

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with self.explained(name), suppress(FileNotFoundError):
            self.fs.rm_file(self.full_path(name))

    def abort_uploads(self) -> list[str]:
        """End uploads in parts that writers into this folder left unfinished, up to a thousand; the files' names.

        No reader sees them, yet an object store keeps what has arrived. Not while somebody writes.
        """
        if self.is_local:
            return []
        bucket, _, folder = self.path.partition("/")
        prefix = f"{folder}/" if folder else ""
        with self.explained(""):
            found = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", [])
            for upload in found:
                self.fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
        return sorted(upload["Key"].removeprefix(prefix) for upload in found)

    @contextmanager
    def local_copy(self) -> Iterator[str]:
        """Path of a local directory with the files of the folder: the folder itself, or a download of it."""
        if self.is_local:
            yield self.path
            return
        with temporary_folder(self._download) as directory:
            yield str(directory)

    def _download(self, directory: Path) -> None:
        for name in self.sizes(recursive=True):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            with self.explained(name):
                self.fs.get_file(self.full_path(name), str(directory / name))

    def put(self, file: Path, name: str) -> None:
        """Upload a local file under a name, replacing an older one."""
        path = self.full_path(name)
        with self.explained(name, writing=True):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(file), path)

    def remove_all(self) -> None:
        """Remove the folder with everything below it, if it is there."""
        with self.explained(""), suppress(FileNotFoundError):
            self.fs.rm(self.path, recursive=True)

    def check_writable(self, named: str = "storage.root") -> None:
        """ConfigError, which says what `named` it, if nothing can be written here, or two writers could both commit.

        StoreAccessError if an object store refuses it.
        """
        if not _is_text(self.path):
            raise ConfigError(
                f"{named}: {printable(self.path)} is not UTF-8, as the readers of models need it: rename it"
            )
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            won = [self.create(probe, b""), self.create(probe, b"")]
            self.remove(probe)
        except StoreAccessError as error:
            if not self.is_local:
                raise
            raise ConfigError(f"{named}: {error}, or choose another {named.rpartition('.')[2]}") from None
        except (OSError, NotImplementedError) as error:
            raise ConfigError(f"{named}: {self.uri} does not create a file ({error}): use another storage") from None
        if won != [True, False]:
            raise ConfigError(
                f"{named}: {self.uri} overwrites a file where it was asked to create one (If-None-Match): "
                "use a storage that has conditional writes"
            )

    @contextmanager
    def explained(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Within it, errors of the store are raised as RskdError; those of what reads its files pass."""
        try:
            yield
        except Exception as error:
            explained = self._explain(error, name, writing)
            if explained is None:
                raise
            raise explained from None

    def _explain(self, error: Exception, name: str, writing: bool) -> RskdError | None:
        """What is wrong with the store in its user's words, never with a key; None for anything else."""
        if not writing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingOutputError(f"{self.uri}/{name} does not exist")
        if self.is_local:
            if not isinstance(error, OSError) or error.errno is None:  # pyarrow raises OSError for corrupt data
                return None
            reason = error.strerror or error
            if writing:
                return StoreAccessError(f"{self.uri}/{name} cannot be written ({reason}): free or permit it")
            return StoreAccessError(f"{error.filename or f'{self.uri}/{name}'} cannot be read ({reason}): permit it")
        if isinstance(error, FileNotFoundError):
            return ConfigError(f"bucket of {self.uri} does not exist: create it, or correct storage.root")
        if not _is_access_error(error):
            return None
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        bucket = self.path.split("/", 1)[0]
        return StoreAccessError(
            f"object store {endpoint} refuses or does not answer for bucket {bucket} ({type(error).__name__}): "
            "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filesystem(protocol: str) -> Any:
    if protocol == "file":
        return LocalFileSystem()
    from rskd.object_store import S3_OPTIONS, PatientS3FileSystem

    return PatientS3FileSystem(**S3_OPTIONS)


def _local_sizes(
    folder: str, prefix: str, *, recursive: bool, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, int]]:
    """Name, with `prefix`, and bytes of each file of a folder; `above` has the identities of the folders it is in."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = Path(folder).stat()
        identity = (found.st_dev, found.st_ino)
        if identity in above:  # a link back up
            return
        with os.scandir(folder) as listing:
            entries = list(listing)
        for entry in entries:
            name = prefix + entry.name
            try:
                status = entry.stat()
            except OSError:  # removed since it was listed, or a link to nothing
                if entry.is_symlink():
                    yield name, 0
                continue
            if stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            elif recursive and stat.S_ISDIR(status.st_mode):
                yield from _local_sizes(entry.path, f"{name}/", recursive=True, above=(*above, identity))


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A finished temporary file beside `path`, on the disk itself; removed afterwards unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _moved(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken; a crash at any point leaves no half file under it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return True
    with file_lock(path.parent / f"{_TEMPORARY_PREFIX}{path.name}.lock"):
        if path.exists():
            return False
        temporary.replace(path)
        return True


def _is_access_error(error: Exception) -> bool:
    import botocore.exceptions

    return isinstance(error, PermissionError | ConnectionError | botocore.exceptions.BotoCoreError)
