"""What a packed corpus says of itself before anything is packed, and whether one that is there was packed so."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from rskd.config import DistillConfig, SourceConfig
from rskd.corpus.packed_corpus import FORMAT_VERSION, CorpusManifest, rows_per_group
from rskd.errors import CacheMismatchError, ConfigError
from rskd.models.tokenizer import (
    beginning_of_text,
    end_of_text_id,
    load_tokenizer,
    tokenizer_fingerprint,
    vocab_size_of_model,
)


def corpus_head(config: DistillConfig, teacher_dir: str) -> tuple[dict[str, Any], Tokenizer]:
    """What a manifest says before anything is packed, and the tokenizer, which must be the teacher's.

    `teacher_dir` is `resolve_teacher(config)`. `vocab_size` is the teacher's number of output rows where its tokenizer
    has more ids.
    """
    corpus, teacher = config.corpus, config.teacher
    tokenizer = load_tokenizer(teacher_dir, trust_remote_code=teacher.trust_remote_code)
    fingerprint = tokenizer_fingerprint(tokenizer)
    if corpus.tokenizer and tokenizer_fingerprint(load_tokenizer(corpus.tokenizer)) != fingerprint:
        raise ConfigError(
            f"corpus.tokenizer={corpus.tokenizer} gives other ids than the tokenizer of teacher {teacher.model}: "
            "remove the key, or name the teacher's tokenizer"
        )
    num_ids = vocab_size_of_model(tokenizer, teacher_dir, trust_remote_code=teacher.trust_remote_code)
    bos = beginning_of_text(tokenizer, corpus.bos, num_ids=num_ids, isolated=corpus.isolate_documents)
    head = {
        "format_version": FORMAT_VERSION,
        "source": corpus.source.model_dump(mode="json"),
        "tokenizer": {
            "name": corpus.tokenizer or teacher.model,
            "fingerprint": fingerprint,
            "vocab_size": num_ids,
            "end_of_text_id": end_of_text_id(tokenizer),
            "bos_ids": list(bos.ids),
        },
        "bos": bos.mode,
        "seq_len": corpus.seq_len,
        "seed": corpus.seed,
        "isolate_documents": corpus.isolate_documents,
        "windows_per_part": corpus.windows_per_part,
        "rows_per_group": rows_per_group(corpus.seq_len),
        "max_windows": corpus.max_windows,
    }
    return head, tokenizer.backend_tokenizer


def check_packed_with(head: dict[str, Any], manifest: CorpusManifest, uri: str) -> None:
    """CacheMismatchError, naming the setting, if the corpus at `uri` was packed with others than `corpus_head` says."""
    old, new = _settings(manifest.head), _settings(head)
    for name in old:
        if old[name] != new[name]:
            is_value = name.startswith("corpus.") and old[name] is not None
            undo = f"set {name}={old[name]}" if is_value else "undo the change"
            raise CacheMismatchError(
                f"{uri} was packed with {name}={old[name]}, not {new[name]}: {undo}, choose another name, or "
                f"remove {uri.rpartition('/')[0]}"
            )


def check_made_with(head: dict[str, Any], corpus: dict[str, Any], tokenizer: dict[str, Any], uri: str) -> None:
    """CacheMismatchError, naming the setting, unless the windows and ids at `uri` are those that `corpus_head` says.

    `corpus` and `tokenizer` are of the manifest of a corpus or a cache.
    """
    found_and_wanted = {
        **{f"corpus.{name}": (corpus[name], head[name]) for name in ("seq_len", "seed", "isolate_documents")},
        "corpus.bos": (corpus.get("bos", "none"), head["bos"]),  # older ones have none
        **{f"tokenizer {name}": (tokenizer[name], head["tokenizer"][name]) for name in ("fingerprint", "vocab_size")},
    }
    for name, (found, wanted) in found_and_wanted.items():
        if found != wanted:
            undo = f"set {name}={found}" if name.startswith("corpus.") else "undo the change"
            raise CacheMismatchError(
                f"{uri} was made with {name}={found}, not {wanted}: {undo}, or choose another name"
            )


def _settings(head: dict[str, Any]) -> dict[str, Any]:
    """What the windows depend on, by the name in the config."""
    names = ("seq_len", "seed", "isolate_documents", "windows_per_part", "max_windows")
    return {
        **{f"corpus.source.{name}": value for name, value in SourceConfig.model_validate(head["source"])},
        "tokenizer fingerprint": head["tokenizer"]["fingerprint"],
        "vocab_size": head["tokenizer"]["vocab_size"],  # len(tokenizer) in corpora of before its holes counted
        "corpus.bos": head.get("bos", "none"),
        "bos_ids": head["tokenizer"].get("bos_ids", []),  # absent from corpora of before corpus.bos
        **{f"corpus.{name}": head[name] for name in names},
    }
