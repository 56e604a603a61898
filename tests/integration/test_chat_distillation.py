"""A distillation on conversations: the loss is on what the assistant wrote, at every stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_runs import TEMPLATE, made, make_chat_teacher, write_jsonl
from tiny_runs import tiny_settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd.cache.reader import LogitCache
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import CacheMismatchError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import Order
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher

SAMPLINGS: dict[str, dict[str, Any]] = {
    "default": {"num_samples": 12, "statistics": ["label_logprob", "top1"]},
    "compact": {"num_samples": 12, "layout": "compact"},
    "top_k": {"method": "top_k", "k": 5},
}
MakeConfig = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def chat_teacher_dir(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Path:
    return make_chat_teacher(tmp_path_factory.mktemp("chat") / "teacher", tiny_teacher_dir)


@pytest.fixture
def make_config(tmp_path: Path, chat_teacher_dir: Path) -> MakeConfig:
    source = write_jsonl(tmp_path / "text" / "a.jsonl", made(60))

    def make(**sections: Any) -> DistillConfig:
        corpus = {"kind": "chat", "source": {"kind": "jsonl", "uri": str(source.parent)}, "seq_len": 127}
        corpus |= {"eval_windows": 3, "windows_per_part": 8} | sections.pop("corpus", {})
        sections = {"samplings": SAMPLINGS} | sections
        return validate_config(tiny_settings(tmp_path, chat_teacher_dir, corpus=corpus, **sections))

    return make


def test_the_teacher_samples_where_there_is_a_loss_as_it_would_anywhere(make_config: MakeConfig):
    config = make_config()
    pack_corpus(config)
    summaries = cache_logits(config)
    corpus = PackedCorpus.open(config.corpus_uri("train"))
    windows = corpus.read_rows(np.arange(corpus.num_rows))
    has_loss = windows.has_loss
    share = has_loss.mean()
    assert 0.2 < share < 0.6

    manifest = corpus.manifest
    teacher = TransformersTeacher.load(config.teacher, model_dir=config.teacher.model, isolated=True)
    samplings = {name: Sampling.of(one.model_dump()) for name, one in config.cache_samplings.items()}
    order = Order(samplings, ("label_logprob", "top1"), manifest.tokenizer["vocab_size"])
    input_ids, row_ids = torch.from_numpy(windows.input_ids).long(), torch.from_numpy(windows.row_ids)
    everywhere = teacher.sample(
        input_ids, position_keys(row_ids, corpus.seq_len), order, manifest.tokenizer["end_of_text_id"]
    )
    for name, sampling in samplings.items():
        assert verify(config.cache_uri(name)).problems == []
        cache = LogitCache.open(config.cache_uri(name))
        rows = cache.read_rows(range(corpus.num_rows))
        assert np.array_equal(rows.loss_mask, has_loss)
        expected = everywhere.drawn[name].targets(sampling).to_dense(cache.vocab_size)[has_loss.flatten()]
        found = rows.targets.to_dense(cache.vocab_size)[rows.loss_mask]
        if name == "top_k":
            assert torch.allclose(found, expected, atol=1e-3)
        else:
            assert torch.equal(found, expected)
        assert cache.manifest.corpus["loss_on"] == "assistant"
        assert cache.manifest.corpus["chat_template"].startswith("sha256:")
        assert summaries[name]["loss_tokens"] == has_loss.sum()
        assert summaries[name]["tokens"] == has_loss.size
    top1 = LogitCache.open(config.cache_uri("default")).read_rows(range(corpus.num_rows)).statistics["top1"]
    assert torch.equal(top1[torch.from_numpy(has_loss)], everywhere.statistics["top1"][has_loss.flatten()])
    label_logprob = everywhere.statistics["label_logprob"].double().numpy()[has_loss.flatten()]
    assert summaries["default"]["teacher_lm_loss"] == pytest.approx(-label_logprob.mean(), rel=1e-6)
    assert all(summary["skipped"] for summary in cache_logits(config).values())


def test_a_cache_grows_with_its_conversations_and_knows_its_mask(make_config: MakeConfig, tmp_path: Path):
    config = make_config()
    pack_corpus(config)
    cache_logits(config)
    before = [part.sha256 for part in LogitCache.open(config.cache_uri("default")).manifest.parts]
    write_jsonl(tmp_path / "text" / "b.jsonl", made(30, seed=1))
    pack_corpus(config)
    grown = cache_logits(config)
    manifest = LogitCache.open(config.cache_uri("default")).manifest
    assert [part.sha256 for part in manifest.parts][: len(before)] == before
    assert manifest.generation == 1
    assert grown["default"]["loss_tokens"] == manifest.loss_tokens > 0
    assert verify(config.cache_uri("default")).problems == []

    other = make_config(corpus={"loss_on": "last_assistant"})
    with pytest.raises(CacheMismatchError, match="loss_on=assistant, not last_assistant"):
        cache_logits(other)


def test_a_student_learns_the_answers_and_stops_after_them(make_config: MakeConfig, chat_teacher_dir: Path):
    students = {
        "ce": {"objective": {"kind": "ce"}},
        "rskd": {"objective": {"ce_weight": 0.1, "hard_easy_ratio": 2.0}},
        "compact": {"sampling": "compact", "objective": {"ce_weight": 0.1}},
    }
    config = make_config(students=students, train={"steps": 6, "global_batch": 4, "lr": 0.01, "micro_batch": 1})
    pack_corpus(config)
    cache_logits(config)
    summaries = {name: train_student(config, name) for name in students}
    for name, summary in summaries.items():
        assert summary["tokens"] == 6 * 4 * 127
        log = Path(config.student_uri(name), "training_log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in log]
        assert losses[-1] < losses[0]
        assert 5 < losses[0] < 9  # a mean over the tokens with a loss: over all positions it would be a third of that
    assert train_student(config, "rskd")["skipped"]

    student = AutoModelForCausalLM.from_pretrained(config.student_uri("ce"))
    tokenizer = AutoTokenizer.from_pretrained(config.student_uri("ce"))
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert student.generation_config.eos_token_id == ends
    assert tokenizer.chat_template == TEMPLATE
    prompt = tokenizer.apply_chat_template(made(1)[0][:1], add_generation_prompt=True, return_tensors="pt")
    made_ids = student.generate(**prompt, max_new_tokens=5)
    assert made_ids.shape[1] > prompt["input_ids"].shape[1]

    with pytest.raises(CacheMismatchError, match="loss_on=assistant, not all"):
        train_student(make_config(students=students, corpus={"loss_on": "all"}), "ce")
