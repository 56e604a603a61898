"""The packed corpus: made from the settings of section corpus and the teacher's tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from rskd.config import SourceConfig
from rskd.corpus.packed_corpus import CorpusManifest, PackedCorpus, read_manifest
from rskd.difference import first_difference
from rskd.errors import CacheMismatchError
from rskd.lineage.inputs import Inputs
from rskd.storage import Store

SPLITS: tuple[Literal["train"], Literal["eval"]] = ("train", "eval")
_DIGEST = "sha256:"
_SETTINGS = ("seq_len", "seed", "isolate_documents", "windows_per_part", "max_windows")


def open_corpus(inputs: Inputs, split: Literal["train", "eval"]) -> PackedCorpus:
    """One split, which was packed as the configuration says.

    Raises MissingOutputError; CacheMismatchError, which names the setting.
    """
    corpus = PackedCorpus.open(inputs.config.corpus_uri(split))
    check_corpus(inputs, corpus.manifest, corpus.uri)
    return corpus


def packed_so_far(inputs: Inputs) -> dict[str, CorpusManifest] | None:
    """The manifests of both splits, with the groups that both have; None if a first pack did not come to its end.

    Raises CacheMismatchError, naming the setting, if they were packed with others than the configuration's.
    """
    config = inputs.config
    found = {
        split: manifest for split in SPLITS if (manifest := read_manifest(Store(config.corpus_uri(split)))) is not None
    }
    if len(found) < len(SPLITS):
        return None
    for split in SPLITS:
        check_corpus(inputs, found[split], config.corpus_uri(split))
    held_out, wanted = found["eval"].totals["windows"], config.corpus.eval_windows
    if held_out < wanted:
        raise CacheMismatchError(
            f"{config.corpus_uri('eval')} has {held_out} windows, fewer than corpus.eval_windows={wanted}: "
            f"lower it, choose another name, or remove {config.home}/corpus"
        )
    num_groups = min(len(manifest.groups) for manifest in found.values())
    return {split: manifest.up_to(num_groups) for split, manifest in found.items()}


def check_corpus(inputs: Inputs, manifest: CorpusManifest, uri: str) -> None:
    """CacheMismatchError, naming the setting, if the corpus at `uri` has others than the configuration."""
    made, wanted = map(corpus_recipe, (manifest.head, inputs.corpus_head))
    changed = first_difference(*({**one, "corpus": {"kind": "text", **one["corpus"]}} for one in (made, wanted)))
    if changed is not None:
        is_value = changed.key.startswith("corpus.") and not str(changed.made).startswith(("None", _DIGEST))
        undo = f"set {changed.key}={changed.made}" if is_value else "undo the change"
        raise CacheMismatchError(
            f"{uri} was packed with {changed}: {undo}, choose another name, or remove {uri.rpartition('/')[0]}"
        )


def template_digest(chat: Mapping[str, Any]) -> str:
    """What recipes have of a chat template, and of the special tokens that it writes by their names."""
    deciding = chat["template"] + (json.dumps(chat["named"], sort_keys=True) if chat["named"] else "")
    return f"{_DIGEST}{hashlib.sha256(deciding.encode()).hexdigest()[:12]}"


def corpus_recipe(head: Mapping[str, Any]) -> dict[str, Any]:
    """What the windows depend on, by the name in the configuration."""
    chat = head.get("chat")
    of_chat = chat and {
        "kind": "chat",
        "chat_template": template_digest(chat),
        "loss_on": chat["loss_on"],
    }
    return {
        "corpus": {
            **(of_chat or {}),  # the recipe of texts is what it was before there were conversations
            "source": SourceConfig.model_validate(head["source"]).model_dump(),
            "bos": head.get("bos", "none"),
            **{name: head[name] for name in _SETTINGS},
        },
        "tokenizer": {
            "fingerprint": head["tokenizer"]["fingerprint"],
            "vocab_size": head["tokenizer"]["vocab_size"],  # len(tokenizer) in corpora of before its holes counted
            "bos_ids": head["tokenizer"].get("bos_ids", []),  # absent from corpora of before corpus.bos
            **({"separator": chat["separator"]} if chat else {}),
        },
    }
