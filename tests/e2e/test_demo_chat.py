"""`make demo-chat` with a tiny teacher: from the student of a demo to its table, answers and report, and once more."""

import json
from pathlib import Path

import pytest
from chat_runs import made, make_chat_teacher, write_jsonl
from prefect.testing.utilities import prefect_test_harness
from tiny_runs import tiny_settings, write_texts

from flows.demo import CONFIGS
from flows.demo_chat import demo_chat
from rskd.config import DistillConfig, load_config, validate_config
from rskd.errors import ConfigError
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.storage import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def demo_config(root: Path, teacher: Path) -> DistillConfig:
    """The demo on conversations as it is shipped, but for its models, its sizes and where it writes."""
    folder = root / "conversations"
    changed = {
        "storage.root": root / "store",
        "corpus.source.uri": folder / "conversations.jsonl",
        "corpus.seq_len": 64,
        "corpus.max_windows": 4,
        "corpus.eval_windows": 2,
        "teacher.model": teacher,
        "teacher.revision": "null",
        "teacher.threads_per_worker": 1,
        "student.model": root / "store" / "demo" / "students" / "rskd",
        "train.steps": 2,
        "train.workers": 0,
        "train.threads_per_worker": 1,
        "generate.prompt_sets.held_out.uri": folder / "prompts.jsonl",
        "generate.max_new_tokens": 4,
        "ray.enabled": "false",
        "tracking.enabled": "false",
    }
    return load_config(CONFIGS / "demo-chat.yaml", [f"{key}={value}" for key, value in changed.items()])


def write_few_conversations(folder: Path) -> None:
    """In place of those from CPython's documentation, which are tested by themselves."""
    write_jsonl(folder / "conversations.jsonl", made(60))
    (folder / "prompts.jsonl").write_text('{"prompt": "One <or> two?", "reference": "Three & four."}\n')


def train_the_demos_student(root: Path, teacher: Path) -> None:
    write_texts(root / "text")
    student = {"name": "demo", "students": {"rskd": {"objective": {"kind": "ce"}}}}
    config = validate_config(tiny_settings(root, teacher, **student))
    pack_corpus(config)
    train_student(config, "rskd")


def test_tunes_answers_reports_and_skips(tmp_path: Path, tiny_teacher_dir: Path, capsys: pytest.CaptureFixture[str]):
    teacher = make_chat_teacher(tmp_path / "teacher", tiny_teacher_dir)
    config = demo_config(tmp_path, teacher)
    with pytest.raises(ConfigError, match="run make demo first"):
        demo_chat(config)
    train_the_demos_student(tmp_path, teacher)
    write_few_conversations(tmp_path / "conversations")
    with prefect_test_harness(server_startup_timeout=120):
        outcome = demo_chat(config)
        again = demo_chat(config)

    assert again == outcome  # its seconds are those of the run that did the work
    store = Store(config.home)
    assert json.loads(store.read("summary.json")) == outcome.data
    assert set(outcome.data) == {"teacher", "ce", "kd", "cache", "seconds"}
    assert 0 < outcome.data["cache"]["loss_tokens"] < outcome.data["cache"]["tokens"] == 4 * 64

    page = store.read("report.html").decode()
    assert outcome.rows["report"] == config.report_uri
    assert "Answers to held_out" in page
    assert "<th>prompt</th><th>reference</th><th>ce</th><th>kd</th><th>teacher</th>" in page
    assert all(text in page for text in ("One &lt;or&gt; two?", "Three &amp; four."))
    shown = capsys.readouterr().out
    assert shown.count("what the assistant says in held-out conversations") == 2
    assert all(f"{outcome.data[name]['lm_loss']:.4f}" in shown for name in ("teacher", "ce", "kd"))
