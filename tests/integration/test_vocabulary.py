"""Tokenizers with holes, with more ids than the teacher, and with a BOS, through whole stages; no Ray."""

import json
import logging
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rskd import records
from rskd.cache.inspection import inspect
from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError, ConfigError
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.storage import Store

END, SEQ_LEN = 0, 32
TEXTS = [topics[name][:700] for name in sorted(topics)[:14]]


def save_teacher(directory: Path, tokenizer: PreTrainedTokenizerFast, *, vocab_size: int = 400) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_config(
    root: Path, teacher: Path, texts: list[str] = TEXTS, *, statistics: tuple[str, ...] = (), **corpus: Any
) -> DistillConfig:
    source = root / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root / "store")},
            "corpus": {
                "source": {"kind": "jsonl", "uri": str(source)},
                "seq_len": SEQ_LEN,
                "eval_windows": 4,
                "windows_per_part": 40,
                **corpus,
            },
            "teacher": {"model": str(teacher), "dtype": "float32", "threads_per_worker": 1},
            "sampling": {"num_samples": 8, "statistics": statistics},
            "objective": {"ce_weight": 0.1},
            "train": {"steps": 2, "global_batch": 2, "micro_batch": 2, "precision": "float32", "workers": 0},
            "ray": {"enabled": False},
            "tracking": {"enabled": False},
        }
    )


def windows(config: DistillConfig, split: str = "train") -> np.ndarray:
    corpus = PackedCorpus.open(config.corpus_uri(split))
    return corpus.read_rows(range(corpus.num_rows)).input_ids


def own_loss(model_dir: Path, input_ids: np.ndarray, vocab_size: int) -> float:
    """Mean loss by Transformers alone, over the ids below `vocab_size`."""
    ids = torch.from_numpy(input_ids).long()
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model_dir)(ids[:, :-1]).logits[..., :vocab_size]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture
def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that begins each text with a BOS, id 384, and ends it with an end of text."""
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    specials = [("<bos>", 384), ("<|endoftext|>", END)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <|endoftext|>", special_tokens=specials
    )
    return tokenizer


@pytest.fixture
def with_holes(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A teacher whose tokenizer has 374 ids, of which the largest is 383."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    parts = {part for pair in content["model"]["merges"] for part in pair}
    unused = [token for pair in content["model"]["merges"] if (token := "".join(pair)) not in parts][:10]
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) not in unused]
    for token in unused:
        del content["model"]["vocab"][token]
    file.write_text(json.dumps(content))
    return save_teacher(tmp_path / "teacher", AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))


def test_every_stage_counts_the_holes(with_holes: Path, tmp_path: Path):
    assert len(AutoTokenizer.from_pretrained(with_holes)) == 374
    config = make_config(tmp_path, with_holes)
    pack_corpus(config)
    summary = cache_logits(config)["default"]
    train_student(config)
    found = evaluate_students(config)
    cache = LogitCache.open(config.cache_uri("default"))
    assert (cache.vocab_size, int(windows(config).max())) == (384, 383)
    assert summary["teacher_lm_loss"] == cache.manifest.teacher_lm_loss
    assert summary["teacher_lm_loss"] == pytest.approx(own_loss(with_holes, windows(config), 384), rel=1e-6)
    assert found["teacher"]["lm_loss"] == pytest.approx(own_loss(with_holes, windows(config, "eval"), 384), rel=1e-5)
    assert inspect(cache.uri)["teacher_lm_loss"] == summary["teacher_lm_loss"]
    assert verify(cache.uri).ok


def test_a_corpus_that_counted_no_holes_is_refused(with_holes: Path, tmp_path: Path):
    config = make_config(tmp_path, with_holes)
    pack_corpus(config)
    for split in ("train", "eval"):
        store = Store(config.corpus_uri(split))
        content = records.read(store, "manifest.json")
        assert content is not None
        content["tokenizer"]["vocab_size"] = 374
        records.write(store, "manifest.json", content)
    for stage in (pack_corpus, cache_logits):
        with pytest.raises(
            CacheMismatchError, match=r"packed with tokenizer.vocab_size=374, not 384: .* or remove .*corpus"
        ):
            stage(config)


def test_ids_beyond_the_teacher_are_cut_where_no_text_has_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tokenizer.add_tokens(["<image>", "<audio>"])
    teacher = save_teacher(tmp_path / "teacher", tokenizer, vocab_size=384)
    config = make_config(tmp_path, teacher)
    with caplog.at_level(logging.WARNING):
        pack_corpus(config)
    assert "no text uses them: <image> (id 384), <audio> (id 385)" in caplog.text
    summary = cache_logits(config)["default"]
    assert LogitCache.open(config.cache_uri("default")).vocab_size == 384
    assert summary["teacher_lm_loss"] == pytest.approx(own_loss(teacher, windows(config), 384), rel=1e-6)
    train_student(config)
    evaluate_students(config)
    caplog.clear()
    assert pack_corpus(config)["skipped"]
    assert not caplog.records


def test_ids_beyond_the_teacher_are_refused_by_name_where_a_text_has_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    tokenizer.add_tokens(["<image>", "<audio>"])
    teacher = save_teacher(tmp_path / "teacher", tokenizer, vocab_size=384)
    config = make_config(tmp_path, teacher, texts=[*TEXTS, "here is an <audio> clip"])
    with pytest.raises(ConfigError, match=r"the 384 output rows of the teacher \(<audio> \(id 385\)\)") as caught:
        pack_corpus(config)
    assert "\n" not in str(caught.value)
    assert not Store(config.corpus_uri("train")).exists("manifest.json")


@pytest.mark.parametrize("bos", ["auto", "document", "window", "none"])
def test_where_the_bos_stands(beginning: PreTrainedTokenizerFast, tmp_path: Path, bos: str):
    config = make_config(tmp_path, save_teacher(tmp_path / "teacher", beginning), bos=bos)
    plain = make_config(tmp_path, tmp_path / "teacher", bos="none").model_copy(update={"name": "plain"})
    summary, without = pack_corpus(config), pack_corpus(plain)
    mode = "document" if bos == "auto" else bos
    ids, manifest = windows(config), PackedCorpus.open(config.corpus_uri("train")).manifest
    assert (summary["bos"], manifest.bos, manifest.tokenizer["bos_ids"]) == (mode, mode, [] if bos == "none" else [384])
    assert summary["tokens"] == without["tokens"] + (0 if bos == "none" else len(TEXTS))
    begun = ids[:, 1:][ids[:, :-1] == END] == 384
    assert len(begun) > 5
    assert begun.all() if mode != "none" else not (ids == 384).any()
    assert ids[0, 0] == 384 or mode == "none"
    if mode == "window":
        assert (ids[:, 0] == 384).all()
        documents = make_config(tmp_path, tmp_path / "teacher", bos="document").model_copy(update={"name": "documents"})
        pack_corpus(documents)
        assert ids[:, 1:].tolist() == windows(documents)[:, 1:].tolist()  # each token is predicted, as it was
    assert not ((ids[:, 1:] == END) & (ids[:, :-1] == END)).any()

    head = LogitCache.open(_cached(config)).manifest.corpus
    assert (head["bos"], inspect(config.cache_uri("default"))["bos"]) == (mode, mode)


def _cached(config: DistillConfig) -> str:
    cache_logits(config)
    return config.cache_uri("default")


def test_isolated_documents_keep_their_bos(beginning: PreTrainedTokenizerFast, tmp_path: Path):
    teacher = save_teacher(tmp_path / "teacher", beginning)
    config = make_config(tmp_path, teacher, statistics=("entropy",), isolate_documents=True)
    pack_corpus(config)
    rows = LogitCache.open(_cached(config)).read_rows(range(4))
    model = AutoModelForCausalLM.from_pretrained(teacher)
    for ids, entropy in zip(rows.input_ids, rows.statistics["entropy"]):
        starts = [0, *((ids[:-1] == END).nonzero().flatten() + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], SEQ_LEN]):
            if start == end:
                continue
            assert start == 0 or ids[start] == 384
            with torch.no_grad():
                alone = model(ids[None, start:end]).logits[0, :, :385].log_softmax(-1)
            assert torch.allclose(entropy[start:end], -(alone.exp() * alone).sum(-1), atol=4e-3)


def test_another_bos_is_refused_by_every_stage(beginning: PreTrainedTokenizerFast, tmp_path: Path):
    teacher = save_teacher(tmp_path / "teacher", beginning)
    packed = make_config(tmp_path, teacher, bos="none")
    pack_corpus(packed)
    cache_logits(packed)
    train_student(packed)
    changed = make_config(tmp_path, teacher)
    for stage in (pack_corpus, cache_logits):
        with pytest.raises(CacheMismatchError, match=r"corpus\.bos=none, not document: set corpus\.bos=none"):
            stage(changed)
    with pytest.raises(CacheMismatchError, match=r"corpus\.bos=none, not document: set corpus\.bos=none"):
        train_student(changed)
    with pytest.raises(CacheMismatchError, match=r"corpus\.bos=none, not document: set corpus\.bos=none"):
        evaluate_students(changed)


def test_a_corpus_of_before_has_no_bos(beginning: PreTrainedTokenizerFast, tmp_path: Path):
    teacher = save_teacher(tmp_path / "teacher", beginning)
    config = make_config(tmp_path, teacher, bos="none")
    pack_corpus(config)
    for split in ("train", "eval"):
        store = Store(config.corpus_uri(split))
        content = records.read(store, "manifest.json")
        assert content is not None
        del content["bos"], content["tokenizer"]["bos_ids"]
        records.write(store, "manifest.json", content)
        manifest = PackedCorpus.open(store.uri).manifest
        assert (manifest.bos, manifest.digest) == ("none", records.digest(content))
    assert pack_corpus(config)["skipped"]
    cache_logits(config)
    train_student(config)
    evaluate_students(config)
    with pytest.raises(CacheMismatchError, match=r"corpus\.bos=none, not document: set corpus\.bos=none"):
        pack_corpus(make_config(tmp_path, teacher))


def test_another_token_that_begins_texts_is_refused(beginning: PreTrainedTokenizerFast, tmp_path: Path):
    teacher = save_teacher(tmp_path / "teacher", beginning)
    config = make_config(tmp_path, teacher)
    pack_corpus(config)
    file = teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = None
    file.write_text(json.dumps(content))
    with pytest.raises(CacheMismatchError, match=r"corpus\.bos=document, not none"):
        pack_corpus(config)


def test_an_implausible_teacher_is_named_after_the_first_part(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = make_config(tmp_path, save_teacher(tmp_path / "teacher", tokenizer))
    pack_corpus(config)
    with caplog.at_level(logging.WARNING):
        cache_logits(config)
    warned = [record.getMessage() for record in caplog.records if "teacher's loss" in record.getMessage()]
    assert len(warned) == 1  # a random teacher: a guess
    assert "nats/token, a guess among 384 ids has 5.95: check corpus.bos (BOS), the conversion" in warned[0]


def test_redone_parts_have_the_same_loss_byte_for_byte(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    config = make_config(tmp_path, save_teacher(tmp_path / "teacher", tokenizer))
    pack_corpus(config)
    folder = Path(_cached(config))
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "manifest.json").unlink()
    (folder / "parts" / "part-00001.json").unlink()
    cache_logits(config)
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    shutil.rmtree(folder)
    cache_logits(config)
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
