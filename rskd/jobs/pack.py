"""Pack the corpus: source files ─► groups ─► windows in Parquet parts, for training and held out.

    driver: list, group ─► pass 1, a task per group: count tokens, hash documents
            ◄─ choose the hold-out threshold; give each group its part numbers and row ids
                        ─► pass 2, a task per group: shuffle, join, cut, write parts ─► driver: manifests

Both passes read and tokenize the documents: nothing of them is kept in the driver but a hash and a count. Windows and
row ids are a pure function of (source and how it grew, tokenizer, bos, seq_len, seed). Nothing is visible until the
manifests are written.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from rskd.config import DistillConfig, RayConfig, SourceConfig
from rskd.corpus.hold_out import HoldOut, choose_hold_out, content_hash, split_masks, split_shares
from rskd.corpus.packed_corpus import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    PARTS_FOLDER,
    TOTALS,
    CorpusManifest,
    PartInfo,
    read_manifest,
    rows_per_group,
    write_manifest,
    write_part,
)
from rskd.corpus.packing import (
    DocumentCounts,
    Share,
    cut_windows,
    limited,
    repeated,
    shuffled,
    tail_of,
    tokenize,
)
from rskd.corpus.sources import Group, list_files, located, new_groups, read_documents
from rskd.corpus.vocabulary import check_ids, cut_ids
from rskd.errors import CacheMismatchError, ConfigError, printable
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.ray_session import ensure_ray
from rskd.models.files import resolve_teacher
from rskd.models.tokenizer import (
    beginning_of_text,
    end_of_text_id,
    load_tokenizer,
    tokenizer_fingerprint,
    vocab_size_of_model,
)
from rskd.progress import progress_bar
from rskd.storage import Store

_logger = logging.getLogger(__name__)

SPLITS: tuple[Literal["train"], Literal["eval"]] = ("train", "eval")


@dataclass(frozen=True)
class Recipe:
    """What every task has to know; `uris` has the folder of each split, absolute as a worker must call it."""

    source: SourceConfig
    tokenizer: Tokenizer
    vocab_size: int
    end_of_text_id: int
    bos: str
    bos_ids: list[int]
    seq_len: int
    seed: int
    windows_per_part: int
    rows_per_group: int
    uris: dict[str, str]


@one_at_a_time
def pack_corpus(config: DistillConfig) -> dict[str, Any]:
    """Pack what `config.corpus` names and was not packed yet; added files never move what was packed.

    Returns {"train": T, "eval": T, "bos", "skipped", "seconds"} and the sums of both, with T = {documents,
    duplicate_documents, tokens, windows, dropped_tail_tokens, parts, uri}. Tokens include one end-of-text token a
    document, and those that begin it; duplicates are exact copies of documents of the same pack, and are packed; `bos`
    is what corpus.bos came to.

    Raises ConfigError for a source that is missing, empty or too small, a tokenizer that does not fit the teacher's or
    cannot do what corpus.bos says, a text with ids that the teacher has no output row for, an unwritable root;
    CacheMismatchError if the corpus was packed with other settings or a packed file is gone.
    """
    started = time.monotonic()
    source = located(config.corpus.source)
    files = list_files(source)
    Store(config.storage.root).check_writable()
    head, tokenizer = corpus_head(config)
    packed = _packed(config, head)
    recorded = [Group.from_dict(group) for group in packed["train"].groups] if packed else []
    added = new_groups(recorded, files, source=source)
    if packed and not added:
        return _summary(config, packed, started, skipped=True)

    ensure_ray(config.ray)
    layout = packed["train"].head if packed else head
    recipe = Recipe(
        source=source,
        tokenizer=tokenizer,
        bos=head["bos"],
        **{key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id", "bos_ids")},
        uris={split: Store(config.corpus_uri(split)).absolute_uri for split in SPLITS},
        **{key: layout[key] for key in ("seq_len", "seed", "windows_per_part", "rows_per_group")},
    )
    groups = dict(enumerate(added, start=len(recorded)))
    counts = _count(config.ray, recipe, groups)
    if cut := cut_ids(tokenizer, recipe.vocab_size):
        _logger.warning("ids that the teacher has no output row for are left out; no text uses them: %s", cut)
    is_first = packed is None
    if packed is None:
        packed = _nothing_packed(config, head, list(counts.values()))
    hold_out = HoldOut(packed["train"].eval_threshold, packed["train"].eval_multiplier)
    shares = _shares(counts, hold_out, packed)
    if is_first:
        _warn_of_large_hold_out(shares, config.corpus.eval_windows)
    _limit_train_windows(shares, config, packed["train"])
    parts, tails = _write(config.ray, recipe, groups, _places(shares, packed), hold_out)
    manifests = {}
    for split, manifest in packed.items():
        new = [groups[index].to_dict() | asdict(shares[index][split]) for index in groups]
        new[-1]["tail"] = tails[split]
        manifests[split] = CorpusManifest.of(manifest.head, (*manifest.groups, *new), (*manifest.parts, *parts[split]))
    if is_first:
        _remove_other_parts(config, manifests)
    for split in reversed(SPLITS):  # train comes last: a corpus without a train manifest is packed again
        write_manifest(Store(config.corpus_uri(split)), manifests[split])
    return _summary(config, manifests, started, skipped=False)


def corpus_head(config: DistillConfig) -> tuple[dict[str, Any], Tokenizer]:
    """What a manifest says before anything is packed, and the tokenizer, which must be the teacher's.

    `vocab_size` is the teacher's number of output rows where its tokenizer has more ids.
    """
    corpus, teacher = config.corpus, config.teacher
    teacher_dir = resolve_teacher(config)
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


def _packed(config: DistillConfig, head: dict[str, Any]) -> dict[str, CorpusManifest] | None:
    """The manifests of both splits, with the groups that both have; None if a first pack did not come to its end.

    Raises CacheMismatchError, naming the field, if they were made with other settings than `config`'s.
    """
    found = {
        split: manifest for split in SPLITS if (manifest := read_manifest(Store(config.corpus_uri(split)))) is not None
    }
    if len(found) < len(SPLITS):
        return None
    for split in SPLITS:
        check_packed_with(head, found[split], config.corpus_uri(split))
    held_out, wanted = found["eval"].totals["windows"], config.corpus.eval_windows
    if held_out < wanted:
        raise CacheMismatchError(
            f"{config.corpus_uri('eval')} has {held_out} windows, fewer than corpus.eval_windows={wanted}: "
            f"lower it, choose another name, or remove {config.home}/corpus"
        )
    num_groups = min(len(manifest.groups) for manifest in found.values())
    return {split: manifest.up_to(num_groups) for split, manifest in found.items()}


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


def _nothing_packed(
    config: DistillConfig, head: dict[str, Any], counts: Sequence[DocumentCounts]
) -> dict[str, CorpusManifest]:
    """The empty manifests that a first pack adds to; those that an unfinished one left are removed."""
    corpus = config.corpus
    hold_out = choose_hold_out(counts, seq_len=corpus.seq_len, eval_windows=corpus.eval_windows)
    head = head | {"eval_threshold": hold_out.threshold, "eval_multiplier": hold_out.multiplier}
    for split in SPLITS:
        Store(config.corpus_uri(split)).remove(MANIFEST_FILE)
    return {split: CorpusManifest.of(head, (), ()) for split in SPLITS}


def _remove_other_parts(config: DistillConfig, manifests: dict[str, CorpusManifest]) -> None:
    """Remove the parts that an unfinished first pack left; not before, since another process may be writing ours."""
    for split in SPLITS:
        store, ours = Store(config.corpus_uri(split)), {part.file for part in manifests[split].parts}
        for name in store.list(PARTS_FOLDER):
            if f"{PARTS_FOLDER}/{name}" not in ours:
                store.remove(f"{PARTS_FOLDER}/{name}")


def _count(ray: RayConfig, recipe: Recipe, groups: dict[int, Group]) -> dict[int, DocumentCounts]:
    """Pass 1: the hash and number of tokens of every document, by group."""
    rows = [_task(index, group) for index, group in groups.items()]
    counts = {}
    with progress_bar("count groups", len(rows)) as advance:
        for row in _run(ray, partial(_count_group, recipe), rows):
            counts[row["group"]] = DocumentCounts(
                np.frombuffer(row["hashes"], np.uint64), np.frombuffer(row["num_tokens"], np.int64)
            )
            advance()
    return {index: counts[index] for index in groups}


def _task(index: int, group: Group) -> dict[str, Any]:
    """A row for a task on a group. Its files are JSON: Arrow, by which Ray sends rows, refuses names of other bytes."""
    return {"group": index, "files": json.dumps(group.to_dict())}


def _group(row: dict[str, Any]) -> Group:
    return Group.from_dict(json.loads(row["files"]))


def _count_group(recipe: Recipe, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    hashes, documents = _tokenized(recipe, _group(row))
    num_tokens = np.array([len(document) for document in documents], np.int64)
    yield {"group": row["group"], "hashes": hashes.tobytes(), "num_tokens": num_tokens.tobytes()}


def _shares(
    counts: dict[int, DocumentCounts], hold_out: HoldOut, packed: dict[str, CorpusManifest]
) -> dict[int, dict[str, Share]]:
    """The share of each group in each split; the first group begins with the tails of what is packed."""
    carried = {split: len(manifest.tail) for split, manifest in packed.items()}
    shares = {}
    for (index, group), is_copy in zip(counts.items(), repeated(list(counts.values()))):
        shares[index] = split_shares(group, is_copy, hold_out, packed["train"].seq_len, carried)
        carried = dict.fromkeys(carried, 0)
    return shares


def _warn_of_large_hold_out(shares: dict[int, dict[str, Share]], eval_windows: int) -> None:
    held_out, left = (sum(share[split].windows for share in shares.values()) for split in ("eval", "train"))
    if held_out > min(2 * eval_windows, left):
        _logger.warning(
            f"{held_out:,} of {held_out + left:,} windows are held out, where corpus.eval_windows={eval_windows} are "
            "wanted: a document is held out whole, so split long ones to hold out less"
        )


def _limit_train_windows(shares: dict[int, dict[str, Share]], config: DistillConfig, packed: CorpusManifest) -> None:
    """Keep the first `corpus.max_windows` of the train split, in order of groups."""
    if config.corpus.max_windows is None:
        return
    room = config.corpus.max_windows - packed.totals["windows"]
    for share in shares.values():
        share["train"] = limited(share["train"], room, config.corpus.seq_len)
        room -= share["train"].windows


def _places(
    shares: dict[int, dict[str, Share]], packed: dict[str, CorpusManifest]
) -> dict[int, dict[str, dict[str, Any]]]:
    """For each group and split: first_part, first_row and windows, after what is packed and in order of groups.

    The stream of the first group begins with the tail of what is packed.
    """
    places: dict[int, dict[str, dict[str, Any]]] = {index: {} for index in shares}
    for split, manifest in packed.items():
        part, row, carried = len(manifest.parts), manifest.totals["windows"], manifest.tail.tobytes()
        for index, share in shares.items():
            windows = share[split].windows
            places[index][split] = {"first_part": part, "first_row": row, "windows": windows, "carried": carried}
            carried = b""
            part += -(-windows // manifest.windows_per_part)
            row += windows
    return places


def _write(
    ray: RayConfig,
    recipe: Recipe,
    groups: dict[int, Group],
    places: dict[int, dict[str, dict[str, Any]]],
    hold_out: HoldOut,
) -> tuple[dict[str, list[PartInfo]], dict[str, list[int]]]:
    """Pass 2: the parts of each split, and the tail of the last group."""
    rows = [_task(index, group) | places[index] for index, group in groups.items()]
    parts: dict[str, list[PartInfo]] = {split: [] for split in SPLITS}
    tails: dict[str, list[int]] = {}
    total = sum(row[split]["windows"] for row in rows for split in SPLITS)
    with progress_bar("pack windows", total) as advance:
        for row in _run(ray, partial(_write_group, recipe, hold_out), rows):
            written = [PartInfo(**part) for part in json.loads(row["parts"])]
            parts[row["split"]] += written
            if row["group"] == max(groups):
                tails[row["split"]] = np.frombuffer(row["tail"], np.int32).tolist()
            advance(sum(part.rows for part in written))
    return parts, tails


def _write_group(recipe: Recipe, hold_out: HoldOut, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each split: its parts, as JSON, and its tail."""
    group = _group(row)
    hashes, documents = _tokenized(recipe, group)
    order = shuffled(len(documents), seed=recipe.seed, group=row["group"])
    first_id = recipe.bos_ids[0] if recipe.bos == "window" else None
    for split, mask in split_masks(hashes, hold_out).items():
        place = row[split]
        kept = [np.frombuffer(place["carried"], np.int32), *(documents[index] for index in order if mask[index])]
        windows = cut_windows(kept, recipe.seq_len, first_id=first_id)[: place["windows"]]
        if len(windows) != place["windows"]:
            names = ", ".join(printable(file.name) for file in group.files[:3])
            raise ConfigError(f"the corpus source changed while it was packed ({names}): run rskd pack again")
        parts = json.dumps([asdict(part) for part in _write_parts(recipe, split, place, windows)])
        tail = tail_of(kept, len(windows), recipe.seq_len).tobytes()
        yield {"group": row["group"], "split": split, "parts": parts, "tail": tail}


def _write_parts(recipe: Recipe, split: str, place: dict[str, Any], windows: np.ndarray) -> Iterator[PartInfo]:
    store = Store(recipe.uris[split])
    for number, start in enumerate(range(0, len(windows), recipe.windows_per_part)):
        chunk = windows[start : start + recipe.windows_per_part]
        index, first_row = place["first_part"] + number, place["first_row"] + start
        yield write_part(store, index, first_row, chunk, rows_per_group=recipe.rows_per_group)


def _tokenized(recipe: Recipe, group: Group) -> tuple[np.ndarray, list[np.ndarray]]:
    """Content hashes, uint64, and token ids of the documents of a group."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    hashes: list[int] = []

    def hashed_texts() -> Iterator[str]:
        for text in read_documents(recipe.source, group):
            hashes.append(content_hash(text))
            yield text

    documents = list(tokenize(recipe.tokenizer, hashed_texts(), recipe.end_of_text_id, recipe.bos_ids))
    check_ids(documents, recipe.tokenizer, recipe.vocab_size)
    return np.array(hashes, np.uint64), documents


def _run(
    ray: RayConfig, task: Callable[[dict[str, Any]], Iterator[dict[str, Any]]], rows: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What `task` yields for each row, in the order in which they come."""
    if not ray.enabled:
        return chain.from_iterable(map(task, rows))
    from rskd.jobs.on_ray import flat_map

    return flat_map(task, rows)


def _summary(
    config: DistillConfig, manifests: dict[str, CorpusManifest], started: float, *, skipped: bool
) -> dict[str, Any]:
    counts = {
        split: {**manifest.totals, "duplicate_documents": manifest.duplicate_documents}
        for split, manifest in manifests.items()
    }
    splits = {
        split: {**counts[split], "parts": len(manifests[split].parts), "uri": config.corpus_uri(split)}
        for split in SPLITS
    }
    sums = {key: sum(count[key] for count in counts.values()) for key in (*TOTALS, "duplicate_documents")}
    return {**splits, **sums, "bos": manifests["train"].bos, "seconds": time.monotonic() - started, "skipped": skipped}
