"""A student learns from the cache that the configuration describes, or not at all."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import STAGES, tiny_settings, write_texts
from transformers import AutoModelForCausalLM

from rskd.config import DistillConfig, validate_config
from rskd.errors import CacheMismatchError
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student


def config_of(root: Path, model: Path, **sections) -> DistillConfig:
    return validate_config(tiny_settings(root, model, **sections))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("cached")
    write_texts(root / "text")
    config = config_of(root, tiny_teacher_dir)
    pack_corpus(config)
    cache_logits(config)
    return root


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"sampling": {"method": "top_k", "k": 5}}, "made with sampling.method=systematic, not top_k"),
        ({"sampling": {"num_samples": 23}}, "made with sampling.num_samples=22, not 23"),
        ({"sampling": {"statistics": ["entropy"]}}, r"made with sampling.statistics=\[\], not \['entropy'\]"),
        ({"teacher": {"dtype": "bfloat16"}}, "made with teacher.dtype=float32, not bfloat16"),
    ],
)
def test_a_cache_of_another_setting_is_refused_by_its_key(cached, tiny_teacher_dir, sections, problem):
    with pytest.raises(CacheMismatchError, match=problem) as caught:
        train_student(config_of(cached, tiny_teacher_dir, **sections))
    assert "run rskd cache" in str(caught.value)


def test_a_cache_of_another_teacher_is_refused_and_one_of_a_moved_teacher_is_not(cached, tiny_teacher_dir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_teacher_dir, moved)
    train_student(config_of(cached, moved))
    model = AutoModelForCausalLM.from_pretrained(moved)
    model.lm_head.weight.data += 0.01
    model.save_pretrained(moved)
    with pytest.raises(CacheMismatchError, match=r"made with teacher.model=.*, not .*moved \(as it is now\)"):
        train_student(config_of(cached, moved))


def test_a_first_evaluation_takes_a_student_as_it_is_and_a_changed_configuration_does_not(
    cached: Path, tiny_teacher_dir: Path, caplog: pytest.LogCaptureFixture
):
    as_trained = config_of(cached, tiny_teacher_dir, objective={"ce_weight": 0.1})
    STAGES["train"](as_trained)
    config = config_of(cached, tiny_teacher_dir)
    assert STAGES["evaluate"](config)["skipped"] is False
    assert "taken as it is, though it was trained with objective.ce_weight=0.1, not 0.0" in caplog.text
    assert STAGES["evaluate"](config)["skipped"] is True
    with pytest.raises(CacheMismatchError, match=r"trained with objective\.ce_weight=0\.1, not 0\.0: run rskd train"):
        STAGES["report"](config)  # which says what it learned from
    with pytest.raises(CacheMismatchError, match=r"trained with objective\.ce_weight=0\.1, not 0\.5: run rskd train"):
        STAGES["evaluate"](config_of(cached, tiny_teacher_dir, objective={"ce_weight": 0.5}))
    assert STAGES["evaluate"](as_trained)["skipped"] is True


def test_after_another_packing_every_stage_gives_the_same_advice(tmp_path: Path, tiny_teacher_dir: Path):
    write_texts(tmp_path / "text")
    config = config_of(tmp_path, tiny_teacher_dir)
    for stage in ("pack", "cache", "train"):
        STAGES[stage](config)
    for changed in ({"windows_per_part": 64}, {"max_windows": 100}):
        shutil.rmtree(Path(config.home, "corpus"))
        again = config_of(tmp_path, tiny_teacher_dir, corpus=changed)
        STAGES["pack"](again)
        for stage in ("cache", "train", "evaluate"):
            with pytest.raises(
                CacheMismatchError, match="choose another name for the run, or remove the cache, and run"
            ):
                STAGES[stage](again)
