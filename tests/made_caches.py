"""Small caches of made-up samples, for tests of any layer: 5 parts of 12 windows in row groups of 4."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from rskd.cache.codec import PartData
from rskd.cache.writer import CacheWriter

VOCAB, SEQ_LEN, ROUNDS = 300, 8, 22
PARTS, ROWS, GROUP = 5, 12, 4


@dataclass(frozen=True)
class CorpusPart:
    index: int
    first_row: int
    rows: int
    sha256: str


def make_head(**changes: Any) -> dict[str, Any]:
    """A manifest head; `changes` are section__key=value."""
    head = {
        "sampling": {
            "method": "systematic",
            "num_samples": ROUNDS,
            "temperature": 1.0,
            "k": None,
            "p": None,
            "seed": 0,
            "statistics": ["label_logprob"],
            "layout": "plain",
        },
        "teacher": {
            "model": "tiny",
            "revision": None,
            "fingerprint": "f" * 64,
            "dtype": "float32",
            "engine": "transformers",
            "engine_version": "5",
        },
        "tokenizer": {"fingerprint": "t" * 64, "vocab_size": VOCAB},
        "corpus": {
            "fingerprint": "c" * 64,
            "seq_len": SEQ_LEN,
            "seed": 0,
            "isolate_documents": False,
            "end_of_text_id": 0,
            "rows_per_group": GROUP,
            "parts": PARTS,
        },
    }
    for name, value in changes.items():
        section, key = name.split("__")
        head[section][key] = value
    return head


def make_corpus(parts: int = PARTS, rows: int = ROWS) -> list[CorpusPart]:
    """Parts of a corpus, the last one a window short."""
    sizes = [rows] * (parts - 1) + [rows - 1]
    return [
        CorpusPart(index, index * rows, size, sha256(str(index).encode()).hexdigest())
        for index, size in enumerate(sizes)
    ]


def make_part(part: CorpusPart, *, seed: int = 0, vocab: int = VOCAB, rounds: int = ROUNDS) -> PartData:
    """Counts that sum to `rounds` over distinct ids at each position."""
    rng = np.random.default_rng([seed, part.index])
    positions, most = part.rows * SEQ_LEN, min(12, rounds)
    ids = rng.permuted(np.tile(np.arange(vocab, dtype=np.int32), (positions, 1)), axis=1)[:, :most]
    counts = rng.multinomial(rounds, rng.dirichlet(np.full(most, 0.3), positions))
    return PartData(
        row_ids=np.arange(part.first_row, part.first_row + part.rows),
        input_ids=rng.integers(0, vocab, (part.rows, SEQ_LEN + 1), dtype=np.int32),
        ids=np.where(counts > 0, ids, 0).reshape(part.rows, SEQ_LEN, most),
        values=counts.reshape(part.rows, SEQ_LEN, most),
        statistics={"label_logprob": -rng.exponential(2, (part.rows, SEQ_LEN)).astype(np.float32)},
    )


def write_cache(uri: str, *, head: dict[str, Any] | None = None, seed: int = 0) -> list[PartData]:
    """A finished cache at `uri`, and what went into it."""
    corpus = make_corpus()
    writer = CacheWriter(uri, manifest_head=head or make_head())
    data = [make_part(part, seed=seed) for part in corpus]
    for part, one in zip(corpus, data):
        writer.commit_part(part.index, one, corpus_sha256=part.sha256)
    writer.finish(corpus)
    return data
