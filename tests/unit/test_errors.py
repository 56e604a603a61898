"""The RskdError behind what a framework wrapped around it."""

import pickle

from rskd.errors import ConfigError, CorruptPartError, NonFiniteLogitsError, explained_by


def test_finds_the_innermost() -> None:
    original = CorruptPartError("part-00003 is truncated")
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = original
    assert explained_by(wrapped) is original
    assert explained_by(RuntimeError("other")) is None


def test_looks_into_ray_task_errors_and_failures_of_workers() -> None:
    original = ConfigError("no such teacher")

    class RayTaskError(Exception):
        cause = original

    class WorkerGroupError(Exception):
        worker_failures = {1: RayTaskError()}  # noqa: RUF012

    assert explained_by(WorkerGroupError()) is original


def test_an_explained_error_with_another_cause_is_itself() -> None:
    error = ConfigError("root cannot be written")
    error.__cause__ = OSError("disk")
    assert explained_by(error) is error


def test_a_message_is_one_line_whatever_was_appended_on_the_way() -> None:
    error = ConfigError("no such field")
    error.args = (f"{error.args[0]}\nFailed to apply UDF transform",)
    assert str(error) == "no such field"


def test_errors_survive_the_way_from_a_worker():
    for error in (NonFiniteLogitsError(), ConfigError("a: b"), CorruptPartError("c")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
