"""A cache of a million parts on metadata alone: python tests/bench/bench_parts.py [--parts N] [--out DIR] (a minute).

The manifest is written and opened with its parts in it, as rskd did up to 65,536 parts and before 2026-11-27 for any
number, and in pages, as it does now; then the rows of all row groups, the order of an epoch, and the place of a step in
its middle are computed, as a restart does. A part has 64 rows in 16 row groups: at S = 1024 and 1,024 rows a part as
many groups would be 10^12 tokens. Each stage is a process of its own on one core; the disk holds 0.5 GB meanwhile.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from measure import Row, argument_parser, markdown_table, write_results

from rskd import records
from rskd.cache import parts as pages
from rskd.cache.loader import EpochOrder
from rskd.cache.manifest import PartRecord, fold, manifest_name
from rskd.cache.reader import LogitCache
from rskd.storage import Store

ROWS, GROUP, SEQ_LEN = 64, 4, 8
HEAD: dict[str, Any] = {
    "sampling": {"method": "systematic", "num_samples": 22, "temperature": 1.0, "k": None, "statistics": []},
    "teacher": {},
    "tokenizer": {"vocab_size": 300},
    "corpus": {"seq_len": SEQ_LEN, "rows_per_group": GROUP},
}


class Steps:
    """A row for each step of a process: processor seconds, and the peak of resident memory so far."""

    def __init__(self, kind: str):
        self.kind = kind
        self.rows: list[Row] = []
        self.done("imports", since=0.0)

    def done(self, step: str, since: float | None = None) -> None:
        now = time.process_time()
        peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
        seconds = now - (self._last if since is None else since)
        self.rows.append({"parts": self.kind, "step": step, "processor s": seconds, "peak MiB": peak})
        self._last = time.process_time()


def hex_of(number: int) -> str:
    return sha256(number.to_bytes(8)).hexdigest()


def made(index: int) -> PartRecord:
    hashes = [hex_of(3 * index + offset) for offset in range(3)]
    file, tokens = f"parts/part-{index:05d}-{hashes[0][:12]}.parquet", ROWS * SEQ_LEN
    return PartRecord(index, file, ROWS * index, ROWS, tokens, 11 * tokens, 10**6, *hashes, 1234.5678 + index)


def write(store: Store, steps: Steps, count: int) -> None:
    parts = [made(index) for index in range(count)]
    steps.done("records in memory")
    manifest = fold(HEAD, parts, [], generation=0).in_pages(store)
    store.create(manifest_name(0), records.seal(manifest.to_dict()))
    steps.done("write the manifest")


def read(store: Store, steps: Steps) -> None:
    cache = LogitCache.open(store.uri)
    steps.done("open")
    groups = cache.group_rows
    steps.done("rows of all row groups")
    order = EpochOrder(groups, seed=0, epoch=0)
    steps.done("order of an epoch")
    order.rows(cache.num_rows // 2, cache.num_rows // 2 + 64)
    steps.done("a step in the middle")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--parts", type=int, default=1_000_000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, stage, folder = json.loads(args.one)
        pages.PAGE_PARTS = pages.PAGE_PARTS if kind == "in pages" else sys.maxsize
        steps, store = Steps(kind), Store(folder)
        _ = write(store, steps, args.parts) if stage == "write" else read(store, steps)
        print(json.dumps(steps.rows))
        return
    rows: list[Row] = []
    for kind in ("in the manifest", "in pages"):
        with tempfile.TemporaryDirectory() as folder:
            for stage in ("write", "read"):
                call = [sys.executable, __file__, f"--parts={args.parts}", "--one", json.dumps([kind, stage, folder])]
                rows += json.loads(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            rows.append({"parts": kind, "step": f"files: {size / 1e6:.0f} MB", "processor s": 0.0, "peak MiB": 0.0})
    print(markdown_table(rows))
    write_results(args.out, "parts", f"A cache of {args.parts:,} parts, metadata alone", {"Steps": rows})


if __name__ == "__main__":
    main()
