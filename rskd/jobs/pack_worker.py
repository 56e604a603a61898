"""What the tasks of a pack do with one group of documents: count them (pass 1), write their windows (pass 2).

group ─► read ─► tokenize ─┬─► hashes and lengths
                           └─► shuffle ─► split ─► join ─► cut ─► parts, and the tail that fills no window
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rskd.config import SourceConfig
from rskd.corpus.hold_out import HoldOut, content_hash, split_masks
from rskd.corpus.packed_corpus import PartInfo, write_part
from rskd.corpus.packing import cut_windows, shuffled, tail_of, tokenize
from rskd.corpus.sources import Group, read_documents
from rskd.corpus.vocabulary import check_ids
from rskd.errors import ConfigError, printable
from rskd.storage import Store


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


def task_of(index: int, group: Group) -> dict[str, Any]:
    """A row for a task on a group. Its files are JSON: Arrow, by which Ray sends rows, refuses names of other bytes."""
    return {"group": index, "files": json.dumps(group.to_dict())}


def _group(row: dict[str, Any]) -> Group:
    return Group.from_dict(json.loads(row["files"]))


def count_group(recipe: Recipe, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row: the content hash and the number of tokens of each document of a group."""
    hashes, documents = _tokenized(recipe, _group(row))
    num_tokens = np.array([len(document) for document in documents], np.int64)
    yield {"group": row["group"], "hashes": hashes.tobytes(), "num_tokens": num_tokens.tobytes()}


def write_group(recipe: Recipe, hold_out: HoldOut, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each split: its parts, as JSON, and its tail."""
    group = _group(row)
    hashes, documents = _tokenized(recipe, group)
    order = shuffled(len(documents), seed=recipe.seed, group=row["group"])
    first_id = recipe.bos_ids[0] if recipe.bos == "window" else None
    for split, mask in split_masks(hashes, hold_out).items():
        place = row[split]
        kept = [np.frombuffer(place["carried"], np.int32), *(documents[index] for index in order if mask[index])]
        windows = cut_windows(kept, recipe.seq_len, first_id=first_id)[: place["windows"]]
        if len(windows) != place["windows"]:
            names = ", ".join(printable(file.name) for file in group.files[:3])
            raise ConfigError(f"the corpus source changed while it was packed ({names}): run rskd pack again")
        parts = json.dumps([asdict(part) for part in _write_parts(recipe, split, place, windows)])
        tail = tail_of(kept, len(windows), recipe.seq_len).tobytes()
        yield {"group": row["group"], "split": split, "parts": parts, "tail": tail}


def _write_parts(recipe: Recipe, split: str, place: dict[str, Any], windows: np.ndarray) -> Iterator[PartInfo]:
    store = Store(recipe.uris[split])
    for number, start in enumerate(range(0, len(windows), recipe.windows_per_part)):
        chunk = windows[start : start + recipe.windows_per_part]
        index, first_row = place["first_part"] + number, place["first_row"] + start
        yield write_part(store, index, first_row, chunk, rows_per_group=recipe.rows_per_group)


def _tokenized(recipe: Recipe, group: Group) -> tuple[np.ndarray, list[np.ndarray]]:
    """Content hashes, uint64, and token ids of the documents of a group."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    hashes: list[int] = []

    def hashed_texts() -> Iterator[str]:
        for text in read_documents(recipe.source, group):
            hashes.append(content_hash(text))
            yield text

    documents = list(tokenize(recipe.tokenizer, hashed_texts(), recipe.end_of_text_id, recipe.bos_ids))
    check_ids(documents, recipe.tokenizer, recipe.vocab_size)
    return np.array(hashes, np.uint64), documents
