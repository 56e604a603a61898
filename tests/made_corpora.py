"""Packed corpora that tests of several layers need, without packing anything."""

import numpy as np

from rskd.corpus.packed_corpus import CorpusManifest, write_manifest, write_part
from rskd.storage import Store


def write_corpus(uri: str, *, windows: int = 3, seq_len: int = 100) -> None:
    """A packed corpus of random ids of the tiny tokenizer."""
    input_ids = np.random.default_rng(0).integers(384, size=(windows, seq_len + 1), dtype=np.int32)
    part = write_part(Store(uri), 0, 0, input_ids, rows_per_group=8)
    head = {
        "format_version": 1,
        "source": {},
        "tokenizer": {"vocab_size": 384, "end_of_text_id": 0},
        "seq_len": seq_len,
        "seed": 0,
        "isolate_documents": False,
        "windows_per_part": 8,
        "rows_per_group": 8,
        "eval_threshold": 0,
    }
    group = {"documents": 1, "tokens": input_ids.size, "windows": windows, "dropped_tail_tokens": 0}
    write_manifest(Store(uri), CorpusManifest.of(head, [group], [part]))
