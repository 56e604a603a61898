"""Which configurations a post-training has: of the tuned students, and of those that they start as."""

from pathlib import Path
from typing import Any

import pytest

from rskd.config import DistillConfig, load_config, validate_config
from rskd.errors import ConfigError
from rskd.post_training.tuning import starting, tuned

TULU = Path(__file__).parents[3] / "flows" / "configs" / "tulu.yaml"


def make(**sections: Any) -> DistillConfig:
    return validate_config(
        {
            "name": "before",
            "storage": {"root": "/data"},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "some/teacher", "workers": 2},
            "students": {"ce": {"objective": {"kind": "ce"}}, "kd": {"student": {"attention": "eager"}}},
            "evaluate": {"max_windows": 7, "speculative": {}},
        }
        | sections
    )


def tuning(**sections: Any) -> DistillConfig:
    return make(**({"name": "sft", "students": None, "objective": {"kind": "ce"}} | sections))


def test_each_student_starts_from_its_checkpoint_with_the_settings_of_the_tuning():
    found = tuned(tuning(student={"preset": "1b"}, train={"steps": 5}), make())
    assert list(found.student_specs) == ["ce", "kd"]
    for name, spec in found.student_specs.items():
        assert (spec.student.model, spec.student.init) == (f"/data/before/students/{name}", "checkpoint")
        assert (spec.student.preset, spec.objective.kind, spec.train.steps) == (None, "ce", 5)
    assert [spec.student.attention for spec in found.student_specs.values()] == ["auto", "eager"]
    assert (found.name, found.home) == ("sft", "/data/sft")
    assert not found.wants_caches


def test_some_students_are_chosen_each_once():
    assert list(tuned(tuning(), make(), ["kd", "kd"]).student_specs) == ["kd"]
    assert list(tuned(tuning(), make(), []).student_specs) == ["ce", "kd"]


def test_sampled_kd_reads_the_first_cache_of_the_tuning():
    config = tuned(tuning(objective={}, samplings={"few": {"num_samples": 5}, "many": {}}), make(), ["kd"])
    assert config.student_specs["kd"].sampling == "few"
    assert config.wants_caches


def test_the_papers_tuning_fits(tmp_path: Path):
    config = tuned(load_config(TULU), make(), ["ce"])
    assert config.student_specs["ce"].student.model == "/data/before/students/ce"
    assert config.student_specs["ce"].train.steps == 1234


@pytest.mark.parametrize(
    ("sections", "before", "students", "message"),
    [
        ({"students": {"ce": {}}}, {}, None, "the tuning sft has a section students, .*: remove the section"),
        ({}, {"name": "sft"}, None, "sft is the name of the distillation and of its tuning"),
        ({}, {}, ["nobody"], r"student nobody is not in students \(ce, kd\)"),
        ({}, {"storage": {"root": "s3://bucket"}}, None, "a student starts from a local folder"),
        (
            {"generate": {"prompt_sets": {"a": {"kind": "own", "uri": "a"}}, "checkpoints": {"ce": "x"}}},
            {},
            None,
            "generate.checkpoints.ce has the name of a student",
        ),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict, before: dict, students: list[str] | None, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        tuned(tuning(**sections), make(**before), students)
    assert "\n" not in str(error.value)


def test_names_are_equal_under_other_roots():
    assert tuned(tuning(name="before", storage={"root": "/other"}), make()).home == "/other/before"


def test_the_start_is_measured_as_before_on_the_tasks_of_the_tuning():
    config = tuned(tuning(evaluate={"tasks": ["piqa"], "max_windows": 3}, ray={"enabled": True}), make(), ["kd"])
    start = starting(make(), config)
    assert (start.home, list(start.student_specs)) == ("/data/before", ["kd"])
    assert start.student_specs["kd"] == make().student_specs["kd"]
    assert (start.evaluate.tasks, start.evaluate.max_windows, start.evaluate.speculative) == (("piqa",), 7, None)
