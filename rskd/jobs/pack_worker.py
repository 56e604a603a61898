"""What the tasks of a pack do with one group of documents: count them (pass 1), write their windows (pass 2).

pass 1: group ─► read ─► tokenize ─┬─► hashes and lengths
                                   └─► scratch
pass 2: scratch ─► shuffle ─► split ─► join ─► cut ─► parts, and the tail that fills no window

A group that is not in the scratch is read and tokenized again.
Conversations are rendered and masked in place of tokenized, and fitted into windows whole in place of joined and cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from rskd.config import SourceConfig
from rskd.corpus.chat_packing import MaskedTokens, assign, count, fill
from rskd.corpus.conversations import ConversationError
from rskd.corpus.hold_out import HoldOut, content_hash, split_masks
from rskd.corpus.packed_corpus import PartInfo, write_part
from rskd.corpus.packing import cut_windows, shuffled, tail_of, tokenize
from rskd.corpus.scratch import Scratch, TokenizedGroup
from rskd.corpus.sources import Group, read_conversations, read_documents
from rskd.corpus.vocabulary import check_ids
from rskd.errors import ConfigError, printable
from rskd.storage import Store

if TYPE_CHECKING:  # Transformers, which texts need not
    from rskd.corpus.chat_tokens import ChatRecipe


@dataclass(frozen=True)
class Recipe:
    """What every task has to know; `uris` has the folder of each split, absolute as a worker must call it."""

    source: SourceConfig
    tokenizer: Tokenizer
    vocab_size: int
    end_of_text_id: int
    bos: str
    bos_ids: list[int]
    seq_len: int
    seed: int
    windows_per_part: int
    rows_per_group: int
    uris: dict[str, str]
    scratch: Scratch
    chat: ChatRecipe | None = None


def task_of(index: int, group: Group) -> dict[str, Any]:
    """A row for a task on a group. Its files are JSON: Arrow, by which Ray sends rows, refuses names of other bytes."""
    return {"group": index, "files": json.dumps(group.to_dict())}


def _group(row: dict[str, Any]) -> Group:
    return Group.from_dict(json.loads(row["files"]))


def count_group(recipe: Recipe, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row: content hash and number of tokens of each document of a group, and the name of its tokens in scratch."""
    tokens = _tokenized(recipe, _group(row))
    num_tokens = np.array([len(ids) for ids in tokens.ids], np.int64)
    kept = recipe.scratch.keep(row["group"], tokens)
    yield {"group": row["group"], "hashes": tokens.hashes.tobytes(), "num_tokens": num_tokens.tobytes(), "kept": kept}


def write_group(recipe: Recipe, hold_out: HoldOut, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each split: its parts, as JSON, its tail, and, of conversations, what its windows hold."""
    group = _group(row)
    tokens = recipe.scratch.take(row["kept"]) or _tokenized(recipe, group)
    windows_of = _windows_of_texts if recipe.chat is None else _windows_of_conversations
    order = shuffled(len(tokens.hashes), seed=recipe.seed, group=row["group"])
    for split, mask in split_masks(tokens.hashes, hold_out).items():
        place = row[split]
        windows = windows_of(recipe, tokens, [index for index in order if mask[index]], place)
        if len(windows.input_ids) != place["windows"]:
            names = ", ".join(printable(file.name) for file in group.files[:3])
            raise ConfigError(f"the corpus source changed while it was packed ({names}): run rskd pack again")
        parts = json.dumps([asdict(part) for part in _write_parts(recipe, split, place, windows)])
        yield {
            "group": row["group"],
            "split": split,
            "parts": parts,
            "tail": windows.tail.tobytes(),
            "counts": json.dumps(windows.counts),
        }
    recipe.scratch.remove(row["kept"])


@dataclass(frozen=True)
class _Windows:
    """The windows of a split of a group, the tail that fills none, and what is counted in them."""

    input_ids: np.ndarray
    loss_mask: np.ndarray | None = None
    tail: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    counts: dict[str, int] = field(default_factory=dict)


def _windows_of_texts(recipe: Recipe, tokens: TokenizedGroup, chosen: list[int], place: dict[str, Any]) -> _Windows:
    """The windows of the documents `chosen`, in their order, that belong at a place."""
    first_id = recipe.bos_ids[0] if recipe.bos == "window" else None
    kept = [np.frombuffer(place["carried"], np.int32), *(tokens.ids[index] for index in chosen)]
    windows = cut_windows(kept, recipe.seq_len, first_id=first_id)[: place["windows"]]
    return _Windows(windows, tail=tail_of(kept, len(windows), recipe.seq_len))


def _windows_of_conversations(
    recipe: Recipe, tokens: TokenizedGroup, chosen: list[int], place: dict[str, Any]
) -> _Windows:
    """The same of conversations."""
    assert tokens.loss_masks is not None
    kept = [MaskedTokens(tokens.ids[index], tokens.loss_masks[index]) for index in chosen]
    lengths = [len(conversation.ids) for conversation in kept]
    windows = assign(lengths, recipe.seq_len)[: place["windows"]]
    input_ids, loss_mask = fill(windows, kept, recipe.seq_len, recipe.end_of_text_id)
    return _Windows(input_ids, loss_mask, counts=count(windows, loss_mask, lengths)._asdict())


def _write_parts(recipe: Recipe, split: str, place: dict[str, Any], windows: _Windows) -> Iterator[PartInfo]:
    store, masks = Store(recipe.uris[split]), windows.loss_mask
    for number, start in enumerate(range(0, len(windows.input_ids), recipe.windows_per_part)):
        rows = slice(start, start + recipe.windows_per_part)
        yield write_part(
            store,
            place["first_part"] + number,
            place["first_row"] + start,
            windows.input_ids[rows],
            rows_per_group=recipe.rows_per_group,
            loss_mask=None if masks is None else masks[rows],
        )


def _tokenized(recipe: Recipe, group: Group) -> TokenizedGroup:
    """The tokens of a group, from its source."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    tokens = _of_texts(recipe, group) if recipe.chat is None else _of_conversations(recipe, recipe.chat, group)
    check_ids(tokens.ids, recipe.tokenizer, recipe.vocab_size)
    return tokens


def _of_texts(recipe: Recipe, group: Group) -> TokenizedGroup:
    hashes: list[int] = []

    def hashed_texts() -> Iterator[str]:
        for text in read_documents(recipe.source, group):
            hashes.append(content_hash(text))
            yield text

    ids = list(tokenize(recipe.tokenizer, hashed_texts(), recipe.end_of_text_id, recipe.bos_ids))
    return TokenizedGroup(np.array(hashes, np.uint64), ids)


def _of_conversations(recipe: Recipe, chat: ChatRecipe, group: Group) -> TokenizedGroup:
    hashes: list[int] = []
    conversations: list[MaskedTokens] = []
    for conversation, refuse in read_conversations(recipe.source, group):
        try:
            masked = chat.encode(conversation)
        except ConversationError as problem:
            raise refuse(problem) from None
        hashes.append(conversation.content_hash)
        conversations.append(masked if masked.loss_mask.any() else MaskedTokens(masked.ids[:0], masked.loss_mask[:0]))
    ids, loss_masks = ([masked[field] for masked in conversations] for field in range(2))
    return TokenizedGroup(np.array(hashes, np.uint64), ids, loss_masks)
