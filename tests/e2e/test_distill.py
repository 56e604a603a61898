"""The whole way as a user starts it: `python -m flows.distill CONFIG.yaml`, then what is left on disk and in MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

METRICS = {"lm_loss", "ece", "top1_agreement", "acceptance", "kl_to_teacher"}
SEQ_LEN = 32


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    (folder / "text").mkdir()
    for name in sorted(topics)[:12]:
        (folder / "text" / f"{name}.txt").write_text(topics[name])
    config = {
        "name": "tiny",
        "storage": {"root": str(folder / "store")},
        "corpus": {
            "source": {"kind": "text", "uri": str(folder / "text")},
            "seq_len": SEQ_LEN,
            "max_windows": 64,
            "eval_windows": 8,
            "windows_per_part": 32,
        },
        "teacher": {"model": str(tiny_teacher_dir), "dtype": "float32"},
        "samplings": {"sampled": {"num_samples": 8}, "top": {"method": "top_k", "k": 4}},
        "train": {"steps": 4, "global_batch": 8, "precision": "float32"},
        "students": {
            "ce": {"objective": {"kind": "ce"}},
            "full": {"objective": {"kind": "full_kd"}},
            "sparse": {"sampling": "sampled"},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def distill(config_path: Path) -> tuple[dict, str]:
    """The JSON result of the flow, and its log."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.distill", str(config_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PREFECT_HOME": str(config_path.parent / "prefect")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


def test_distils_reports_and_skips_what_is_done(config_path: Path) -> None:
    result, _ = distill(config_path)
    home = config_path.parent / "store" / "tiny"
    assert set(result["metrics"]) - {"skipped"} == {"teacher", "ce", "full", "sparse"}
    for name, metrics in result["metrics"].items():
        if name != "skipped":
            assert set(metrics) >= METRICS
    assert result["metrics"]["teacher"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert (home / "report.html").stat().st_size > 1_000_000  # plotly is inside

    again, log = distill(config_path)
    assert again["metrics"] == result["metrics"] | {"skipped": True}
    for skipped in ("corpus", "sampled", "top", "ce", "full", "sparse"):
        assert f"{skipped}: already there and matching, skipped" in log


def test_the_loss_of_an_exported_student_can_be_recomputed_with_transformers_alone(config_path: Path) -> None:
    from rskd.corpus.packed_corpus import PackedCorpus

    result, _ = distill(config_path)
    home = config_path.parent / "store" / "tiny"
    corpus = PackedCorpus.open(str(home / "corpus" / "eval"))
    windows = torch.from_numpy(corpus.read_rows(range(corpus.num_rows)).input_ids).long()
    model = AutoModelForCausalLM.from_pretrained(home / "students" / "sparse")
    vocab_size = corpus.manifest.tokenizer["vocab_size"]
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits[..., :vocab_size]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert result["metrics"]["sparse"]["lm_loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_mlflow_has_one_parent_and_a_child_for_each_stage(config_path: Path) -> None:
    from mlflow import MlflowClient

    distill(config_path)
    client = MlflowClient(f"sqlite:///{config_path.parent / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rskd")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    stages = [run.data.tags["rskd.stage"] for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert sorted(stages) == ["cache", "evaluate", "pack", "train", "train", "train"]
    trained = next(run for run in runs if run.data.tags.get("rskd.student") == "sparse")
    assert {"loss", "lr", "grad_norm", "tokens_per_s"} <= trained.data.metrics.keys()
    assert len(client.get_metric_history(trained.info.run_id, "loss")) == 4
    assert trained.inputs.dataset_inputs
