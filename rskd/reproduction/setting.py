"""What all cells of a scale share: text, tokenizer and teacher, and one configuration with every cache and student.

    documents ─┬─► teacher.jsonl ─► tokenizer ─► teacher, trained on labels ─► rounds of each sampler ─┐
               └─► student.jsonl ─────────────────────────────────────────────────────────────────────┴─► prepare
    prepare ─► (the caching job) ─► with_students

A small teacher learns from other documents than its students: of a small corpus it would know theirs by heart. What is
there already is kept, so a second call is quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rskd import records
from rskd.config import DistillConfig, SourceConfig, load_config, to_yaml, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.corpus.sources import group_files, list_files, located, read_documents
from rskd.errors import ConfigError
from rskd.evaluation.unique_tokens import expected_unique_tokens
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.models.files import resolve_teacher
from rskd.plan import resources_here
from rskd.reproduction.methods import CACHES, METHODS, MISALIGNED, OURS, SIZES, Cache
from rskd.reproduction.scales import Scale, SmallModels
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher

Cell = tuple[str, int]  # name of a method, seed

_STUDENTS_SHARE = 0.3  # of the documents
_PROBE_WINDOWS, _PROBE_POSITIONS = 32, 1024  # on which rounds are chosen; the latter of all windows together
_MOST_ROUNDS = 2**16
_END_OF_TEXT = "<|endoftext|>"


def prepare(scale: Scale, source: SourceConfig, home: Path, methods: Collection[str]) -> DistillConfig:
    """Make text, tokenizer and teacher, pack the corpus, and choose the rounds of each sampler.

    The result names the caches that `methods` need; they are still to be made. Raises ConfigError for a source without
    documents, for another one than `home` was begun with, and for a student of a size that `scale` has not.
    """
    other_sizes = sorted(name for name in methods if METHODS[name].size)
    if other_sizes and scale.small is None and not scale.sizes:
        raise ConfigError(
            f"this scale has no students of other sizes, which {other_sizes[0]} needs: choose another one"
        )
    _check_same_source(source, home)
    config: dict[str, Any] = {**scale.config, "name": "students", "storage": {"root": str(home)}}
    config["corpus"] = {**scale.config["corpus"], "source": source.model_dump(exclude_none=True, exclude_defaults=True)}
    if scale.small is not None:
        config = _with_small_models(config, scale.small, source, home)
    packed = validate_config(config)
    pack_corpus(packed)
    wanted = {OURS if cache == MISALIGNED else cache for method in methods if (cache := METHODS[method].cache)}
    config["samplings"] = _chosen_rounds(packed, {name: CACHES[name] for name in CACHES if name in wanted})
    return validate_config(config)


def with_students(config: DistillConfig, scale: Scale, cells: Iterable[Cell]) -> DistillConfig:
    """`config`, whose caches are made, with a student for each cell, by `cell_name`."""
    cells = list(cells)
    settings = config.model_dump(mode="json", exclude_unset=True)
    if any(METHODS[method].cache == MISALIGNED for method, _ in cells):
        settings["samplings"][MISALIGNED] = settings["samplings"][OURS]
    sizes = _sizes(scale, Path(config.storage.root))
    settings["students"] = {cell_name(cell): _student(cell, sizes) for cell in cells}
    return validate_config(settings)


def write_config(config: DistillConfig) -> None:
    """Write `config` into its folder, for rskd's commands and `flows.post_train`.

    The caches and students of other tables, which an earlier call wrote there, stay in it.
    """
    file, settings = Path(config.home, "config.yaml"), config.model_dump(mode="json", exclude_unset=True)
    if file.is_file():
        known = load_config(file)
        for section in ("samplings", "students"):
            settings[section] = known.model_dump(mode="json")[section] | (settings.get(section) or {})
    Store(config.home).write(file.name, to_yaml(validate_config(settings)).encode())


def cell_name(cell: Cell) -> str:
    """Name of the student of a cell."""
    method, seed = cell
    return f"{method}-seed-{seed}"


def _student(cell: Cell, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of the student of a cell; seeds differ in initial weights and in the order of windows."""
    name, seed = cell
    method = METHODS[name]
    size = sizes[method.size] if method.size else {}
    cache = {"sampling": method.cache} if method.cache else {}
    train = {**size.get("train", {}), **method.train, "seed": seed}
    return {**size, "objective": dict(method.objective), "train": train, **cache}


def _sizes(scale: Scale, home: Path) -> dict[str, Mapping[str, Any]]:
    """Settings of the students of other sizes, by name."""
    small = [_from_scratch(home, name) for name in SIZES] if scale.small else []
    return dict(zip(SIZES, scale.sizes or small))


def _check_same_source(source: SourceConfig, home: Path) -> None:
    """A home has one source, which a record names: what is there already was made of it.

    Raises ConfigError for another one, and for one that does not exist or is empty.
    """
    store, settings = Store(str(home)), located(source).model_dump(mode="json")
    known = records.read(store, "source.json")
    if known is None:
        list_files(source)  # a wrong path binds no home
        records.write(store, "source.json", settings)
    elif SourceConfig.model_validate(known) != located(source):
        was, now = (" ".join(filter(None, (one["kind"], one["uri"]))) for one in (known, settings))
        raise ConfigError(f"{home} was made of the documents of {was}, not of {now}: name those, or another home")


def _with_small_models(config: dict[str, Any], small: SmallModels, source: SourceConfig, home: Path) -> dict[str, Any]:
    """`config` with the tokenizer, teacher and student of `small`, which are made where they are not there."""
    text, teacher = home / "text", home / "architectures" / "teacher"
    if not (text / "student.jsonl").exists():
        _split_documents(source, text)
    if not (teacher / "tokenizer.json").exists():
        _train_tokenizer(text / "teacher.jsonl", small.vocab_size, teacher)
    sizes = {"vocab_size": small.vocab_size, "max_position_embeddings": config["corpus"]["seq_len"]}
    students = zip(("student", *SIZES), (small.student, *small.sizes))
    for name, architecture in (("teacher", small.teacher), *students):
        LlamaConfig(**architecture, **sizes).save_pretrained(home / "architectures" / name)
    corpus = config["corpus"]
    teaching = validate_config(
        {
            **config,
            "name": "teacher",
            "corpus": {key: value for key, value in corpus.items() if key != "max_windows"} | _jsonl(text, "teacher"),
            "teacher": {"model": str(teacher)},
            "students": {"model": _from_scratch(home, "teacher") | {"objective": {"kind": "ce"}}},
            "train": dict(small.train_teacher),
        }
    )
    pack_corpus(teaching)
    train_student(teaching, "model")
    return {
        **config,
        "corpus": corpus | _jsonl(text, "student"),
        "teacher": {**config["teacher"], "model": teaching.student_uri("model")},
        **_from_scratch(home, "student"),
    }


def _jsonl(text: Path, name: str) -> dict[str, Any]:
    return {"source": {"kind": "jsonl", "uri": str(text / f"{name}.jsonl")}}


def _from_scratch(home: Path, name: str) -> dict[str, Any]:
    return {"student": {"model": str(home / "architectures" / name), "init": "random"}}


def _split_documents(source: SourceConfig, folder: Path) -> None:
    """Write teacher.jsonl and student.jsonl: the hash of a document decides where it goes; duplicates are dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    parts = {name: folder / f"{name}.jsonl.part" for name in ("teacher", "student")}
    with parts["teacher"].open("w") as teacher, parts["student"].open("w") as student:
        for group in group_files(list_files(source), kind=source.kind):
            for document in read_documents(source, group):
                digest = hashlib.sha256(document.encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    file = student if digest[0] < 256 * _STUDENTS_SHARE else teacher
                    file.write(json.dumps({"text": document}) + "\n")
    for path in parts.values():
        path.rename(path.with_suffix(""))


def _train_tokenizer(text: Path, vocab_size: int, folder: Path) -> None:
    """A byte-level BPE tokenizer with exactly `vocab_size` ids, the first of which ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documents(text), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END_OF_TEXT).save_pretrained(folder)


def _documents(text: Path) -> Iterator[str]:
    with text.open() as lines:
        yield from (json.loads(line)["text"] for line in lines)


def _chosen_rounds(config: DistillConfig, caches: dict[str, Cache]) -> dict[str, dict[str, Any]]:
    """Settings of each cache, with the rounds that give its unique tokens on some windows; a record keeps them."""
    store = Store(config.home)
    known = records.read(store, "rounds.json") or {}
    missing = {name: cache for name, cache in caches.items() if cache.unique_tokens is not None and name not in known}
    if missing:
        logits = _probe_logits(config)
        known |= {name: _rounds(logits, cache) for name, cache in missing.items()}
        records.write(store, "rounds.json", known)
    return {
        name: {**cache.sampling} if cache.unique_tokens is None else {**cache.sampling, "num_samples": known[name]}
        for name, cache in caches.items()
    }


@torch.inference_mode()
def _probe_logits(config: DistillConfig) -> Tensor:
    """Logits [P, V] of the teacher at some positions of the first held-out windows."""
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    model_dir = resolve_teacher(config)
    gpus = config.teacher.gpus_per_worker
    device = "cuda" if (resources_here().gpus if gpus == "auto" else gpus) else "cpu"
    teacher = TransformersTeacher.load(config.teacher, model_dir=model_dir, device=device)
    windows = corpus.read_rows(range(min(_PROBE_WINDOWS, corpus.num_rows))).input_ids[:, :-1]
    step = max(1, windows.size // _PROBE_POSITIONS)
    vocab_size = corpus.manifest.tokenizer["vocab_size"]
    hidden = [teacher.hidden(torch.from_numpy(window[None]).long())[0, ::step] for window in windows]
    return teacher.head.logits(torch.cat(hidden), vocab_size)


def _rounds(logits: Tensor, cache: Cache) -> int:
    """The least number of rounds that gives as many unique tokens, in the mean over positions."""
    method, temperature = cache.sampling["method"], cache.sampling.get("temperature", 1.0)
    unique = partial(expected_unique_tokens, logits, method=method, temperature=temperature)
    assert cache.unique_tokens is not None
    low, high = 1, _MOST_ROUNDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if unique(middle).mean().item() >= cache.unique_tokens else (middle + 1, high)
    return low
