"""What many parts cost besides the GPUs: files, requests to the store, and the memory and time of the driver.

Counts follow from the formats (rskd/cache/README.md); seconds and bytes of a part are those that
tests/bench/bench_parts.py measured for a million parts (2026-11-27, one core of a Xeon). A request to an object store
is taken to last 20 ms.
"""

from __future__ import annotations

import math
from typing import Any

from rskd.cache.manifest import READERS
from rskd.cache.parts import PAGE_PARTS

REQUEST_S = 0.02
_LISTED = 1000  # names that one LIST gives
_MULTIPART_BYTES = 50 * 2**20  # of one upload request
_MANIFEST_BYTES = {"manifest": 409, "pages": 109}  # a part
_DRIVER_BYTES = {"manifest": 2110, "pages": 960}  # resident while the manifest is written, a part
_DRIVER_S = {"manifest": 20e-6, "pages": 9.5e-6}  # to hold the records of a part, and to write them
_OPEN_S = {"manifest": 7.3e-6, "pages": 0.0}
_ROW_GROUP_POSITIONS = 2**16
_ORDER_S = 0.5e-6  # a row group: its place in the order of an epoch


def at_scale(
    *, parts: int, num_caches: int, cache_bytes: int, epochs: float, seq_len: int, windows_per_part: int
) -> dict[str, Any]:
    """Of `num_caches` caches of so many parts, the largest of `cache_bytes`, and a training run of so many epochs.

    Units are in the names; `requests` are those of the whole caching (`put`) and training run (`get`), of all workers.
    """
    kind = "pages" if parts > PAGE_PARTS else "manifest"
    part_bytes = cache_bytes / max(1, parts)
    uploads = max(1, math.ceil(part_bytes / _MULTIPART_BYTES))
    groups = parts * math.ceil(windows_per_part * seq_len / _ROW_GROUP_POSITIONS)
    lists = math.ceil(2 * parts / _LISTED)
    return {
        "files": 2 * parts * (1 + num_caches),  # of the corpus, too: a data file and its record
        "part_bytes": round(part_bytes),
        "manifest_bytes": parts * _MANIFEST_BYTES[kind],
        "manifest_kind": kind,
        "requests": {
            "cache_put": parts * num_caches * (uploads + 1),
            "cache_get": 2 * parts,
            "train_get": round(epochs * groups) + parts,
        },
        "driver": {"memory_mib": round(250 + parts * _DRIVER_BYTES[kind] / 2**20), "seconds": parts * _DRIVER_S[kind]},
        "restart": {
            "requests": num_caches * (lists + parts),
            "seconds": num_caches * (lists * REQUEST_S + parts * REQUEST_S / READERS),
        },
        "open_seconds": parts * _OPEN_S[kind],
        "order_seconds": groups * _ORDER_S,
    }
