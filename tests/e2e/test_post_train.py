"""Post-training whole: tiny students, tuned on conversations, scored, rated by the rubric and by a scripted judge."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_runs import made, make_chat_teacher, write_jsonl
from prefect.testing.utilities import prefect_test_harness
from scripted_judge import answers_in, scripted_judge
from tiny_runs import tiny_settings, write_texts

from flows.post_train import app, post_train
from rskd.config import DistillConfig, load_config, validate_config
from rskd.config.distillation import merge
from rskd.errors import ConfigError, MissingOutputError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.start import check_start
from rskd.jobs.train import train_student
from rskd.lineage.status import status
from rskd.post_training.tuning import starting, tuned
from rskd.run_app import run

pytestmark = pytest.mark.e2e

TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> DistillConfig:
    """A distillation of three students, one of which was never trained."""
    root = tmp_path_factory.mktemp("before")
    write_texts(root / "text")
    students = {"ce": {"objective": {"kind": "ce"}}, "top": {"sampling": "top"}, "untrained": {"sampling": "top"}}
    samplings = {"top": {"method": "top_k", "k": 12}}
    corpus = {"seq_len": 128}
    config = validate_config(
        tiny_settings(root, tiny_teacher_dir, samplings=samplings, students=students, corpus=corpus)
    )
    pack_corpus(config)
    cache_logits(config)
    for student in ("ce", "top"):
        train_student(config, student)
    return config


@pytest.fixture
def tuning(tmp_path: Path, before: DistillConfig, tiny_teacher_dir: Path) -> dict[str, Any]:
    """Settings of a tuning on conversations, with a task and a set of prompts."""
    teacher = make_chat_teacher(tmp_path / "teacher", tiny_teacher_dir)
    source = write_jsonl(tmp_path / "chat" / "a.jsonl", made(60))
    (tmp_path / "tasks").mkdir()
    examples = [{"question": f"one {n}", "choices": ["two", "three"], "answer": n % 2} for n in range(6)]
    data = tmp_path / "tasks" / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in examples))
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(TASK.format(data=data))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"one {n}?", "reference": "two ☃"}) + "\n" for n in range(3)))
    return tiny_settings(
        tmp_path,
        teacher,
        name="tuned",
        corpus={"kind": "chat", "source": {"kind": "jsonl", "uri": str(source.parent)}, "seq_len": 128},
        objective={"kind": "ce"},
        evaluate={"tasks": ["tiny_choice"], "task_path": str(tmp_path / "tasks")},
        generate={
            "prompt_sets": {"mine": {"kind": "own", "uri": str(prompts)}},
            "generations": 2,
            "max_new_tokens": 6,
        },
    )


def rows_of(config: DistillConfig) -> dict[tuple[str, str], str]:
    """What the tables say is ours: (table, metric) of the student that learned from labels."""
    with (Path(config.home) / "post_training.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["table"], row["metric"]): row["value"] for row in rows if (row["method"], row["source"]) == ("ce", "ours")
    }


def test_students_are_tuned_scored_and_rated_and_a_second_run_skips(before: DistillConfig, tuning: dict[str, Any]):
    pytest.importorskip("lm_eval")
    config = validate_config(tuning)
    found = post_train(config, before, ["ce", "top"])
    assert not found["skipped"]
    assert set(found["start"]) == {"teacher", "ce", "top", "skipped"}
    ours = rows_of(config)
    home = Path(config.home)
    start = json.loads((home / "start" / "evaluation.json").read_text())["models"]["ce"]
    after = json.loads((home / "evaluation.json").read_text())["models"]["ce"]
    assert float(ours["table7", "lm_loss"]) == pytest.approx(start["lm_loss"])
    assert float(ours["table7", "acceptance"]) == pytest.approx(100 * start["acceptance"])
    assert float(ours["table7", "sft_lm_loss"]) == pytest.approx(after["lm_loss"])
    scored = {
        name: json.loads((home / name / "task-tiny_choice.json").read_text())["models"]["ce"]["acc"]["value"]
        for name in ("start/evaluation", "evaluation")
    }
    assert float(ours["table7", "score"]) == pytest.approx(100 * scored["start/evaluation"])
    assert float(ours["table7", "sft_score"]) == pytest.approx(100 * scored["evaluation"])
    assert float(ours["table8", "set mine"]) == pytest.approx(found["rated"]["ce"]["mine"]["score"])
    assert 10 <= found["rated"]["ce"]["mine"]["score"] < 100
    page = (home / "post_training.md").read_text()
    assert "| CE: ce (cross-entropy, labels) |" in page
    assert "| Top-K 12: top (KD, top_k, k = 12) |" in page
    assert page.count("ROUGE-L rubric, no judge") >= 3
    assert not (home / "judgements").exists()
    assert not (Path(before.home) / "evaluation.json").exists()

    again = post_train(config, before, ["ce", "top"])
    assert again["skipped"]
    assert again["rated"]["ce"]["mine"] == found["rated"]["ce"]["mine"]
    stages = [stage for stage in status(load_config(home / "config.yaml")) if stage.stage != "report"]
    assert {(stage.state, stage.then) for stage in stages} == {("done", "skipped")}
    assert "cache" not in {stage.stage for stage in stages}  # cross-entropy reads none
    assert not (home / "caches").exists()


def test_a_judge_rates_in_place_of_the_rubric(
    before: DistillConfig, tuning: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def script(number: int, body: dict[str, Any]) -> str:
        return " ".join("8" if text == "two ☃" else "4" for text in answers_in(body))

    with scripted_judge(script) as judge:
        section = {"endpoint": judge.url, "model": "scripted"}
        settings = merge(tuning, {"judge": section, "evaluate": {"tasks": [], "task_path": None}})
        config = validate_config(settings)
        found = post_train(config, before, ["ce"])
        assert 0 < len(judge.bodies) <= 3 * 2 * 2  # prompts, answers, orders; equal answers are rated once
    assert found["rated"]["ce"]["mine"]["score"] == pytest.approx(50)
    page = (Path(config.home) / "post_training.md").read_text()
    assert "| 50.0 [50.0, 50.0] |" in page
    assert "rated (judge scripted)" in page
    assert "ROUGE" not in page


@pytest.mark.parametrize(
    ("changes", "students", "error", "message"),
    [
        ({}, ["ce", "nobody"], ConfigError, "student nobody is not in students"),
        ({}, ["untrained"], MissingOutputError, "run rskd train --student untrained"),
        ({"students": {"ce": {}}}, ["ce"], ConfigError, "remove the section, and choose by --student"),
        ({"corpus": {"seq_len": 512}}, ["ce"], ConfigError, "takes 256 positions but corpus.seq_len=512"),
        ({"corpus": {"source": {"uri": "/nowhere"}}}, ["ce"], ConfigError, "/nowhere"),
        ({"generate": {"prompt_sets": {"mine": {"uri": "/nowhere"}}}}, ["ce"], ConfigError, "/nowhere does not exist"),
        ({"judge": {"endpoint": "http://127.0.0.1:1/v1", "model": "j"}}, ["ce"], ConfigError, "OPENAI_API_KEY"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_any_work(
    before: DistillConfig,
    tuning: dict[str, Any],
    changes: dict[str, Any],
    students: list[str],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "tuning.yaml").write_text(yaml.safe_dump(merge(tuning, changes)))
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(before.model_dump(mode="json", exclude_unset=True)))
    options = [f"--student={name}" for name in students]
    arguments = [str(tmp_path / "tuning.yaml"), "--students-of", str(tmp_path / "before.yaml"), *options]
    code = run(lambda: app(arguments, standalone_mode=False))
    assert code == error.exit_code  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rskd: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "store" / "tuned").exists()


def test_a_tokenizer_that_gives_other_ids_is_refused(before: DistillConfig, tuning: dict[str, Any], tmp_path: Path):
    config = tuned(validate_config(tuning), before, ["ce"])
    check_start(config, starting(before, config))  # whose teacher has two more special tokens
    file = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"the students of tiny know token '[ab]' as \d+, the tokenizer of tuned as"):
        check_start(config, starting(before, config))
