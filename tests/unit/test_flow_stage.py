"""Around a stage: no traceback above what rskd explains in one line, and a run that outlives Prefect's server."""

import logging
import time
from uuid import uuid4

import pytest
from free_ports import free_ports
from prefect import flow_engine
from prefect._internal.concurrency.cancellation import CancelledError
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.stage  # noqa: F401 (it filters Prefect's loggers, and has runs outlive the server)
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


def test_a_run_outlives_a_server_that_does_not_renew_its_place(monkeypatch: pytest.MonkeyPatch):
    """Prefect's own way would end it."""
    monkeypatch.setattr("prefect.concurrency._leases._RENEWAL_RETRY_BASE_DELAY", 0.1)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_ports(1)[0]}/api"}):
        with pytest.raises(CancelledError):
            _work_under(maintain_concurrency_lease, seconds=60)
        _work_under(flow_engine.maintain_concurrency_lease, seconds=3)


def _work_under(maintain, seconds: float) -> None:
    with maintain(uuid4(), 300, raise_on_lease_renewal_failure=True):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
