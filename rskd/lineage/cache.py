"""A cache: made from one of samplings, the teacher and the windows of the corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from rskd.cache.layout import most_frequent
from rskd.cache.manifest import (
    HEAD_FILE,
    CacheManifest,
    Head,
    cache_recipe,
    check_no_surplus,
    check_same_head,
    check_same_windows,
    read_head,
)
from rskd.cache.reader import LogitCache
from rskd.config import SamplingConfig
from rskd.corpus.packed_corpus import MANIFEST_FILE, PackedCorpus, Windows
from rskd.errors import CacheMismatchError
from rskd.lineage.corpus import open_corpus, template_digest
from rskd.lineage.inputs import Inputs
from rskd.storage import Store
from rskd.teacher.transformers_teacher import describe_teacher


def cache_head(inputs: Inputs, sampling: str, corpus: PackedCorpus, vllm_version: str | None = None) -> dict[str, Any]:
    """The head of a cache of `corpus` that is begun or gone on with.

    The ids that a compact layout ranks are counted in the first part, which stays as it is when the corpus grows.
    """
    store, manifest = Store(inputs.config.cache_uri(sampling)), corpus.manifest
    begun = read_head(store) if store.exists(HEAD_FILE) else None
    head = _head(inputs, sampling, begun, vllm_version)
    head["corpus"] |= {
        "fingerprint": manifest.fingerprint,
        "rows_per_group": manifest.rows_per_group,
        "parts": len(manifest.parts),
    }
    if inputs.config.cache_samplings[sampling].layout == "compact":
        head["tokenizer"]["most_frequent"] = most_frequent(_learned_ids(corpus.read_part(0)))
    return head


def open_cache(inputs: Inputs, sampling: str) -> LogitCache:
    """The finished cache of a sampling, made as the configuration says and, where the corpus is there, from all of it.

    A cache alone is enough to train from. Raises MissingOutputError; CacheMismatchError, naming what differs.
    """
    cache = LogitCache.open(inputs.config.cache_uri(sampling))
    check_cache(inputs, sampling, cache.manifest.head)
    if Store(inputs.config.corpus_uri("train")).exists(MANIFEST_FILE):
        corpus = open_corpus(inputs, "train")
        check_parts(cache.manifest, corpus, cache.uri)
        if cache.manifest.corpus["fingerprint"] != corpus.manifest.fingerprint:
            raise CacheMismatchError(
                f"cache {cache.uri} was not made from all of {corpus.uri} as it is now: run rskd cache"
            )
    return cache


def check_cache(inputs: Inputs, sampling: str, head: Head) -> None:
    """CacheMismatchError, naming the setting, if a cache with this head has others than the configuration."""
    wanted = _head(inputs, sampling, head)
    wanted["corpus"]["rows_per_group"] = head["corpus"]["rows_per_group"]  # of the corpus, which need not be here
    if "most_frequent" in head["tokenizer"]:
        wanted["tokenizer"]["most_frequent"] = head["tokenizer"]["most_frequent"]
    options = SamplingConfig.model_validate(head["sampling"])  # an older cache lacks those that were the default then
    stored = {**head, "sampling": options.model_dump(mode="json")}
    check_same_head(stored, wanted, inputs.config.cache_uri(sampling))


def check_parts(manifest: CacheManifest, corpus: PackedCorpus, uri: str) -> None:
    """CacheMismatchError if the parts of the cache at `uri` are not those of `corpus`, or of what it was before."""
    parts = corpus.manifest.parts
    check_no_surplus((part.index for part in manifest.parts), parts, uri)
    for cached in manifest.parts:
        check_same_windows(cached, parts[cached.index], uri)


def windows_head(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """What the head of a cache says of its windows, as far as that does not need the corpus."""
    corpus = inputs.corpus_head
    tokenizer, chat = corpus["tokenizer"], corpus.get("chat")
    of_chat = chat and {
        "masked": True,
        "loss_on": chat["loss_on"],
        "chat_template": template_digest(chat),
    }
    return {
        "tokenizer": {key: tokenizer[key] for key in ("fingerprint", "vocab_size")},
        "corpus": {
            **(of_chat or {}),  # heads of texts are what they were before there were masks
            **{key: corpus[key] for key in ("seq_len", "seed", "isolate_documents", "bos")},
            **{key: tokenizer[key] for key in ("bos_ids", "end_of_text_id")},
        },
    }


def _learned_ids(windows: Windows) -> np.ndarray:
    """The ids that have a loss."""
    return windows.input_ids if windows.loss_mask is None else windows.input_ids[windows.loss_mask > 0]


def teacher_head(inputs: Inputs, begun: Head | None = None, vllm_version: str | None = None) -> dict[str, Any]:
    """What it says of the teacher; an older cache that was `begun` has an older fingerprint of the same one."""
    fingerprint = begun["teacher"]["fingerprint"] if begun else None
    if fingerprint not in inputs.teacher_fingerprints:
        fingerprint = inputs.teacher_fingerprints[0]
    return describe_teacher(inputs.config.teacher, fingerprint, vllm_version)


def teacher_recipe(inputs: Inputs) -> dict[str, Any]:
    """What targets depend on of it, but for its weights."""
    recipe = cache_recipe({"teacher": teacher_head(inputs)})["teacher"]
    del recipe["fingerprint"]
    return recipe


def _head(
    inputs: Inputs, sampling: str, begun: Head | None = None, vllm_version: str | None = None
) -> dict[str, dict[str, Any]]:
    return {
        "sampling": inputs.config.cache_samplings[sampling].model_dump(mode="json"),
        "teacher": teacher_head(inputs, begun, vllm_version),
        **windows_head(inputs),
    }
