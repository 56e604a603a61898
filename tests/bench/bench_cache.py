"""Speed and memory of a cache beside pyarrow alone: python tests/bench/bench_cache.py (about a minute).

Made-up samples with the unique tokens a position of 22 systematic rounds, ids by Zipf's law. Everything runs on one
core, threads of pyarrow and the loader too; every round times each contender once, so that a busy machine slows all
alike. Medians are shown.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from measure import Row, argument_parser, markdown_table, write_results

from rskd import records
from rskd.cache.codec import PartData
from rskd.cache.layout import MOST_FREQUENT
from rskd.cache.loader import PREFETCH, CacheLoader, EpochOrder
from rskd.cache.manifest import PartRecord, fold, manifest_name, part_name
from rskd.cache.reader import LogitCache
from rskd.cache.writer import CacheWriter
from rskd.corpus.packed_corpus import rows_per_group
from rskd.storage import Store

VOCAB, SEQ_LEN, ROUNDS, UNIQUE = 49_152, 1024, 22, 11
ROWS_PER_PART, PARTS, BATCH = 256, 8, 8
MANY_PARTS, RESTART = 100_000, 2_000_000  # parts of a large cache, and a step of its first epoch


@dataclass(frozen=True)
class CorpusPart:
    index: int
    first_row: int
    rows: int
    sha256: str = "bench"


def make_head(layout: str = "plain") -> dict[str, Any]:
    """The head of a cache of these samples."""
    sampling = {"method": "systematic", "num_samples": ROUNDS, "temperature": 1.0, "k": None, "p": None, "seed": 0}
    return {
        "sampling": sampling | {"statistics": [], "layout": layout},
        "teacher": {},
        "tokenizer": {"vocab_size": VOCAB, "most_frequent": list(range(MOST_FREQUENT))},
        "corpus": {"seq_len": SEQ_LEN, "rows_per_group": rows_per_group(SEQ_LEN), "parts": PARTS},
    }


def make_part(seed: int = 0) -> PartData:
    """One part: distinct ids by Zipf's law, counts that sum to ROUNDS, most of them 1; as a teacher worker has them."""
    rng = np.random.default_rng(seed)
    positions = ROWS_PER_PART * SEQ_LEN
    share = np.cumsum(1 / np.arange(10, VOCAB + 10))
    ids = np.sort(np.searchsorted(share, rng.random((positions, 2 * UNIQUE)) * share[-1]), axis=1)
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = 0
    values = np.where(ids > 0, 1, 0)
    values[np.cumsum(values, axis=1) > UNIQUE] = 0
    values[:, 0] += ROUNDS - values.sum(1)
    shape = (ROWS_PER_PART, SEQ_LEN, -1)
    windows = rng.integers(0, VOCAB, (ROWS_PER_PART, SEQ_LEN + 1), dtype=np.int32)
    ids = np.where(values > 0, ids, 0).astype(np.int32)
    return PartData(np.arange(ROWS_PER_PART), windows, ids.reshape(shape), values.reshape(shape), {})


def write_cache(uri: str, part: PartData, layout: str) -> LogitCache:
    writer = CacheWriter(uri, manifest_head=make_head(layout))
    corpus = [CorpusPart(index, index * ROWS_PER_PART, ROWS_PER_PART) for index in range(PARTS)]
    for one in corpus:
        data = replace(part, row_ids=np.arange(one.first_row, one.first_row + one.rows))
        writer.commit_part(one.index, data, corpus_sha256=one.sha256)
    writer.finish(corpus)
    return LogitCache.open(uri)


def write_many(uri: str, part: PartData) -> None:
    """The manifest of a cache of MANY_PARTS parts, and those parts alone that the loader needs at step RESTART."""
    hashes = [sha256(str(index).encode()).hexdigest() for index in range(MANY_PARTS)]
    size = ROWS_PER_PART * SEQ_LEN
    parts = [
        PartRecord(
            index=index,
            file=f"parts/{part_name(index)}-{digest[:12]}.parquet",
            first_row=index * ROWS_PER_PART,
            rows=ROWS_PER_PART,
            tokens=size,
            samples=size * UNIQUE,
            bytes=size * 20,
            sha256=digest,
            corpus_sha256=digest[::-1],
            record_sha256=digest[1:] + digest[:1],
        )
        for index, digest in enumerate(hashes)
    ]
    cache = LogitCache(Store(uri), fold(make_head(), parts, [], generation=0))
    order = EpochOrder(cache.group_rows, seed=0, epoch=0)
    groups, _ = order.rows(RESTART * BATCH, (RESTART + PREFETCH + 1) * BATCH)
    writer = CacheWriter(uri, manifest_head=make_head())
    for index in np.unique(cache.group_rows[groups, 0] // ROWS_PER_PART).tolist():
        row_ids = np.arange(index * ROWS_PER_PART, (index + 1) * ROWS_PER_PART)
        parts[index] = writer.commit_part(index, replace(part, row_ids=row_ids), corpus_sha256="bench")
    manifest = fold(make_head(), parts, [], generation=0)
    records.write(Store(uri), manifest_name(0), manifest.to_dict())


def read_with_pyarrow(cache: LogitCache) -> int:
    """All columns of all parts, as Arrow tables; the number of positions."""
    for part in cache.manifest.parts:
        pq.read_table(f"{cache.uri}/{part.file}", use_threads=False)
    return cache.num_tokens


def read_with_loader(cache: LogitCache) -> int:
    """One epoch of checked, shuffled, padded batches."""
    loader = CacheLoader(LogitCache.open(cache.uri), global_batch=BATCH)
    batches = itertools.islice(loader, loader.steps_per_epoch)
    return sum(batch.labels.numel() for batch in batches)


def measure(cache: LogitCache, writer: CacheWriter, part: PartData, rounds: int) -> dict[str, float]:
    """Seconds for each position of writing, of reading with pyarrow, and of reading with the loader."""
    indices = itertools.count()
    seconds = medians(
        {
            "encode, hash, write, commit": lambda: writer.commit_part(next(indices), part, corpus_sha256="bench"),
            "pyarrow reads": lambda: read_with_pyarrow(cache),
            "loader reads": lambda: read_with_loader(cache),
        },
        rounds,
    )
    return {
        name: each / (cache.num_tokens if "reads" in name else ROWS_PER_PART * SEQ_LEN)
        for name, each in seconds.items()
    }


def medians(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the median of paired rounds after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def open_many(uri: str) -> None:
    """In a process of its own: seconds and peak memory in MB when it is open, and when the first batch is there."""
    started = time.perf_counter()
    cache = LogitCache.open(uri)
    print(time.perf_counter() - started, peak_memory())
    batch = next(iter(CacheLoader(cache, global_batch=BATCH, start_step=RESTART)))
    print(time.perf_counter() - started, peak_memory())
    assert batch.step == RESTART


def peak_memory() -> float:
    """MB of this process, imports included (Linux; getrusage would count what its parent held when it forked)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--open-many", metavar="URI", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open_many:
        open_many(args.open_many)
        return

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    part = make_part()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("plain", "compact"):
            cache = write_cache(f"{folder}/{layout}", part, layout)
            writer = CacheWriter(f"{folder}/again-{layout}", manifest_head=make_head(layout))
            measured = measure(cache, writer, part, args.rounds)
            for name, each in measured.items():
                relative = each / measured["pyarrow reads"] if "reads" in name else ""
                rows.append(
                    {"layout": layout, "what": name, "M positions/s": 1e-6 / each, "time / pyarrow's": relative}
                )
        unique = cache.manifest.totals["samples"] / cache.num_tokens
        write_many(f"{folder}/many", part)
        call = [sys.executable, __file__, "--open-many", f"{folder}/many"]
        opening = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    many: list[Row] = [
        {"what": what, "after, s": seconds, "peak MB": peak}
        for what, line in zip(("open", f"first batch of step {RESTART:,}"), opening.splitlines())
        for seconds, peak in [map(float, line.split())]
    ]
    tables = {
        f"{unique:.1f} unique tokens at a position, S={SEQ_LEN}, one core": rows,
        f"A cache of {MANY_PARTS:,} parts": many,
    }
    for heading, table in tables.items():
        print(f"\n{heading}\n\n{markdown_table(table)}")
    write_results(args.out, "cache", "The cache: writing, reading, opening", tables)


if __name__ == "__main__":
    main()
