"""Where documents come from: a source is listed once, its files are grouped, and a group is read as documents.

    SourceConfig ─► list_files ─► [SourceFile] ─► group_files ─► [Group] ─► read_documents ─► texts

A group is the unit of work and of growth. Files are grouped in name order, large ones by ranges; a later listing leaves
the groups that were packed as they are and groups the new files after them.

What is read, by kind (`uri` is a file, a folder or a glob; a folder is searched recursively, but for hidden files):
    python_docs  CPython's topics, and the docstrings of each module of its standard library, read without importing
    text         a file is a document (UTF-8, or UTF-16 with its byte order mark); in a folder *.txt, *.md and *.rst
    jsonl        a line is a document (UTF-8), in `field`; in a folder *.jsonl, *.json and *.ndjson
    parquet      a row is a document, in the column `field`; in a folder *.parquet
    hf           a row is a document, in the column `field` of `split`: a dataset of the hub, or a local folder of one
A corpus of kind chat has conversations for documents, read from jsonl, parquet and hf (see rskd.corpus.conversations).
Text and jsonl may be compressed (.gz, .bz2, .xz, .zst). `field` reaches into nested objects (a.b). A path, or a folder
before a glob, that exists is taken as it is, whatever its characters; `~` is the home directory. Symbolic links are
followed; one that would search a folder within itself is not. Documents without a visible character are left out, and
so are the outputs of rskd, where they lie in the folder.
"""

from __future__ import annotations

import glob
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from rskd.config import SourceConfig
from rskd.corpus.compressed import codec
from rskd.corpus.conversations import (
    Conversation,
    ConversationError,
    chat_columns,
    conversation_of,
    without_nulls,
)
from rskd.corpus.hugging_face import hf_documents, hf_rows, hf_size
from rskd.corpus.readers import READERS, TOPICS_FILE, FileRange, Row, json_rows, parquet_rows
from rskd.errors import CacheMismatchError, ConfigError, MissingOutputError, StoreAccessError, printable
from rskd.storage import Store

GROUP_BYTES = 32 << 20  # of source files; a task holds the tokens of one group in memory
GROUP_ROWS = 20_000  # of a Hugging Face dataset, whose files are not ours to see

_SUFFIXES = {
    "python_docs": (".py",),
    "text": (".txt", ".md", ".rst"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
}
_NOT_DOCUMENTATION = {"__pycache__", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its name under the source's folder and its size in bytes (rows for hf)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """A run of documents: a range of a large file, or several small files."""

    files: tuple[FileRange, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {"files": [asdict(file) for file in self.files]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Group:
        """Inverse of `to_dict`; other keys are ignored."""
        return cls(tuple(FileRange(**file) for file in content["files"]))


def located(source: SourceConfig) -> SourceConfig:
    """The same source for a process with another working directory; a link keeps its own name."""
    if source.uri is None or (source.kind == "hf" and "://" in source.uri):
        return source
    store = Store(_expanded(source.uri))
    if not store.is_local or (source.kind == "hf" and not store.exists()):
        return source
    return source.model_copy(update={"uri": store.path})


def list_files(source: SourceConfig, outputs: Sequence[str] = (), *, chat: bool = False) -> list[SourceFile]:
    """The files of a source in name order, without empty ones and those below the folders `outputs`.

    Raises ConfigError if it does not exist or has none; for hf, if it has no column of text, or of conversations.
    """
    if source.kind == "hf":
        return [SourceFile(str(source.uri), hf_size(source, _columns(source) if chat else None))]
    try:
        sizes = _without(_sizes(source), source, outputs)
    except MissingOutputError:
        sizes = {}
    except StoreAccessError as error:
        raise _unreadable(source, error) from None
    if not any(sizes.values()):
        problem = "holds nothing" if sizes else f"has no {' '.join('*' + suffix for suffix in _SUFFIXES[source.kind])}"
        raise ConfigError(
            f"corpus.source.uri={printable(str(source.uri))} {problem}, or does not exist: name a file, folder or glob "
            "with documents"
        )
    _check_readable(source, sizes)
    return [SourceFile(name, sizes[name]) for name in sorted(sizes) if sizes[name]]


def group_files(files: Sequence[SourceFile], *, kind: str) -> list[Group]:
    """Cut a listing into groups of at most about GROUP_BYTES: a pure function of it."""
    limit = GROUP_ROWS if kind == "hf" else GROUP_BYTES
    groups, pending, pending_size = [], [], 0
    for file in files:
        if pending and pending_size + file.size > limit:
            groups.append(Group(tuple(pending)))
            pending, pending_size = [], 0
        if file.size > limit and _is_divisible(file.name, kind):
            starts = range(0, file.size, limit)
            groups += [Group((FileRange(file.name, file.size, s, min(s + limit, file.size)),)) for s in starts]
        else:
            pending.append(FileRange(file.name, file.size, 0, file.size))
            pending_size += file.size
    return [*groups, Group(tuple(pending))] if pending else groups


def new_groups(recorded: Iterable[Group], files: Sequence[SourceFile], *, source: SourceConfig) -> list[Group]:
    """Groups of the files that no recorded group has.

    Raises CacheMismatchError if a recorded file is gone or has another size: what was packed is no longer the source.
    """
    sizes = {file.name: file.size for file in files}
    packed = {file.name: file.size for group in recorded for file in group.files if file.size}
    for name, size in packed.items():
        if sizes.get(name) != size:
            unit = "rows" if source.kind == "hf" else "bytes"
            problem = f"has {sizes[name]} {unit}, not {size}" if name in sizes else "is gone"
            where = f"{printable(name)} of corpus source {printable(source.uri or source.kind)}"
            raise CacheMismatchError(f"{where} {problem}, but was packed: restore it, or choose another name")
    return group_files([file for file in files if file.name not in packed], kind=source.kind)


def read_documents(source: SourceConfig, group: Group) -> Iterator[str]:
    """The texts of a group, in the order of its files.

    Raises ConfigError, naming the file, for one that is not of the source's kind or has no such field.
    """
    if source.kind == "hf":
        for rows in group.files:
            yield from _visible(hf_documents(source, rows.start, rows.end))
        return
    folder, _ = _folder_and_pattern(source)
    try:
        for file in group.files:
            yield from _visible(READERS[source.kind](Store(folder), file, source.field))
    except (MissingOutputError, StoreAccessError) as error:
        raise _unreadable(source, error) from None


def read_conversations(
    source: SourceConfig, group: Group
) -> Iterator[tuple[Conversation, Callable[[object], Exception]]]:
    """The conversations of a group, in the order of its files, each with what refuses it by file and row.

    Raises ConfigError, naming the file and the row, for one that is no conversation.
    """
    for row in _rows(source, group):
        content = row.content if source.kind == "jsonl" else without_nulls(row.content)
        try:
            conversation = conversation_of(content, _messages_column(source))
        except ConversationError as problem:
            raise row.refuse(problem) from None
        yield conversation, row.refuse


def _rows(source: SourceConfig, group: Group) -> Iterator[Row]:
    if source.kind == "hf":
        for rows in group.files:
            yield from hf_rows(source, rows.start, rows.end, _columns(source))
        return
    store = Store(_folder_and_pattern(source)[0])
    try:
        for file in group.files:
            is_json = source.kind == "jsonl"
            yield from json_rows(store, file) if is_json else parquet_rows(store, file, _columns(source))
    except (MissingOutputError, StoreAccessError) as error:
        raise _unreadable(source, error) from None


def _messages_column(source: SourceConfig) -> str | None:
    """The column that the source names for its messages; None where it names none."""
    return None if source.field == SourceConfig.model_fields["field"].default else source.field


def _columns(source: SourceConfig) -> Callable[[list[str], str], list[str]]:
    return lambda names, where: chat_columns(names, _messages_column(source), where)


def _without(sizes: dict[str, int], source: SourceConfig, outputs: Sequence[str]) -> dict[str, int]:
    """The files that are not below one of the folders `outputs`, unless the source is within that folder itself."""
    folder = Store(_folder_and_pattern(source)[0]).absolute_uri.rstrip("/") + "/"
    uris = [Store(output).absolute_uri for output in outputs]
    below = tuple(f"{uri.removeprefix(folder)}/" for uri in uris if uri.startswith(folder))
    return {name: size for name, size in sizes.items() if not name.startswith(below)}


def _check_readable(source: SourceConfig, names: Iterable[str]) -> None:
    """ConfigError for the first file that is a link to nothing, or may not be read; an object store has neither."""
    store = Store(_folder_and_pattern(source)[0])
    unreadable = (name for name in names if store.is_local and not os.access(store.full_path(name), os.R_OK))
    for name in unreadable:
        why = "may not be read" if store.exists(name) else "is a symbolic link whose target is missing"
        raise ConfigError(f"{printable(name)} of corpus source {printable(str(source.uri))} {why}: fix or remove it")


def _unreadable(source: SourceConfig, error: MissingOutputError | StoreAccessError) -> Exception:
    """A local source that cannot be read is the user's; credentials that a store refuses stay what they are."""
    if isinstance(error, StoreAccessError) and not Store(_folder_and_pattern(source)[0]).is_local:
        return error
    return ConfigError(f"corpus.source.uri={printable(str(source.uri))}: {printable(str(error))}")


def _visible(texts: Iterable[str | None]) -> Iterator[str]:
    return (text for text in texts if text and not text.isspace())


def _is_divisible(name: str, kind: str) -> bool:
    """Whether documents can be found from the middle of a file on."""
    return kind in ("hf", "parquet") or (kind == "jsonl" and codec(name) is None)


def _sizes(source: SourceConfig) -> dict[str, int]:
    """Bytes of each file of a source, by its name under the source's folder."""
    folder, pattern = _folder_and_pattern(source)
    store, suffixes = Store(folder), _SUFFIXES[source.kind]
    if source.kind == "python_docs":
        files = (path for path in Path(folder).rglob("*.py") if _is_documentation(path.relative_to(folder)))
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    if pattern is None:
        found = store.sizes(recursive=True)
        return {name: size for name, size in found.items() if _is_visible(name) and _plain(name).endswith(suffixes)}
    matches, wants_hidden = re.compile(glob_translate(pattern)).match, not _is_visible(pattern)
    found = store.sizes(recursive="/" in pattern)
    return {name: size for name, size in found.items() if matches(name) and (_is_visible(name) or wants_hidden)}


def _folder_and_pattern(source: SourceConfig) -> tuple[str, str | None]:
    """The folder that the names of a source's files are relative to, and the glob or file name that selects them."""
    if source.kind == "python_docs":
        return sysconfig.get_path("stdlib"), None
    uri = _expanded(str(source.uri)).rstrip("/") or "/"
    store = Store(uri)
    if store.fs.isfile(store.path):
        folder, slash, name = uri.rpartition("/")
        return folder or slash or ".", glob.escape(name)
    parts = uri.split("/")
    for index, part in enumerate(parts):
        if glob.has_magic(part) and not Store("/".join(parts[: index + 1])).exists():
            return "/".join(parts[:index]) or ("/" if index else "."), "/".join(parts[index:])
    return uri, None


def _expanded(uri: str) -> str:
    """The URI with `~` as the home directory, unless the working directory has a file of that name."""
    if not uri.startswith("~"):
        return uri
    is_name = os.path.lexists(uri.partition("/")[0])
    return f"./{uri}" if is_name else os.path.expanduser(uri)  # noqa: PTH111 (an unknown user is no error here)


def _is_documentation(module: Path) -> bool:
    return module.as_posix() == TOPICS_FILE or _NOT_DOCUMENTATION.isdisjoint(module.parts)


def _is_visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))


def _plain(name: str) -> str:
    """The name without a suffix of compression, in lower case."""
    return (name.rpartition(".")[0] if codec(name) else name).lower()
