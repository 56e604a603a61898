"""The figures by which distillations are sorted: of the best student, and over the seeds of students that are alike."""

from typing import Any

import pytest

from rskd.config import DistillConfig, validate_config
from rskd.tracking.headline import headline


def config_of(students: dict[str, Any]) -> DistillConfig:
    return validate_config(
        {
            "name": "n",
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "t"},
            "samplings": {"one": {"seed": 1}, "two": {"seed": 2}, "more": {"num_samples": 50}},
            "students": students,
        }
    )


def figures(lm_loss: float) -> dict[str, float]:
    return {"lm_loss": lm_loss, "ece": 0.1, "acceptance": 0.5, "kl_to_teacher": 1.0}


def test_of_one_student_all_that_is_known():
    config = config_of({"a": {"sampling": "one"}})
    assert headline(config, {"a": figures(3.0) | {"bytes_per_token": 21.5}}) == figures(3.0) | {"bytes_per_token": 21.5}


def test_students_that_differ_in_seeds_alone_are_summed_up():
    config = config_of(
        {
            "a": {"sampling": "one", "train": {"seed": 1}},
            "b": {"sampling": "two", "train": {"seed": 2}},
            "other": {"sampling": "more"},
            "ce": {"sampling": "one", "objective": {"kind": "ce"}},
        }
    )
    found = headline(config, {"a": figures(3.0), "b": figures(3.5), "other": figures(3.2), "ce": figures(4.0)})
    assert found["lm_loss"] == 3.0
    assert found["lm_loss_mean"] == 3.25
    assert found["lm_loss_sd"] == pytest.approx(0.5**1.5)
    assert found["ece_sd"] == 0
    alone = headline(config, {"a": figures(3.0), "other": figures(2.9)})
    assert alone == figures(2.9)
