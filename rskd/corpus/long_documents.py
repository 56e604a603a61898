"""Token ids of a document that is too long to be tokenized at once, which takes up to 200 bytes a character.

    text ─► seams, PIECE characters apart or more ─► each piece, encoded after a context ─► the ids after it, joined

         ├──────────── a piece ────────────┤ seam
                               ├─ context ─┤─────────── the next piece ───────────┤ seam

The ids are those of the whole text. A seam is a place between two tokens where nothing of one side decides about the
other, for one of two reasons:
  - the pre-tokenizer splits there (a model sees one split at a time), as it does at most words; or
  - no token of a BPE vocabulary has in it the two characters that meet there, so no merge ever crosses. Tokenizers that
    do not split (those of Llama 2, Gemma) have this at spaces and newlines.
What normalizers, pre-tokenizers and added tokens do there is tried out, not derived. A window of text around each seam
is encoded, and its ids before the seam must be
  - those of the same text that ends at the seam, so that what follows does not matter;
  - the last ids of the piece before it, so that the window is in step with all that precedes (groups of three digits
    depend on where the digits begin);
  - the first ids of the piece after it, whose context begins where the window does.
Where no seam is found, or one of these fails, the piece grows: the ids stay right, and memory grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

PIECE = 1 << 18  # characters encoded at once, about
_CONTEXT = 256  # characters that decide what a tokenizer does at a place; a window has 3 before its end, and 1 after it
_FEWEST_DISTINCT = 8  # ids that agree; those of runs, and other repetitions, would agree out of step as well


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without the special tokens that a template adds."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


@dataclass(frozen=True, slots=True)
class _Seam:
    """A place to cut a text: before character `cut`; `ids` are those of the context, text[start:cut]."""

    start: int
    cut: int
    ids: Sequence[int]

    @property
    def last_ids(self) -> Sequence[int]:
        """The ids of the context without those near its own beginning, which may be out of step."""
        return self.ids[len(self.ids) // 2 :]


class LongDocuments:
    """A tokenizer of texts of any length; it must add no special tokens, truncate nothing and pad nothing."""

    def __init__(self, tokenizer: Tokenizer, piece: int = PIECE):
        self.tokenizer, self.piece, model = tokenizer, piece, tokenizer.model
        self._merges = isinstance(model, BPE) and not model.continuing_subword_prefix
        self._within_tokens: dict[str, bool] = {}  # for each pair of characters

    def encode(self, text: str) -> np.ndarray:
        """The ids of the whole text, int32."""
        seam, size, ids = _Seam(0, 0, ()), self.piece, []
        while True:
            following = self._seam(text, seam.cut + size)
            end = following.cut if following else len(text)
            piece = encode(self.tokenizer, text[seam.start : end])
            if piece[: len(seam.ids)] != [*seam.ids]:  # what decides lies further on than a window reaches
                return np.array(encode(self.tokenizer, text), np.int32)
            if following and piece[-len(following.last_ids) :] != following.last_ids:
                size *= 2
                continue
            ids.append(np.array(piece[len(seam.ids) :], np.int32))
            if not following:
                return np.concatenate(ids)
            seam, size = following, self.piece

    def _seam(self, text: str, at: int) -> _Seam | None:
        """The first seam that a window finds, from the one about character `at` on."""
        for end in range(at, len(text) - _CONTEXT, self.piece // 4):
            start = max(end - 3 * _CONTEXT, 0)
            window = self.tokenizer.encode(text[start : end + _CONTEXT], add_special_tokens=False)
            ids, offsets = window.ids, window.offsets
            for index in self._boundaries(window, 2 * _CONTEXT, end - start):
                seam = _Seam(start, start + offsets[index - 1][1], ids[:index])
                is_in_step = len({*seam.last_ids}) >= _FEWEST_DISTINCT
                if is_in_step and encode(self.tokenizer, text[start : seam.cut]) == seam.ids:
                    return seam
        return None

    def _boundaries(self, window: Encoding, first: int, last: int) -> Iterator[int]:
        """The tokens that begin between the characters `first` and `last` and that nothing ties to those before."""
        ids, offsets, words = window.ids, window.offsets, window.word_ids
        between = [i for i in range(1, len(ids)) if first <= offsets[i - 1][1] <= offsets[i][0] <= last]
        yield from (i for i in between if words[i - 1] != words[i])
        if self._merges:
            yield from (i for i in between if words[i - 1] == words[i] and self._never_merged(ids[i - 1], ids[i]))

    def _never_merged(self, left: int, right: int) -> bool:
        """Whether no token has the last character of `left` and the first of `right` side by side within it."""
        before, after = (self.tokenizer.id_to_token(index) or "" for index in (left, right))
        pair = before[-1:] + after[:1]
        if pair not in self._within_tokens:
            self._within_tokens[pair] = pair in self._vocabulary
        return not self._within_tokens[pair]

    @cached_property
    def _vocabulary(self) -> str:
        return "\0".join(self.tokenizer.get_vocab(with_added_tokens=False))
