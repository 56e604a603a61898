"""Pack the corpus: source files ─► groups ─► windows in Parquet parts, for training and held out.

    driver: list, group ─► pass 1, a task per group: tokenize, count, hash documents; tokens ─► scratch
            ◄─ choose the hold-out threshold; give each group its part numbers and row ids
            scratch ─► pass 2, a task per group: shuffle, join, cut, write parts ─► driver: manifests

Pass 2 tokenizes again what the scratch has no room for (`rskd.corpus.scratch`). The driver keeps nothing of the
documents but a hash and a count. Windows and row ids are a pure function of (source and how it grew, tokenizer, bos,
seq_len, seed). Nothing is visible until the manifests are written.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from rskd import records
from rskd.config import DistillConfig, RayConfig
from rskd.corpus.chat_packing import CHAT_TOTALS, fewest_windows
from rskd.corpus.hold_out import HoldOut, chat_shares, choose_hold_out, split_shares
from rskd.corpus.packed_corpus import (
    MANIFEST_FILE,
    PARTS_FOLDER,
    CorpusManifest,
    PartInfo,
    write_manifest,
)
from rskd.corpus.packing import DocumentCounts, Share, limited, num_windows, repeated, shuffled
from rskd.corpus.scratch import Scratch
from rskd.corpus.sources import Group, list_files, located, new_groups
from rskd.corpus.vocabulary import cut_ids
from rskd.costs import Reserved
from rskd.errors import ConfigError
from rskd.jobs.at_work import AtWork, at_work, costs_of
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.jobs.pack_worker import Recipe, count_group, task_of, write_group
from rskd.jobs.ray_session import ensure_ray, parallel_tasks
from rskd.lineage.corpus import SPLITS, corpus_recipe, packed_so_far
from rskd.lineage.inputs import Inputs
from rskd.progress import progress_bar
from rskd.storage import Store

_logger = logging.getLogger(__name__)


@on_cluster
@one_at_a_time
def pack_corpus(config: DistillConfig) -> dict[str, Any]:
    """Pack what `config.corpus` names and was not packed yet; added files never move what was packed.

    Returns {"train": T, "eval": T, "bos", "skipped", "seconds", "cost"} and the sums of both, with T = {documents,
    duplicate_documents, tokens, windows, dropped_tail_tokens, parts, uri}. Tokens include one end-of-text token a
    document, and those that begin it; of conversations those of the template alone, and T has CHAT_TOTALS and their
    shares; duplicates are exact copies of documents of the same pack, and are packed; `bos`
    is what corpus.bos came to; `cost` is that of all attempts (`rskd.costs`), None where none was recorded.

    Raises ConfigError for a source that is missing, empty or too small, a tokenizer that does not fit the teacher's or
    cannot do what corpus.bos says, a text with ids that the teacher has no output row for, an unwritable root;
    CacheMismatchError if the corpus was packed with other settings or a packed file is gone.
    """
    started = time.monotonic()
    source = located(config.corpus.source)
    files = list_files(source, outputs=[config.storage.root, config.home], chat=config.corpus.kind == "chat")
    Store(config.storage.root).check_writable()
    inputs = Inputs(config)
    packed, head = packed_so_far(inputs), inputs.corpus_head
    recorded = packed["train"].groups if packed else ()
    added = new_groups(map(Group.from_dict, recorded), files, source=source)
    if packed and not added:
        return _summary(config, packed, started, skipped=True)

    ensure_ray(config.ray)
    groups = dict(enumerate(added, start=len(recorded)))
    reserves = Reserved(cores=min(len(groups), parallel_tasks(config.ray)))
    with at_work(config, "pack", reserves=reserves, makes={"corpus": records.digest(corpus_recipe(head))}) as work:
        manifests = _pack(inputs, packed, groups, work)
    return _summary(config, manifests, started, skipped=False)


def _pack(
    inputs: Inputs, packed: dict[str, CorpusManifest] | None, groups: dict[int, Group], work: AtWork
) -> dict[str, CorpusManifest]:
    """Pack groups after what is packed; the manifests of both splits, as they are written."""
    config, is_first = inputs.config, packed is None
    recipe = _recipe(inputs, packed["train"].head if packed else inputs.corpus_head)
    with recipe.scratch.cleared():
        counts, kept = _count(config.ray, recipe, groups)
        if cut := cut_ids(inputs.tokenizer, recipe.vocab_size):
            _logger.warning("ids that the teacher has no output row for are left out; no text uses them: %s", cut)
        if packed is None:
            packed = _nothing_packed(config, inputs.corpus_head, list(counts.values()))
        hold_out = HoldOut(packed["train"].eval_threshold, packed["train"].eval_multiplier)
        shares = _shares(counts, hold_out, packed)
        if is_first:
            _warn_of_large_hold_out(shares, config.corpus.eval_windows)
        _limit_train_windows(shares, config, packed["train"])
        places = _places(shares, packed)
        tasks = [task_of(index, group) | places[index] | {"kept": kept[index]} for index, group in groups.items()]
        parts, tails, counted = _write(config.ray, recipe, tasks, hold_out, work)
    manifests = {}
    for split, manifest in packed.items():
        new = [groups[index].to_dict() | asdict(shares[index][split]) | counted[index, split] for index in groups]
        new[-1]["tail"] = tails[split]
        manifests[split] = CorpusManifest.of(manifest.head, (*manifest.groups, *new), (*manifest.parts, *parts[split]))
    _report_conversations(manifests)
    if is_first:
        _remove_other_parts(config, manifests)
    for split in reversed(SPLITS):  # train comes last: a corpus without a train manifest is packed again
        write_manifest(Store(config.corpus_uri(split)), manifests[split])
    return manifests


def _recipe(inputs: Inputs, layout: dict[str, Any]) -> Recipe:
    """What the tasks have to know; `layout` is the head of what is packed, if anything is."""
    config, head = inputs.config, inputs.corpus_head
    return Recipe(
        source=located(config.corpus.source),
        tokenizer=inputs.tokenizer,
        bos=head["bos"],
        **{key: head["tokenizer"][key] for key in ("vocab_size", "end_of_text_id", "bos_ids")},
        uris={split: Store(config.corpus_uri(split)).absolute_uri for split in SPLITS},
        scratch=Scratch.of(
            f"{config.home}/corpus",
            vocab_size=head["tokenizer"]["vocab_size"],
            has_masks=inputs.chat is not None,
        ),
        chat=inputs.chat,
        **{key: layout[key] for key in ("seq_len", "seed", "windows_per_part", "rows_per_group")},
    )


def _nothing_packed(
    config: DistillConfig, head: dict[str, Any], counts: Sequence[DocumentCounts]
) -> dict[str, CorpusManifest]:
    """The empty manifests that a first pack adds to; those that an unfinished one left are removed."""
    corpus = config.corpus
    windows_of = num_windows
    if head.get("chat"):
        counts, windows_of = _with_a_loss(counts), fewest_windows
    hold_out = choose_hold_out(counts, seq_len=corpus.seq_len, eval_windows=corpus.eval_windows, num_windows=windows_of)
    head = head | {"eval_threshold": hold_out.threshold, "eval_multiplier": hold_out.multiplier}
    for split in SPLITS:
        Store(config.corpus_uri(split)).remove(MANIFEST_FILE)
    return {split: CorpusManifest.of(head, (), ()) for split in SPLITS}


def _with_a_loss(counts: Sequence[DocumentCounts]) -> list[DocumentCounts]:
    """The conversations that have a token with a loss, each with its separator; ConfigError if none has."""
    kept = [DocumentCounts(one.hashes[one.num_tokens > 0], one.num_tokens[one.num_tokens > 0] + 1) for one in counts]
    if any(len(one.hashes) for one in counts) and not any(len(one.hashes) for one in kept):
        raise ConfigError(
            f"the corpus source has {sum(len(one.hashes) for one in counts):,} conversations, none of them with a "
            "token to learn from: see that the role of answers is assistant, and corpus.loss_on"
        )
    return kept


def _remove_other_parts(config: DistillConfig, manifests: dict[str, CorpusManifest]) -> None:
    """Remove the parts that an unfinished first pack left; not before, since another process may be writing ours."""
    for split in SPLITS:
        store, ours = Store(config.corpus_uri(split)), {part.file for part in manifests[split].parts}
        for name in store.list(PARTS_FOLDER):
            if f"{PARTS_FOLDER}/{name}" not in ours:
                store.remove(f"{PARTS_FOLDER}/{name}")


def _count(
    ray: RayConfig, recipe: Recipe, groups: dict[int, Group]
) -> tuple[dict[int, DocumentCounts], dict[int, str]]:
    """Pass 1: by group, the hash and number of tokens of every document, and what the scratch has its tokens as."""
    rows = [task_of(index, group) for index, group in groups.items()]
    counts, kept = {}, {}
    with progress_bar("tokenize groups", len(rows)) as advance:
        for row in _run(ray, partial(count_group, recipe), rows):
            counts[row["group"]] = DocumentCounts(
                np.frombuffer(row["hashes"], np.uint64), np.frombuffer(row["num_tokens"], np.int64)
            )
            kept[row["group"]] = row["kept"]
            advance()
    if again := sum(not name for name in kept.values()):
        _logger.warning(
            f"{again:,} of {len(groups):,} groups of documents are tokenized twice, since {recipe.scratch.uri} has no "
            "room for their tokens: free some to pack faster next time"
        )
    return {index: counts[index] for index in groups}, kept


def _shares(
    counts: dict[int, DocumentCounts], hold_out: HoldOut, packed: dict[str, CorpusManifest]
) -> dict[int, dict[str, Share]]:
    """The share of each group in each split; the first group begins with the tails of what is packed."""
    carried = {split: len(manifest.tail) for split, manifest in packed.items()}
    shares, train = {}, packed["train"]
    for (index, group), is_copy in zip(counts.items(), repeated(list(counts.values()))):
        if train.chat:
            order = shuffled(len(group.hashes), seed=train.seed, group=index)
            shares[index] = chat_shares(group, is_copy, hold_out, train.seq_len, order)
            continue
        shares[index] = split_shares(group, is_copy, hold_out, train.seq_len, carried)
        carried = dict.fromkeys(carried, 0)
    return shares


def _warn_of_large_hold_out(shares: dict[int, dict[str, Share]], eval_windows: int) -> None:
    held_out, left = (sum(share[split].windows for share in shares.values()) for split in ("eval", "train"))
    if held_out > min(2 * eval_windows, left):
        _logger.warning(
            f"{held_out:,} of {held_out + left:,} windows are held out, where corpus.eval_windows={eval_windows} are "
            "wanted: a document is held out whole, so split long ones to hold out less"
        )


def _report_conversations(manifests: dict[str, CorpusManifest]) -> None:
    """Warn of conversations that are not in the windows as they are in the source."""
    totals = {key: sum(one.totals.get(key, 0) for one in manifests.values()) for key in ("documents", *CHAT_TOTALS)}
    if totals["cut_conversations"]:
        tokens = manifests["train"].seq_len + 1
        _logger.warning(
            f"{totals['cut_conversations']:,} of {totals['documents']:,} conversations are longer than a window of "
            f"{tokens:,} tokens and were cut into pieces, each without what is before it: raise corpus.seq_len to keep "
            "them whole"
        )
    if skipped := totals["skipped_conversations"]:
        _logger.warning(
            f"{skipped:,} of {totals['documents'] + skipped:,} conversations have no token with a loss (no answer, or "
            "only such with train: false) and were skipped"
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
    tasks: list[dict[str, Any]],
    hold_out: HoldOut,
    work: AtWork,
) -> tuple[dict[str, list[PartInfo]], dict[str, list[int]], dict[tuple[int, str], dict[str, int]]]:
    """Pass 2: the parts of each split, the tail of the last group, and what was counted in the windows of each."""
    parts: dict[str, list[PartInfo]] = {split: [] for split in SPLITS}
    tails: dict[str, list[int]] = {}
    counted: dict[tuple[int, str], dict[str, int]] = {}
    total = sum(task[split]["windows"] for task in tasks for split in SPLITS)
    with progress_bar("pack windows", total) as advance:
        for row in _run(ray, partial(write_group, recipe, hold_out), tasks):
            written = [PartInfo(**part) for part in json.loads(row["parts"])]
            parts[row["split"]] += written
            counted[row["group"], row["split"]] = json.loads(row["counts"])
            if row["group"] == tasks[-1]["group"]:
                tails[row["split"]] = np.frombuffer(row["tail"], np.int32).tolist()
            rows = sum(part.rows for part in written)
            work.add(tokens=rows * recipe.seq_len, bytes_written=sum(part.bytes for part in written))
            advance(rows)
    return parts, tails, counted


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
        split: {
            **counts[split],
            **manifests[split].shares,
            "parts": len(manifests[split].parts),
            "uri": config.corpus_uri(split),
        }
        for split in SPLITS
    }
    sums = {key: sum(count[key] for count in counts.values()) for key in counts["train"]}
    return {
        **splits,
        **sums,
        "bos": manifests["train"].bos,
        "seconds": time.monotonic() - started,
        "cost": costs_of(config, "pack"),
        "skipped": skipped,
    }
