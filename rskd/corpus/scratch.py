"""The tokens of a group between the two passes of a pack, so that a text is tokenized once.

    pass 1: tokens ─► keep ─► <corpus>/scratch/<group>-<sha256> ─► pass 2: take ─► windows; then remove

Scratch lies in the storage, where the second pass finds it on any machine. It holds at most 4 bytes a token (2 where
ids fit; 1 more for a loss mask) and, on a disk, takes at most half of what was free when the pack began. What was not
kept, is gone, or is not what was written is tokenized again: slower, with the same windows.

File, little-endian: D int64, content hashes uint64 [D], lengths int64 [D], ids uint16 or int32 [sum of lengths], and,
of conversations, loss masks uint8 [sum of lengths].
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rskd.errors import OutputError
from rskd.storage import Store

SCRATCH_FOLDER = "scratch"
_SMALL_IDS = 2**16


class TokenizedGroup(NamedTuple):
    """The documents of a group; of conversations, which have `loss_masks`, those without a loss have no tokens."""

    hashes: np.ndarray  # of their contents, uint64 [D]
    ids: list[np.ndarray]  # int32 [L], of each; uint16 from a scratch where they fit
    loss_masks: list[np.ndarray] | None = None  # uint8 [L], of each


@dataclass(frozen=True)
class Scratch:
    """A folder for the tokens of groups, of ids below `vocab_size`; on a disk, `least_free` bytes stay free."""

    uri: str
    vocab_size: int
    has_masks: bool = False  # the groups are of conversations
    least_free: int = 0

    @classmethod
    def of(cls, corpus_uri: str, *, vocab_size: int, has_masks: bool) -> Scratch:
        """The scratch of the corpus at a URI."""
        store = Store(corpus_uri).child(SCRATCH_FOLDER)
        least_free = shutil.disk_usage(_existing(store)).free // 2 if store.is_local else 0
        return cls(store.absolute_uri, vocab_size, has_masks, least_free)

    def keep(self, index: int, group: TokenizedGroup) -> str:
        """Keep the tokens of a group; the name to `take` them by, empty where there is no room."""
        data, store = self._encode(group), Store(self.uri)
        if store.is_local and shutil.disk_usage(_existing(store)).free - len(data) < self.least_free:
            return ""
        name = f"{index:05d}-{hashlib.sha256(data).hexdigest()}"
        try:
            store.write(name, data)
        except OutputError:  # a full or refused disk
            return ""
        return name

    def take(self, name: str) -> TokenizedGroup | None:
        """What was kept under a name; None where it is not to be had."""
        if not name:
            return None
        try:
            data = Store(self.uri).read(name)
        except OutputError:
            return None
        return self._decode(data) if hashlib.sha256(data).hexdigest() == name.partition("-")[2] else None

    def remove(self, name: str) -> None:
        """Remove what was kept under a name, if it is there."""
        if name:
            with suppress(OutputError):
                Store(self.uri).remove(name)

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Within it groups are kept; before and after it nothing is, also of a pack that was killed."""
        self._clear()
        try:
            yield
        finally:
            self._clear()

    def _clear(self) -> None:
        with suppress(OutputError):
            Store(self.uri).remove_all()

    @property
    def _id_type(self) -> type:
        return np.uint16 if self.vocab_size <= _SMALL_IDS else np.int32

    def _encode(self, group: TokenizedGroup) -> bytes:
        lengths = np.array([len(ids) for ids in group.ids], np.int64)
        arrays: Iterable[np.ndarray] = (
            np.array([len(lengths)], np.int64),
            group.hashes,
            lengths,
            *(ids.astype(self._id_type, copy=False) for ids in group.ids),
            *(group.loss_masks or ()),
        )
        return b"".join(array.data for array in arrays)

    def _decode(self, data: bytes) -> TokenizedGroup:
        count = int(np.frombuffer(data, np.int64, 1)[0])
        hashes = np.frombuffer(data, np.uint64, count, offset=8)
        lengths = np.frombuffer(data, np.int64, count, offset=8 + 8 * count)
        begin, ends = 8 + 16 * count, np.cumsum(lengths)[:-1]
        ids = np.frombuffer(data, self._id_type, int(lengths.sum()), offset=begin)
        each = np.split(ids, ends)[:count]
        if not self.has_masks:
            return TokenizedGroup(hashes, each)
        masks = np.frombuffer(data, np.uint8, offset=begin + ids.nbytes)
        return TokenizedGroup(hashes, each, np.split(masks, ends)[:count])


def _existing(store: Store) -> str:
    """The nearest folder above a local one that exists."""
    path = store.path
    while not Store(path).exists():
        path = path.rpartition("/")[0] or "/"
    return path
