"""The dashboard has what the stages left behind: the same figures, and the state of each output."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from tiny_runs import tiny_settings, write_texts

from rskd import records
from rskd.cache.checks import keep_check, manifest_digest
from rskd.cache.inspection import inspect
from rskd.cache.verify import verify
from rskd.config import DistillConfig, validate_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.costs import recorded_costs
from rskd.dashboard.gather import gather
from rskd.dashboard.publish import write_dashboard
from rskd.errors import ConfigError
from rskd.evaluation.results import SPECULATIVE, task_file
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.promote import promote_student
from rskd.jobs.train import train_student
from rskd.models.tokenizer import load_tokenizer, token_text
from rskd.storage import Store
from rskd.tracking.connection import tracking_uri_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> DistillConfig:
    """A distillation of two students, of which one was promoted."""
    root = tmp_path_factory.mktemp("dashboard")
    write_texts(root / "text")
    students = {"ce": {"objective": {"kind": "ce"}}, "kd": {}}
    config = validate_config(tiny_settings(root, tiny_teacher_dir, students=students, tracking={"enabled": True}))
    pack_corpus(config)
    cache_logits(config)
    for student in students:
        train_student(config, student)
    evaluate_students(config)
    assert promote_student(config, "kd")["verdict"] == "PROMOTE"
    return config


@pytest.fixture
def copy(finished: DistillConfig, tmp_path: Path) -> Path:
    """The finished distillation in a root of its own."""
    shutil.copytree(finished.home, tmp_path / "store" / "tiny")
    return tmp_path / "store"


def rows(root: Path, kind: str, tracking_uri: str | None = None) -> dict[str, Any]:
    return {row["name"]: row for row in gather(str(root), tracking_uri)[kind]}


def stages(root: Path) -> dict[str, tuple[str, str]]:
    return {one["stage"]: (one["state"], one["reason"]) for one in rows(root, "distillations")["tiny"]["stages"]}


def test_the_page_holds_the_figures_of_the_outputs(finished: DistillConfig, tmp_path: Path):
    told = write_dashboard(finished.storage.root)
    assert told["dashboard"] == f"{finished.storage.root}/dashboard.html"
    assert (told["distillations"], told["caches"], told["students"], told["champions"]) == (1, 1, 2, 1)
    page = Path(told["dashboard"]).read_text()
    [embedded] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    data = json.loads(embedded)
    assert not re.search(r'(?:src|href)="https?:', page.split("<script>")[0])
    evaluation = json.loads(Path(finished.evaluation_uri).read_text())["models"]
    assert {row["name"] for row in data["students"]} == {"ce", "kd"}
    for student in data["students"]:
        shown = student["measured"]
        for metric in ("lm_loss", "kl_to_teacher", "ece", "acceptance", "standard_error", "reliability"):
            assert shown[metric] == evaluation[student["name"]][metric]
        assert len(shown["windows"]["lm_loss"]) == len(shown["windows"]["tokens"]) == 2
        assert student["curve"]["tokens"][-1] == student["tokens"] == 2 * 2 * 16
    assert [(row["cache"], row["method"]) for row in data["students"]] == [(None, None), ("default", "systematic")]
    found = inspect(finished.cache_uri("default"))
    [cache] = data["caches"]
    assert {key: cache[key] for key in ("bytes", "bytes_per_token", "digest")} == {
        key: found[key] for key in ("bytes", "bytes_per_token", "digest")
    }
    assert cache["students"] == ["kd"]
    [champion] = data["champions"]
    assert (champion["verdict"], champion["aliases"], champion["version"]) == ("PROMOTE", ["champion"], 1)
    judged = json.loads((Path(finished.home) / "promotions/kd.json").read_text())["decision"]
    assert champion["ledger"] == judged["ledger"]
    costs = recorded_costs(Store(finished.home))
    assert data["distillations"][0]["costs"].keys() == costs.keys() >= {"pack", "cache", "train ce", "train kd"}
    assert cache["cost"]["core_seconds"] == pytest.approx(costs["cache"].core_seconds, abs=0.1)


def test_passages_are_those_of_the_evaluation(finished: DistillConfig):
    passages = gather(finished.storage.root)["passages"]["tiny"]
    [file] = (Path(finished.home) / "evaluation").glob("passages-*.parquet")
    table = pq.read_table(file).to_pylist()
    strings = passages["strings"]
    for name in ("teacher", "ce", "kd"):
        rows = [row for row in table if row["model"] == name]
        shown = passages["models"][name]
        assert [strings[number] for number in passages["tokens"]] == [row["token"] for row in rows]
        assert shown["kl"] == pytest.approx([row["kl_to_teacher"] for row in rows], abs=5e-4)
        assert [strings[number] for number in shown["likeliest"]] == [text for row in rows for text in row["likeliest"]]
        assert len(shown["likeliest"]) == len(shown["probabilities"]) == 5 * len(rows)
    corpus = PackedCorpus.open(finished.corpus_uri("eval"))
    tokenizer = load_tokenizer(finished.teacher.model)
    ids = corpus.read_rows(np.array([passages["windows"][0]])).input_ids[0]
    width = passages["windows"].count(passages["windows"][0])
    assert [strings[number] for number in passages["tokens"][:width]] == [
        token_text(tokenizer, token_id) for token_id in ids[1 : width + 1].tolist()
    ]


def test_passages_that_cannot_be_read_have_their_reason_and_cost_nothing_else(copy: Path):
    [file] = (copy / "tiny/evaluation").glob("passages-*.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    told = write_dashboard(str(copy))
    assert "is not what was written" in told["notes"]
    assert gather(str(copy))["passages"] == {}
    assert all(row["measured"] for row in rows(copy, "students").values())


def test_checks_are_shown_with_the_generation_that_they_saw(copy: Path):
    cache = str(copy / "tiny/caches/default")
    assert rows(copy, "caches")["default"]["checks"] == {}
    keep_check(cache, "verify", verify(cache).to_dict(), manifest=manifest_digest(cache))
    keep_check(
        cache,
        "audit",
        {"ok": False, "unbiased": False, "aligned": True, "fingerprint_matches": True},
        manifest=manifest_digest(cache),
    )
    checks = rows(copy, "caches")["default"]["checks"]
    assert (checks["verify"]["ok"], checks["verify"]["current"], checks["verify"]["problems"]) == (True, True, [])
    assert (checks["audit"]["ok"], checks["audit"]["problems"]) == (False, ["not unbiased"])
    (copy / "tiny/caches/default/manifest.json").unlink()
    assert rows(copy, "caches")["default"]["checks"]["verify"]["current"] is False


def test_a_student_that_was_judged_and_never_evaluated_has_the_figures_of_its_judgement(copy: Path):
    evaluated = rows(copy, "students")["kd"]
    (copy / "tiny/evaluation.json").unlink()
    judged = rows(copy, "students")
    assert judged["ce"]["measured"] is None
    for metric in ("lm_loss", "kl_to_teacher", "ece", "acceptance"):
        assert judged["kd"]["measured"][metric] == pytest.approx(evaluated["measured"][metric], rel=1e-4)
    assert (judged["kd"]["comparable"], judged["kd"]["windows"]) == (evaluated["comparable"], evaluated["windows"])


def test_states_come_from_what_the_outputs_say_of_each_other(finished: DistillConfig, copy: Path):
    assert {state for state, _ in stages(copy).values()} == {"done"}
    [part] = (copy / "tiny/caches/default/parts").glob("part-00000.json")
    manifest = copy / "tiny/caches/default/manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    assert stages(copy)["cache"] == ("unfinished", "default: 5 of 5 parts")
    assert stages(copy)["train"][0] == "stale"
    part.unlink()
    assert stages(copy)["cache"] == ("unfinished", "default: 4 of 5 parts")
    manifest.write_bytes(kept)
    shutil.rmtree(copy / "tiny/students/ce")
    assert stages(copy)["train"] == ("unfinished", "ce: at step 2")
    shutil.rmtree(copy / "tiny/checkpoints")
    assert rows(copy, "students").keys() == {"kd"}
    (copy / "tiny/evaluation.json").unlink()
    assert stages(copy)["evaluate"] == ("missing", "")


def test_figures_of_other_weights_are_not_shown(finished: DistillConfig, copy: Path):
    """A student that was trained again after its evaluation has none yet."""
    settings = finished.model_dump(mode="json", exclude_unset=True)
    settings["storage"] = {"root": str(copy)}
    settings["students"]["ce"]["train"]["lr"] = 0.01
    train_student(validate_config(settings), "ce")
    found = rows(copy, "students")
    assert found["ce"]["measured"] is None
    assert found["kd"]["measured"] is not None


def test_tasks_and_speculation_of_the_same_weights(copy: Path):
    home = Store(str(copy / "tiny"))
    evaluation = records.read(home, "evaluation.json")
    assert evaluation is not None
    scored = {"acc": {"value": 0.5, "standard_error": 0.1}}
    others = evaluation["recipe"] | {"students": {"kd": "another"}}
    records.write(home, task_file("made"), {"recipe": evaluation["recipe"], "models": {"kd": scored}})
    records.write(home, task_file("stale"), {"recipe": others, "models": {"kd": scored}})
    records.write(home, SPECULATIVE, {"recipe": evaluation["recipe"], "models": {"kd": {"acceptance": 0.25}}})
    found = rows(copy, "students")
    assert found["kd"]["measured"]["tasks"] == {"made": scored}
    assert found["kd"]["measured"]["downstream"] == 0.5
    assert found["kd"]["measured"]["speculative"] == {"acceptance": 0.25}
    assert found["ce"]["measured"]["downstream"] is None


def test_what_cannot_be_read_has_its_reason_and_hides_nothing_else(copy: Path):
    shutil.copytree(copy / "tiny", copy / "other")
    record = copy / "tiny" / "evaluation.json"
    record.write_text(record.read_text().replace("acceptance", "acceptence"))
    found = rows(copy, "distillations")
    assert "evaluation.json is not what was written" in found["tiny"]["error"]
    assert "error" not in found["other"]


def test_the_last_failure_is_told(finished: DistillConfig):
    uri = tracking_uri_of(finished)
    client = MlflowClient(uri)
    [experiment] = [one for one in client.search_experiments() if one.name == "rskd"]
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.info.run_name == "tiny")
    trained = next(run for run in runs if run.info.run_name == "tiny train ce")
    assert rows(Path(finished.storage.root), "distillations")["tiny"]["failed"] is None
    for run in (trained, parent):
        client.set_terminated(run.info.run_id, "FAILED")
    try:
        failed = rows(Path(finished.storage.root), "distillations")["tiny"]["failed"]
        assert (failed["stage"], failed["status"]) == ("tiny train ce", "failed")
    finally:
        for run in (trained, parent):
            client.set_terminated(run.info.run_id, "FINISHED")


def test_a_root_in_an_object_store(finished: DistillConfig, object_store: Any):
    there, here = Store(object_store.make_bucket()), Store(finished.home)
    for name in here.sizes(recursive=True):
        there.write(f"tiny/{name}", here.read(name))
    cache = f"{there.uri}/tiny/caches/default"
    keep_check(cache, "verify", {"ok": True, "problems": []}, manifest=manifest_digest(cache))
    told = write_dashboard(there.uri)
    assert told["dashboard"] == f"{there.uri}/dashboard.html"
    assert b'"name":"tiny"' in there.read("dashboard.html")
    local, remote = gather(finished.storage.root), gather(there.uri)
    assert remote["caches"][0].pop("checks")["verify"]["current"]
    assert local["caches"][0].pop("checks") == {}
    for kind in ("caches", "students", "evaluations", "passages"):
        assert remote[kind] == local[kind]


def test_an_mlflow_that_does_not_answer_costs_its_part_alone(copy: Path):
    found = gather(str(copy), "http://127.0.0.1:9")
    assert len(found["students"]) == 2
    assert found["champions"] == []
    assert "http://127.0.0.1:9" in found["notes"][0]


def test_a_name_cannot_end_the_element_that_holds_it(copy: Path):
    name = "<!--<script>alert(1)"
    (copy / "tiny").rename(copy / name)
    page = Path(write_dashboard(str(copy))["dashboard"]).read_text()
    assert name not in page
    assert "\\u003c!--\\u003cscript>alert(1)" in page


def test_a_root_without_anything_and_one_that_is_not_there(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert write_dashboard(str(tmp_path / "empty"))["distillations"] == 0
    with pytest.raises(ConfigError, match=r"nowhere does not exist: name the storage.root"):
        write_dashboard(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"--out .* cannot be written"):
        write_dashboard(str(tmp_path / "empty"), tmp_path)


def test_it_is_served_until_interrupted(copy: Path):
    command = [sys.executable, "-m", "rskd", "dashboard", str(copy), "--serve"]
    server = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    assert b'"name":"tiny"' in urllib.request.urlopen(address, timeout=60).read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/other", timeout=60)
    refused = subprocess.run([*command, address.rpartition(":")[2]], capture_output=True, text=True)
    assert refused.returncode == 2
    assert re.search(r"--serve \d+ cannot be used .*: name another port", refused.stderr)
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=60) == 130
