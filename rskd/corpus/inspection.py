"""What one split of a packed corpus holds, and how large it is."""

from __future__ import annotations

from typing import Any

from rskd import records
from rskd.corpus.packed_corpus import MANIFEST_FILE, CorpusManifest, PackedCorpus
from rskd.storage import Store


def is_corpus(uri: str) -> bool:
    """Whether the manifest at `uri` is that of a packed corpus; CorruptPartError if it was changed."""
    return "windows_per_part" in (records.read(Store(uri), MANIFEST_FILE) or ())


def inspect_corpus(uri: str) -> dict[str, Any]:
    """What a split holds: counts, and of conversations the shares of positions with a loss and of padding.

    `tokens` are those of the source, `bytes` counts all files under the URI.
    """
    manifest: CorpusManifest = PackedCorpus.open(uri).manifest
    chat = manifest.chat or {}
    return {
        "kind": "chat" if chat else "text",
        **manifest.totals,
        "duplicate_documents": manifest.duplicate_documents,
        **manifest.shares,
        "parts": len(manifest.parts),
        "bytes": sum(Store(uri).sizes(recursive=True).values()),
        "seq_len": manifest.seq_len,
        "vocab_size": manifest.tokenizer["vocab_size"],
        "isolate_documents": manifest.isolate_documents,
        "bos": manifest.bos,
        **{key: chat[key] for key in ("loss_on", "separator") if key in chat},
        "source": manifest.source,
    }
