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

from rskd.cache.codec import PartData
from rskd.cache.inspection import inspect
from rskd.cache.reader import LogitCache
from rskd.cache.rows import CacheRows
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.dashboard.evaluation import read_evaluation
from rskd.errors import CacheMismatchError, ConfigError
from rskd.estimate import BYTES_PER_POSITION, estimate, probe
from rskd.evaluation.audit import audit_cache
from rskd.evaluation.results import read_measured
from rskd.jobs.cache import cache_logits
from rskd.jobs.compare_gradients import compare_gradients
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.report import write_report
from rskd.jobs.train import train_student
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs
from rskd.lineage.status import status
from rskd.models.causal_lm import hidden_states, output_head
from rskd.models.load import num_parameters
from rskd.rng import permutation, position_keys
from rskd.storage import Store
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


@pytest.mark.e2e
def test_a_student_learns_the_answers_and_stops_after_them(make_config: MakeConfig, chat_teacher_dir: Path):
    students = {
        "ce": {"objective": {"kind": "ce"}},
        "rskd": {"objective": {"ce_weight": 0.1, "hard_easy_ratio": 2.0}},
        "compact": {"sampling": "compact", "objective": {"ce_weight": 0.1}},
    }
    config = make_config(students=students, train={"steps": 20, "global_batch": 4, "lr": 0.003, "micro_batch": 1})
    pack_corpus(config)
    cache_logits(config)
    summaries = {name: train_student(config, name) for name in students}
    for name, summary in summaries.items():
        assert summary["tokens"] == 20 * 4 * 127
        log = Path(config.student_uri(name), "training_log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in log]
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
        assert 4 < losses[0] < 9  # a mean over the tokens with a loss: over all positions it would be a third of that
    assert train_student(config, "rskd")["skipped"]

    student = AutoModelForCausalLM.from_pretrained(config.student_uri("ce"))
    tokenizer = AutoTokenizer.from_pretrained(config.student_uri("ce"))
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert student.generation_config.eos_token_id == ends
    assert tokenizer.chat_template == TEMPLATE
    prompt = tokenizer.apply_chat_template(made(1)[0][:1], add_generation_prompt=True, return_tensors="pt")
    for end in ends:
        made_ids = student.generate(**prompt, max_new_tokens=5, do_sample=False, sequence_bias={(end,): 1000.0})
        assert made_ids[0, prompt["input_ids"].shape[1] :].tolist() == [end]

    with pytest.raises(CacheMismatchError, match="loss_on=assistant, not all"):
        train_student(make_config(students=students, corpus={"loss_on": "all"}), "ce")


def test_an_honest_cache_of_conversations_passes_its_audit_and_others_do_not(
    make_config: MakeConfig, tmp_path: Path, chat_teacher_dir: Path
):
    write_jsonl(tmp_path / "text" / "b.jsonl", made(200, seed=1))
    config = make_config(samplings={"default": {"num_samples": 12}, "top_k": {"method": "top_k", "k": 5}})
    pack_corpus(config)
    cache_logits(config)
    cache = LogitCache.open(config.cache_uri("default"))
    report = audit_cache(cache.uri, str(chat_teacher_dir), rows=16)
    assert report.ok, report
    assert report.positions == cache.read_rows(permutation(cache.num_rows, seed=0)[:16]).loss_mask.sum()
    assert not audit_cache(config.cache_uri("top_k"), str(chat_teacher_dir), rows=16).ok

    corpus = open_corpus(Inputs(config), "train")
    for name, change in {"shifted": _shifted, "of other tokens": _permuted}.items():
        writer = CacheWriter(str(tmp_path / name), manifest_head=cache.manifest.head)
        for part in corpus.manifest.parts:
            rows = cache.read_rows(range(part.first_row, part.first_row + part.rows))
            writer.commit_part(part.index, change(rows), corpus_sha256=part.sha256)
        writer.finish(corpus.manifest.parts)
        wrong = audit_cache(str(tmp_path / name), str(chat_teacher_dir), rows=16)
        assert not wrong.ok, (name, wrong)


def _part(rows: CacheRows, ids: np.ndarray, counts: np.ndarray) -> PartData:
    return PartData(rows.row_ids.numpy(), rows.input_ids.int().numpy(), ids.astype(np.int32), counts, {})


def _shifted(rows: CacheRows) -> PartData:
    """Each position that has a loss has the targets of the one before it that has one."""
    ids, counts = rows.targets.ids.numpy().copy(), (rows.targets.weights * 12).round().int().numpy().copy()
    where = rows.loss_mask.numpy()
    ids[where], counts[where] = np.roll(ids[where], 1, axis=0), np.roll(counts[where], 1, axis=0)
    return _part(rows, ids, counts)


def _permuted(rows: CacheRows) -> PartData:
    counts = (rows.targets.weights * 12).round().int().numpy()
    return _part(rows, np.where(counts > 0, (rows.targets.ids.numpy() + 7) % 384, 0), counts)


@pytest.mark.e2e
def test_a_student_is_evaluated_where_there_is_a_loss(make_config: MakeConfig):
    """From packing to the report, with the figures that one computes from the model and the held-out windows."""
    students = {"ce": {"objective": {"kind": "ce"}}, "rskd": {"objective": {"ce_weight": 0.1}}}
    config = make_config(students=students, train={"steps": 4, "global_batch": 4}, evaluate={"max_windows": None})
    pack_corpus(config)
    cache_logits(config)
    for name in students:
        train_student(config, name)
    found = evaluate_students(config)
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    windows = corpus.read_rows(np.arange(corpus.num_rows))
    ids, has_loss = torch.from_numpy(windows.input_ids).long(), torch.from_numpy(windows.has_loss)
    student = AutoModelForCausalLM.from_pretrained(config.student_uri("ce"))
    separator, vocab_size = (corpus.manifest.tokenizer[key] for key in ("end_of_text_id", "vocab_size"))
    with torch.no_grad():
        logits = output_head(student).logits(hidden_states(student, ids[:, :-1], separator), vocab_size)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert found["ce"]["lm_loss"] == pytest.approx(losses[has_loss].mean().item(), abs=1e-5)
    assert found["teacher"]["kl_to_teacher"] == 0
    kept = read_measured(config)["ce"].values
    assert kept.tokens.tolist() == has_loss.sum(1).tolist()
    assert evaluate_students(config)["skipped"]

    with pytest.raises(ConfigError, match=r"evaluate\.speculative continues texts"):
        make_config(evaluate={"speculative": {"new_tokens": 4}})
    with pytest.raises(ConfigError, match="gradients are compared on texts"):
        compare_gradients(config, "ce", windows=8)
    assert probe(config, windows=2)["random"].means[0] > 1
    page = Path(write_report(config)).read_text()
    assert f"{has_loss.sum():,} of {has_loss.numel():,} tokens, which have a loss" in page
    assert f"{inspect(config.cache_uri('default'))['loss_tokens']:,} with a loss" in page
    assert {one.state for one in status(config)} == {"done"}
    shown = read_evaluation(Store(config.home))["models"]["ce"]["windows"]
    assert shown["tokens"] == has_loss.sum(1).tolist()


def test_what_is_estimated_scales_with_the_tokens_that_have_a_loss(make_config: MakeConfig):
    config = make_config()
    before = estimate(config, tokens=10_000)
    assert before["corpus"]["loss_tokens"] == 10_000
    pack_corpus(config)
    share = PackedCorpus.open(config.corpus_uri("train")).manifest.shares["loss_share"]
    after = estimate(config, tokens=10_000)
    assert after["corpus"]["loss_tokens"] == round(10_000 * share)
    for name, cache in after["caches"].items():
        targets = before["caches"][name]["bytes_per_token"] - BYTES_PER_POSITION
        assert cache["bytes_per_token"] == pytest.approx(BYTES_PER_POSITION + share * targets)
    head = 400 * 32
    slower, faster = (plan["teacher"]["tokens_per_s"] for plan in (before, after))
    parameters = num_parameters(config.teacher.model)
    assert faster / slower == pytest.approx(parameters / (parameters - (1 - share) * head))


def test_a_probe_of_windows_without_a_loss_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of one long question, which are not the first."""
    long = [{"role": "user", "content": "why? " * 2000}, {"role": "assistant", "content": "Because."}]
    write_jsonl(tmp_path / "text" / "a.jsonl", [long, *made(30)])
    config = make_config()
    pack_corpus(config)
    read = PackedCorpus.read_rows
    monkeypatch.setattr(PackedCorpus, "read_rows", lambda corpus, rows: read(corpus, np.asarray(rows) + 10))
    with pytest.raises(ConfigError, match=r"none of the first 2 windows of corpus .* has a position with a loss"):
        probe(config, windows=2)
