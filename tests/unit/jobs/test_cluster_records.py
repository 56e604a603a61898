"""A stage and its arguments on the way to a job, and what came of it on the way back."""

from pathlib import Path
from typing import Any

import pytest

from rskd import errors
from rskd.config import DistillConfig, validate_config
from rskd.errors import CacheMismatchError, ConfigError, CorruptPartError, MissingOutputError, OutputError, RskdError
from rskd.jobs.cache import cache_logits
from rskd.jobs.cluster.records import (
    Call,
    Outcome,
    known_jobs,
    read_call,
    read_outcome,
    write_call,
    write_outcome,
)
from rskd.jobs.train import train_student
from rskd.student.trainer import NonFiniteError


def _config(root: str = "store", **sections: Any) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": root},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "teacher"},
            "students": {"a": {"train": {"steps": 3}}, "b": {}},
            "ray": {"address": "http://head:8265", "code": "sent"},
            **sections,
        }
    )


def test_a_call_comes_through_its_file_with_an_absolute_home_and_the_jobs_ray(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = Call.of(train_student, [_config(), "a"], {"page": "url"})
    found = read_call(write_call(call, "job-1"))
    assert found == call
    assert found.home == str(tmp_path / "store" / "tiny")
    assert (found.directory, found.tags) == (str(tmp_path), {"page": "url"})
    assert found.args == [
        {
            "config": {
                "name": "tiny",
                "storage": {"root": str(tmp_path / "store")},
                "corpus": {"source": {"kind": "python_docs"}},
                "teacher": {"model": "teacher"},
                "students": {"a": {"train": {"steps": 3}}, "b": {}},
                "ray": {"address": "auto"},
            }
        },
        "a",
    ]
    assert known_jobs(found.home) == {"job-1"}


def test_jobs_of_one_name_are_at_the_same_work_and_differ_by_their_settings():
    call = Call.of(train_student, [_config(), "a"], {})
    slower = Call.of(train_student, [_config(train={"lr": 1e-3}), "a"], {})
    elsewhere = Call.of(train_student, [_config(ray={"address": "http://other:8265"}), "a"], {"page": "url"})
    other = Call.of(train_student, [_config(), "b"], {})
    assert call.doing == slower.doing != other.doing
    assert call.digest == elsewhere.digest != slower.digest
    assert Call.of(cache_logits, [_config()], {}).doing == f"cache_logits of {Path.cwd()}/store/tiny"


def test_a_bucket_needs_a_tracking_server():
    with pytest.raises(ConfigError, match=r"tracking.uri is not set"):
        Call.of(cache_logits, [_config("s3://bucket")], {})
    Call.of(cache_logits, [_config("s3://bucket", tracking={"enabled": False})], {})
    Call.of(cache_logits, [_config("s3://bucket", tracking={"uri": "http://mlflow:5000"})], {})


def test_a_stage_of_another_package_is_refused(tmp_path: Path):
    call = Call("os:system", ["true"], str(tmp_path), {})
    with pytest.raises(ConfigError, match="none of rskd's"):
        call()


def test_a_result_comes_back(tmp_path: Path):
    uri = f"{tmp_path}/jobs/job-1.json"
    assert read_outcome(str(tmp_path), "job-1") is None
    write_outcome(uri, Outcome.of_result({"loss": float("nan"), "skipped": False, "path": tmp_path}))
    outcome = read_outcome(str(tmp_path), "job-1")
    assert outcome is not None
    value = outcome.value()
    assert value.pop("loss") != 0
    assert value == {"skipped": False, "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConfigError("wrong"), ConfigError),
        (MissingOutputError("run rskd pack"), MissingOutputError),
        (CorruptPartError("damaged"), CorruptPartError),
        (CacheMismatchError("other"), CacheMismatchError),
        (errors.NonFiniteLogitsError(), errors.NonFiniteLogitsError),
        (NonFiniteError("step 3"), RskdError),
        (OSError("disk"), RskdError),
    ],
)
def test_an_error_comes_back_as_what_it_was(tmp_path: Path, raised: Exception, kind: type[RskdError]):
    write_outcome(f"{tmp_path}/jobs/job-1.json", Outcome.of_error(raised))
    outcome = read_outcome(str(tmp_path), "job-1")
    assert outcome is not None
    with pytest.raises(kind) as caught:
        outcome.value()
    assert type(caught.value) is kind
    assert str(raised) in str(caught.value)


def test_an_unknown_kind_keeps_its_exit_code():
    for kind in (ConfigError, OutputError, RskdError):
        with pytest.raises(kind) as caught:
            Outcome(None, "AnError", "of another version", kind.exit_code).value()
        assert type(caught.value) is kind
