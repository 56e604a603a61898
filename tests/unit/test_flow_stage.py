"""Around a stage: what rskd explains in one line has no traceback above it in Prefect's log."""

import logging

import pytest

import flows.stage  # noqa: F401 (it filters Prefect's loggers)
from rskd.errors import ConfigError


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
@pytest.mark.parametrize(("error", "has_traceback"), [(ConfigError("wrong"), False), (ValueError("broken"), True)])
def test_a_traceback_only_of_what_is_not_explained(name: str, error: Exception, has_traceback: bool):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        raise error
    except Exception:
        logger.exception("Encountered exception during execution: %r", error)
    finally:
        logger.removeHandler(handler)
    [record] = records
    assert bool(record.exc_info) == has_traceback
    assert repr(error) in record.getMessage()
