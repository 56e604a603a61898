"""Students and teacher evaluated in one Ray task on held-out windows, from what is on disk to evaluation.json."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rskd import records
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import CorpusManifest, PackedCorpus, write_manifest, write_part
from rskd.errors import CacheMismatchError, ConfigError, MissingOutputError
from rskd.evaluation import kept_states, passages, window_values
from rskd.evaluation.results import read_measured
from rskd.evaluation.window_values import METRICS
from rskd.jobs.evaluate import evaluate_students, evaluation_run
from rskd.jobs.evaluate_worker import EvaluationRun, Findings, evaluate_windows, joined
from rskd.jobs.report import write_report
from rskd.lineage.inputs import Inputs
from rskd.lineage.student import open_source, student_recipe
from rskd.models.tokenizer import load_tokenizer, tokenizer_fingerprint
from rskd.plan import Resources, plan_evaluation, planned_evaluate
from rskd.storage import Store

SEQ_LEN, VOCAB_SIZE, END = 16, 384, 0
WITHOUT_RAY = {"ray": {"enabled": False}, "train": {"workers": 0}, "tracking": {"enabled": False}}


def make_config(root: Path, teacher: Path, **sections) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {"source": {"kind": "python_docs"}, "seq_len": SEQ_LEN},
            "teacher": {"model": str(teacher), "dtype": "float32"},
            "students": {"near": {"objective": {"kind": "full_kd"}}, "far": {"objective": {"kind": "ce"}}},
            "evaluate": {"batch_windows": 3},
            **sections,
        }
    )


def pack(config: DistillConfig, num_windows: int = 7) -> np.ndarray:
    """Windows of two random documents each as either split of `config`'s corpus."""
    rng = np.random.default_rng(0)
    windows = rng.integers(1, VOCAB_SIZE, (num_windows, SEQ_LEN + 1), dtype=np.int32)
    windows[:, 5] = END
    fingerprint = tokenizer_fingerprint(load_tokenizer(config.teacher.model))
    head = {
        "format_version": 1,
        "source": config.corpus.source.model_dump(),
        "tokenizer": {"name": "t", "fingerprint": fingerprint, "vocab_size": VOCAB_SIZE, "end_of_text_id": END},
        "seq_len": SEQ_LEN,
        "seed": 0,
        "isolate_documents": config.corpus.isolate_documents,
        "windows_per_part": 256,
        "rows_per_group": 16,
        "eval_threshold": 0,
    }
    group = {"documents": 1, "tokens": windows.size, "dropped_tail_tokens": 0, "windows": num_windows}
    for split in ("train", "eval"):
        store = Store(config.corpus_uri(split))
        manifest = CorpusManifest.of(head, [group], [write_part(store, 0, 0, windows, rows_per_group=16)])
        write_manifest(store, manifest)
    return windows


def save_student(config: DistillConfig, student: str, teacher: Path, noise: float) -> None:
    """The teacher with noise on its weights, as `rskd train` leaves a student."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(config.student_uri(student))
    store = Store(config.student_uri(student))
    store.write("training_log.jsonl", b'{"step": 1, "loss": 6.0, "tokens": 32}\n')
    inputs = Inputs(config)
    recipe = student_recipe(inputs, student, open_source(inputs, student), balances_router=False)
    records.write(store, "rskd.json", {"recipe": recipe, "summary": {"noise": noise, "tokens_per_s": 1.0}})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> tuple[DistillConfig, np.ndarray]:
    config = make_config(tmp_path_factory.mktemp("evaluate_job"), tiny_teacher_dir)
    windows = pack(config)
    save_student(config, "near", tiny_teacher_dir, noise=0.02)
    save_student(config, "far", tiny_teacher_dir, noise=0.2)
    return config, windows


def test_evaluates_tracks_and_reports(distilled: tuple[DistillConfig, np.ndarray]):
    config, windows = distilled
    found = evaluate_students(config)
    assert found.pop("skipped") is False
    assert set(found) == {"teacher", "near", "far"}
    assert set(found["teacher"]) == set(METRICS)
    assert found["teacher"]["kl_to_teacher"] == 0
    assert 0 < found["near"]["kl_to_teacher"] < found["far"]["kl_to_teacher"]
    assert found["near"]["acceptance"] > found["far"]["acceptance"]
    assert (found["far"]["pct_ce_to_fullkd"], found["near"]["pct_ce_to_fullkd"]) == (0, 100)

    student = AutoModelForCausalLM.from_pretrained(config.student_uri("near"))
    tokens = torch.from_numpy(windows).long()
    with torch.no_grad():
        logits = student(tokens[:, :-1]).logits[..., :VOCAB_SIZE]
    assert found["near"]["lm_loss"] == pytest.approx(
        F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:]).item(), abs=1e-5
    )

    client = MlflowClient(f"sqlite:///{config.storage.root}/mlflow.db")
    runs = client.search_runs(["1"], "tags.`rskd.stage` = 'evaluate'")
    assert runs[0].data.metrics["near/acceptance"] == pytest.approx(found["near"]["acceptance"])
    assert list(Path(config.storage.root).glob("mlartifacts/*/artifacts/figures/reliability.html"))
    assert Path(write_report(config)).stat().st_size > 1_000_000

    assert evaluate_students(config) == found | {"skipped": True}


def test_without_ray_the_metrics_are_the_same(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    by_ray = evaluate_students(make_config(root, tiny_teacher_dir))
    Path(root, "tiny", "evaluation.json").unlink()
    here = evaluate_students(make_config(root, tiny_teacher_dir, **WITHOUT_RAY))
    for model in ("teacher", "near", "far"):
        assert here[model] == by_ray[model]


def evaluated(config: DistillConfig) -> tuple[bytes, ...]:
    """Evaluate anew; all that is written: the figures, and what is known of single windows and tokens."""
    home = Path(config.home)
    (home / "evaluation.json").unlink(missing_ok=True)
    evaluate_students(config)
    return tuple(file.read_bytes() for file in (home / "evaluation.json", *sorted((home / "evaluation").iterdir())))


def test_any_number_of_workers_writes_the_same_bytes(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    expected = evaluated(make_config(root, tiny_teacher_dir, **WITHOUT_RAY, evaluate={"batch_windows": 2}))
    assert len(expected) == 3
    for workers in (2, 3):  # one: above
        settings = {"evaluate": {"batch_windows": 2, "workers": workers}, "tracking": {"enabled": False}}
        assert evaluated(make_config(root, tiny_teacher_dir, **settings)) == expected


def test_windows_are_shared_out_in_whole_batches(
    distilled: tuple[DistillConfig, np.ndarray], tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    config = distilled[0]
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    plan = replace(plan_evaluation(config, "", Resources(), lambda cap, plan: cap), batch=2)
    run = evaluation_run(config, corpus, str(tiny_teacher_dir), ["far"], planned_evaluate(config.evaluate, plan))
    ends = {
        workers: [(part.windows.start, part.windows.stop) for part in run.shared_out(workers)] for workers in (1, 3)
    }
    assert ends == {1: [(0, 7)], 3: [(0, 2), (2, 4), (4, 7)]}
    assert [len(part.windows) for part in run.shared_out(9)] == [2, 2, 2, 1]

    def found(workers: int) -> Findings:
        parts = [list(evaluate_windows(part)) for part in run.shared_out(workers)]
        assert sum(sum(updates[:-1]) for updates in parts) == 7 * 2  # windows of two models
        return joined([updates[-1] for updates in parts])

    expected = found(1)
    monkeypatch.setattr(kept_states, "MOST_BYTES", 4000)  # all models take turns, two batches of 2 KB at a time
    for name, model in found(2).items():
        assert {metric: model[metric] for metric in METRICS} == {m: expected[name][m] for m in METRICS}
        for kind, to_parquet in (("window_values", window_values.to_parquet), ("passages", passages.to_parquet)):
            assert to_parquet({name: model[kind]}) == to_parquet({name: expected[name][kind]})


def test_one_model_is_loaded_at_a_time(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    def loaded() -> int:
        return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())

    beside: dict[str, list[int]] = {"load_teacher": [], "load_student": []}
    before = loaded()
    for method, counts in beside.items():
        load = getattr(EvaluationRun, method)
        monkeypatch.setattr(
            EvaluationRun, method, lambda run, *name, f=load, c=counts: c.append(loaded() - before) or f(run, *name)
        )
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    evaluated(make_config(root, tiny_teacher_dir, **WITHOUT_RAY))
    assert beside == {"load_teacher": [0], "load_student": [0, 0]}
    assert loaded() == before
    for counts in beside.values():
        counts.clear()
    speculative = {"draft_tokens": 2, "new_tokens": 6, "windows": 1}
    evaluate_students(make_config(root, tiny_teacher_dir, **WITHOUT_RAY, evaluate={"speculative": speculative}))
    assert beside == {"load_teacher": [0], "load_student": [1, 1]}


def test_another_precision_is_another_figure(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    config = make_config(root, tiny_teacher_dir, **WITHOUT_RAY)
    evaluated(config)
    exact = evaluate_students(config)
    recipe = records.read(Store(config.home), "evaluation.json")["recipe"]  # as before there was a choice
    assert set(recipe) == {"teacher", "students", "corpus", "num_windows", "num_bins"}

    half = make_config(root, tiny_teacher_dir, **WITHOUT_RAY, evaluate={"dtype": "bfloat16"})
    with pytest.raises(CacheMismatchError, match="was made with dtype=float32, not bfloat16: run rskd evaluate"):
        write_report(half)
    found = evaluate_students(half)
    assert found["skipped"] is False
    assert found["teacher"] == exact["teacher"]
    assert found["far"]["lm_loss"] != exact["far"]["lm_loss"]
    assert found["far"]["lm_loss"] == pytest.approx(exact["far"]["lm_loss"], rel=0.02)
    assert records.read(Store(config.home), "evaluation.json")["recipe"] == recipe | {"dtype": "bfloat16"}
    assert evaluate_students(half)["skipped"] is True


def test_single_windows_are_kept_and_what_is_lost_is_made_again(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    config = make_config(root, tiny_teacher_dir, **WITHOUT_RAY)
    Path(root, "tiny", "evaluation.json").unlink(missing_ok=True)
    found = evaluate_students(config)
    measured = read_measured(config)
    assert list(measured) == ["teacher", "near", "far"]
    for name, model in measured.items():
        assert len(model.values.window) == 7
        for metric in METRICS:
            assert model.values.metric(metric) == pytest.approx(found[name][metric], abs=1e-9)

    [file] = Path(root, "tiny", "evaluation").glob("windows-*.parquet")
    data = file.read_bytes()
    file.unlink()
    assert evaluate_students(config) == found
    assert file.read_bytes() == data

    # An evaluation of before there was such a file is not made again for it.
    store = Store(config.home)
    older = records.read(store, "evaluation.json")
    assert older is not None
    records.write(store, "evaluation.json", {key: older[key] for key in ("recipe", "models", "windows", "tokens")})
    file.unlink()
    assert evaluate_students(config) == found | {"skipped": True}


def test_a_changed_student_is_evaluated_again(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    config = make_config(root, tiny_teacher_dir)
    before = evaluate_students(config)
    save_student(config, "near", tiny_teacher_dir, noise=0.1)
    after = evaluate_students(config)
    assert after["skipped"] is False
    assert after["near"]["kl_to_teacher"] > before["near"]["kl_to_teacher"]
    assert after["far"]["kl_to_teacher"] == pytest.approx(before["far"]["kl_to_teacher"])

    fewer = evaluate_students(make_config(root, tiny_teacher_dir, evaluate={"max_windows": 2}))
    assert fewer["skipped"] is False
    content = records.read(Store(config.home), "evaluation.json")
    assert content is not None
    assert (content["windows"], content["tokens"]) == (2, 2 * SEQ_LEN)


def test_isolated_documents_change_the_loss(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    config = make_config(
        tmp_path,
        tiny_teacher_dir,
        corpus={"source": {"kind": "python_docs"}, "seq_len": SEQ_LEN, "isolate_documents": True},
    )
    pack(config)
    for student in config.student_specs:
        save_student(config, student, tiny_teacher_dir, noise=0)
    isolated, joined = evaluate_students(config), evaluate_students(distilled[0])
    assert isolated["teacher"]["lm_loss"] != joined["teacher"]["lm_loss"]
    assert isolated["near"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)  # the student is isolated alike


def test_says_what_is_missing(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path, capfd: pytest.CaptureFixture
):
    config = make_config(tmp_path, tiny_teacher_dir)
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        evaluate_students(config)
    pack(config)
    with pytest.raises(MissingOutputError, match="run rskd train --student near"):
        evaluate_students(config)
    with pytest.raises(ConfigError, match=r"correct teacher\.model"):
        evaluate_students(make_config(tmp_path, tmp_path / "nowhere"))
    shorter = make_config(tmp_path, tiny_teacher_dir, corpus={"source": {"kind": "python_docs"}, "seq_len": 8})
    with pytest.raises(CacheMismatchError, match="seq_len=16, not 8"):
        evaluate_students(shorter)
    with pytest.raises(ConfigError, match=r"evaluate\.gpus=64"):
        evaluate_students(
            make_config(distilled[0].storage.root, tiny_teacher_dir, evaluate={"gpus": 64, "max_windows": 1})
        )
    assert not Path(config.evaluation_uri).exists()
    assert capfd.readouterr().out == ""  # stdout belongs to --json


def test_speculation_and_tasks_are_parts_of_their_own(
    distilled: tuple[DistillConfig, np.ndarray], tmp_path: Path, tiny_teacher_dir: Path
):
    pytest.importorskip("lm_eval")
    root = shutil.copytree(distilled[0].storage.root, tmp_path / "copy")
    (tmp_path / "examples.jsonl").write_text('{"text": "The with statement", "last": " is"}\n' * 2)
    for task, data in (("continue", tmp_path / "examples.jsonl"), ("lost", tmp_path / "nowhere.jsonl")):
        (tmp_path / f"{task}.yaml").write_text(
            f"task: {task}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
            'output_type: loglikelihood\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{last}}"\ntarget_delimiter: ""\n'
            "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]\n"
        )
    wanted = {
        "batch_windows": 3,
        "speculative": {"draft_tokens": 2, "new_tokens": 6, "windows": 2},
        "task_path": str(tmp_path),
    }
    config = make_config(root, tiny_teacher_dir, evaluate=wanted | {"tasks": ["lost", "continue"]})
    with pytest.raises(ConfigError, match="the data of lost cannot be had"):
        evaluate_students(config)

    # Nothing of the rest was lost: without that task there is nothing left to do.
    config = make_config(root, tiny_teacher_dir, evaluate=wanted | {"tasks": ["continue"]})
    found = evaluate_students(config)
    assert found["skipped"] is True
    assert found["near"]["speculative"]["rounds"] >= 4
    assert "speculative" not in found["teacher"]
    assert 1 < found["teacher"]["tasks"]["continue"]["perplexity"] < VOCAB_SIZE**4
    client = MlflowClient(f"sqlite:///{config.storage.root}/mlflow.db")
    [run] = client.search_runs(["1"], "tags.`rskd.stage` = 'evaluate' and attributes.status = 'FAILED'")
    assert run.data.metrics["near/speculative/rounds"] == found["near"]["speculative"]["rounds"]
    assert "far/continue/acc" in run.data.metrics
    page = Path(write_report(config)).read_text()
    assert "Speculative decoding" in page
    assert "Downstream tasks" in page
