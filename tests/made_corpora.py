"""Packed corpora that tests of several layers need, without packing anything."""

import numpy as np

from rskd.corpus.packed_corpus import CorpusManifest, write_manifest, write_part
from rskd.storage import Store


def write_corpus(uri: str, *, windows: int = 3, seq_len: int = 100) -> None:
    """A packed corpus of random ids of the tiny tokenizer."""
    input_ids = np.random.default_rng(0).integers(384, size=(windows, seq_len + 1), dtype=np.int32)
    write_corpus_parts(uri, [input_ids], vocab_size=384, rows_per_group=8)


def write_corpus_parts(uri: str, parts: list[np.ndarray], *, vocab_size: int, rows_per_group: int) -> None:
    """A packed corpus with a part for each of `parts` [R, S+1]; 0 ends a document."""
    first_rows = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
    infos = [
        write_part(Store(uri), index, first_row, part, rows_per_group=rows_per_group)
        for index, (first_row, part) in enumerate(zip(first_rows, parts))
    ]
    head = {
        "format_version": 1,
        "source": {},
        "tokenizer": {"vocab_size": vocab_size, "end_of_text_id": 0},
        "seq_len": parts[0].shape[1] - 1,
        "seed": 0,
        "isolate_documents": False,
        "windows_per_part": len(parts[0]),
        "rows_per_group": rows_per_group,
        "eval_threshold": 0,
    }
    windows, tokens = sum(map(len, parts)), sum(part.size for part in parts)
    group = {"documents": 1, "tokens": tokens, "windows": windows, "dropped_tail_tokens": 0}
    write_manifest(Store(uri), CorpusManifest.of(head, [group], infos))
