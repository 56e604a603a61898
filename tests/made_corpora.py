"""Packed corpora that tests of several layers need, without packing anything."""

from typing import Any

import numpy as np

from rskd.config import DistillConfig
from rskd.corpus.packed_corpus import CorpusManifest, write_manifest, write_part
from rskd.lineage.inputs import Inputs
from rskd.storage import Store


def write_corpus(config: DistillConfig, *, windows: int = 3) -> None:
    """Random ids of the tiny tokenizer, as if the train split of `config` had been packed from them."""
    input_ids = np.random.default_rng(0).integers(384, size=(windows, config.corpus.seq_len + 1), dtype=np.int32)
    _write(config.corpus_uri("train"), [input_ids], Inputs(config).corpus_head)


def write_corpus_parts(uri: str, parts: list[np.ndarray], *, vocab_size: int, rows_per_group: int) -> None:
    """A packed corpus with a part for each of `parts` [R, S+1]; 0 ends a document."""
    head = {
        "format_version": 1,
        "source": {"kind": "python_docs"},
        "tokenizer": {"vocab_size": vocab_size, "end_of_text_id": 0},
        "seq_len": parts[0].shape[1] - 1,
        "seed": 0,
        "isolate_documents": False,
        "windows_per_part": len(parts[0]),
        "rows_per_group": rows_per_group,
    }
    _write(uri, parts, head)


def _write(uri: str, parts: list[np.ndarray], head: dict[str, Any]) -> None:
    first_rows = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
    infos = [
        write_part(Store(uri), index, first_row, part, rows_per_group=head["rows_per_group"])
        for index, (first_row, part) in enumerate(zip(first_rows, parts))
    ]
    windows, tokens = sum(map(len, parts)), sum(part.size for part in parts)
    group = {"documents": 1, "tokens": tokens, "windows": windows, "dropped_tail_tokens": 0}
    write_manifest(Store(uri), CorpusManifest.of(head | {"eval_threshold": 0}, [group], infos))
