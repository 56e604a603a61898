"""Table 13: a teacher reads the documents of its students in another order than they do."""

from __future__ import annotations

from rskd.cache.manifest import newest_manifest
from rskd.cache.misaligned import misaligned_copy, reordered_corpus
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import read_manifest
from rskd.jobs.cache import cache_logits
from rskd.reproduction.methods import MISALIGNED, OURS
from rskd.storage import Store


def cache_other_contexts(config: DistillConfig) -> None:
    """Make the cache MISALIGNED: the windows of OURS, with targets of a second teacher pass, over other contexts.

    Students of both see the same windows in the same order, so they can be compared seed by seed.
    """
    if newest_manifest(Store(config.cache_uri(MISALIGNED))) is not None:
        return
    settings = config.model_dump(mode="json", exclude_unset=True)
    reordered = validate_config(settings | {"name": "other_contexts", "samplings": {OURS: settings["samplings"][OURS]}})
    corpus, other = (each.corpus_uri("train") for each in (config, reordered))
    if read_manifest(Store(other)) is None:
        reordered_corpus(corpus, other)
    cache_logits(reordered)
    misaligned_copy(reordered.cache_uri(OURS), config.cache_uri(MISALIGNED), corpus=corpus)
