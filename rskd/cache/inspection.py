"""What a cache holds, how large it is, and how far an unfinished one has come."""

from __future__ import annotations

from typing import Any

from rskd.cache.manifest import expected_parts, manifest_name, newest_manifest, read_manifest
from rskd.cache.reader import committed_so_far
from rskd.storage import Store


def inspect(uri: str) -> dict[str, Any]:
    """What a cache holds and how large it is; of an unfinished one, how far it has come.

    `bytes` counts all files under the URI; ratios are None while there is no token. A masked cache also has `loss_on`,
    the digest of the `chat_template`, `loss_tokens`, the positions that have a loss, and the two ratios to them.
    `teacher_lm_loss` is the teacher's mean loss on the labels (that have a loss), nats/token; None for a part made
    before it was measured. `histograms` (see `rskd.cache.histogram`) has num_unique and the statistics that are in the
    cache. Raises MissingOutputError if there is no cache, CorruptPartError for a changed manifest or record.
    """
    store = Store(uri)
    newest = newest_manifest(store)
    manifest = newest or committed_so_far(store)
    totals = manifest.totals
    size, loss_tokens = sum(store.sizes(recursive=True).values()), manifest.loss_tokens
    of_masked = {
        "masked": True,
        "loss_on": manifest.corpus.get("loss_on"),
        "chat_template": manifest.corpus.get("chat_template"),
        "loss_tokens": loss_tokens,
        "bytes_per_loss_token": size / loss_tokens if loss_tokens else None,
        "unique_per_loss_token": totals["samples"] / loss_tokens if loss_tokens else None,
    }
    return {
        "complete": newest is not None,
        "generation": manifest.generation if newest else None,
        "digest": manifest.digest if newest else None,
        "tokens": totals["tokens"],
        "rows": totals["rows"],
        "parts": len(manifest.parts),
        "parts_expected": expected_parts(manifest.head, (part.index for part in manifest.parts)),
        "bytes": size,
        "bytes_per_token": size / totals["tokens"] if totals["tokens"] else None,
        "unique_per_token": totals["samples"] / totals["tokens"] if totals["tokens"] else None,
        **(of_masked if manifest.masked else {}),
        "teacher_lm_loss": manifest.teacher_lm_loss,
        "seq_len": manifest.corpus["seq_len"],
        "bos": manifest.corpus.get("bos", "none"),
        "vocab_size": manifest.tokenizer["vocab_size"],
        "sampling": manifest.sampling,
        "teacher": manifest.teacher,
        "histograms": manifest.histograms,
    }


def growth(uri: str, newest: int) -> list[dict[str, Any]]:
    """Each generation of a cache up to the `newest`: its tokens, parts, bytes of the parts, and when it was `written`.

    Raises CorruptPartError for a changed manifest.
    """
    store = Store(uri)
    found = []
    for generation in range(newest + 1):
        manifest = read_manifest(store, generation)
        found.append(
            {
                "generation": generation,
                "tokens": manifest.totals["tokens"],
                "parts": len(manifest.parts),
                "bytes": manifest.totals["bytes"],
                "written": store.modified(manifest_name(generation)),
            }
        )
    return found
