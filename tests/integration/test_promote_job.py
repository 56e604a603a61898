"""Students become versions of a registered model, and the gate decides which of them is the champion."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_runs import STAGES, tiny_settings, write_texts
from transformers import AutoModelForCausalLM

from rskd.config import DistillConfig, validate_config
from rskd.errors import CacheMismatchError, ConfigError, MissingOutputError, RskdError
from rskd.jobs import promote
from rskd.jobs.evaluate import measure_windows
from rskd.jobs.promote import promote_student
from rskd.jobs.train import train_student
from rskd.tracking import distillation
from rskd.tracking.connection import tracking_uri_of
from rskd.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry


def config_of(root: Path, model: Path, **train) -> DistillConfig:
    return validate_config(
        tiny_settings(
            root,
            model,
            corpus={"eval_windows": 24},
            train={"steps": 40, "lr": 0.01, "global_batch": 8} | train,
            evaluate={"max_windows": 32},
            promotion={"margins": {"ece": None, "lm_loss": 0.2, "kl_to_teacher": 0.2, "acceptance": 0.1}},
            tracking={"enabled": True},
        )
    )


def aliases(registry: Registry) -> dict[str, int | None]:
    return {
        alias: found and found.version
        for alias in (CHAMPION, CHALLENGER, PREVIOUS)
        for found in [registry.version(alias)]
    }


def distillation_metrics(config: DistillConfig) -> dict[str, float]:
    return MlflowClient(tracking_uri_of(config)).get_run(distillation(config).run_id).data.metrics


def make_student(config: DistillConfig) -> None:
    for stage in ("pack", "cache", "train"):
        STAGES[stage](config)


def test_a_champion_a_better_one_a_worse_one_and_back(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    config = config_of(tmp_path, tiny_teacher_dir)
    with pytest.raises(MissingOutputError, match="run rskd pack"):
        promote_student(config)
    registry = Registry.of(config)
    assert registry.name == "tiny"
    for name in ("tiny", "no'body"):
        with pytest.raises(ConfigError, match=f"has no registered model {name}"):
            Registry.at(registry.tracking_uri, name)
    assert not list(tmp_path.rglob("mlflow.db*"))  # asking makes no database

    make_student(config)
    first = promote_student(config)
    assert (first["verdict"], first["version"], first["champion"], first["skipped"]) == ("PROMOTE", 1, 1, False)
    assert "no champion" in first["reason"]
    assert distillation_metrics(config)["lm_loss"] == first["ledger"][0]["challenger"]  # there was no evaluation
    again = promote_student(config)
    assert again == first | {"skipped": True}
    with pytest.raises(ConfigError, match="no champion before this one"):
        registry.rollback()

    worse = config_of(tmp_path, tiny_teacher_dir, steps=1, lr=1e-5, min_lr=0.0)
    with pytest.raises(CacheMismatchError, match=r"trained with train\.steps=40, not 1: run rskd train"):
        promote_student(worse)
    make_student(worse)
    refused = promote_student(worse)
    assert (refused["verdict"], refused["version"], refused["against"]) == ("REJECT", 2, 1)
    assert "lm_loss is worse than its margin" in refused["reason"]
    assert aliases(registry) == {CHAMPION: 1, CHALLENGER: 2, PREVIOUS: None}
    assert promote_student(worse) == refused | {"skipped": True}

    other_seed = config_of(tmp_path, tiny_teacher_dir, seed=1)
    make_student(other_seed)
    found = promote_student(other_seed)
    assert {row["metric"]: row["verdict"] for row in found["ledger"]}["top1_agreement"] == "not guarded"
    registry.promote(3)  # by hand, whatever the gate said
    assert (aliases(registry)[CHAMPION], aliases(registry)[PREVIOUS]) == (3, 1)
    with pytest.raises(RskdError, match="was judged against version 1, but version 3 is the champion now"):
        registry.promote_over(registry.get(1), 2)
    assert registry.rollback().version == 1
    assert aliases(registry)[CHAMPION] == 1
    assert aliases(registry)[PREVIOUS] == 3

    champion = registry.version(CHAMPION)
    assert champion is not None
    assert champion.tags["rskd.verdict"] == "PROMOTE"
    AutoModelForCausalLM.from_pretrained(registry.download(champion))
    assert registry.summary()["champion"]["digest"] == champion.digest
    with pytest.raises(ConfigError, match=r"no version 9 \(it has 3, 2, 1\)"):
        registry.promote(9)

    make_student(config)  # the weights of version 1 once more: no second version
    assert promote_student(config)["skipped"] is True
    assert len(registry.versions()) == 3


def test_what_was_evaluated_is_not_measured_again(
    tmp_path: Path, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    write_texts(tmp_path / "text")
    config = config_of(tmp_path, tiny_teacher_dir, steps=1)
    make_student(config)
    STAGES["evaluate"](config)
    evaluated = json.loads(Path(config.evaluation_uri).read_text())["models"]["default"]
    measured = []
    monkeypatch.setattr(
        promote,
        "measure_windows",
        lambda *args, **options: measured.append(options["title"]) or measure_windows(*args, **options),
    )
    found = promote_student(config)
    for row in found["ledger"]:
        assert row["challenger"] == pytest.approx(evaluated[row["metric"]], rel=1e-9)
    assert measured == []

    another = config_of(tmp_path, tiny_teacher_dir, steps=1, seed=1)
    make_student(another)
    STAGES["evaluate"](another)
    assert promote_student(another)["against"] == 1
    assert measured == ["the champion"]


def test_a_champion_of_another_teacher_holds(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    config = config_of(tmp_path, tiny_teacher_dir)
    make_student(config)
    promote_student(config)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    model.lm_head.weight.data += 0.01
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((tiny_teacher_dir / name).read_bytes())
    settings = config_of(tmp_path, tmp_path / "other").model_dump(mode="json", exclude_unset=True)
    other = validate_config(settings | {"name": "other", "promotion": settings["promotion"] | {"model": "tiny"}})
    make_student(other)
    found = promote_student(other)
    assert found["verdict"] == "HOLD"
    assert "another teacher than the champion's" in found["reason"]
    assert (found["version"], found["champion"]) == (2, 1)


def test_a_student_begins_as_the_champion_and_is_not_stale_when_there_is_a_new_one(
    tmp_path: Path, tiny_teacher_dir: Path
):
    write_texts(tmp_path / "text")
    config = config_of(tmp_path, tiny_teacher_dir, seed=3)  # 0 is that of the teacher's random weights
    settings = config.model_dump(mode="json", exclude_unset=True)
    from_champion = {"student": {"model": "models:/tiny@champion", "init": "checkpoint"}}
    heir = validate_config(settings | {"students": {"heir": from_champion}})
    STAGES["pack"](config)
    STAGES["cache"](config)
    with pytest.raises(ConfigError, match="registered model tiny has no champion: promote a version"):
        train_student(heir, "heir")
    STAGES["train"](config)
    promote_student(config)
    train_student(heir, "heir")
    logs = [Path(config.student_uri(name), "training_log.jsonl").read_text() for name in ("heir", "default")]
    heirs, champions = (json.loads(log.splitlines()[0])["loss"] for log in logs)
    assert heirs < champions - 0.5
    Registry.of(config).promote(promote_student(heir, "heir")["version"])
    assert train_student(heir, "heir")["skipped"] is True
    with pytest.raises(ConfigError, match=r"write models:/NAME@champion or models:/NAME/VERSION"):
        train_student(validate_config(settings | {"student": {"model": "models:/tiny", "init": "checkpoint"}}))
