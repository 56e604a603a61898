"""Ray's client of the Jobs API, made patient: a head that restarts, or a dashboard that is away, ends nothing.

It differs from Ray's in three ways. Its address is the one that it is given, whatever RAY_ADDRESS and
RAY_API_SERVER_ADDRESS say. Once the cluster has answered, a request without an answer is repeated for PATIENCE seconds.
Errors are one line. The token comes from RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from rskd.errors import ConfigError, RskdError, first_line

PATIENCE = 600.0
_SECONDS_FOR_AN_ANSWER = 60.0
_SECONDS_BETWEEN = 2.0


class RefusedError(RskdError):
    """The cluster answered, and did not do what it was asked."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class JobsApi(JobSubmissionClient):
    """The jobs of one cluster; `say` is told when it does not answer. Raises ConfigError if it never did."""

    def __init__(self, address: str, say: Callable[[str], None]):
        self.address, self._say, self._answered = address.rstrip("/"), say, False
        for name in ("sdk", "dashboard_sdk"):  # which say at INFO what they do
            module = "ray.dashboard.modules" if name == "dashboard_sdk" else "ray.dashboard.modules.job"
            logging.getLogger(f"{module}.{name}").setLevel(logging.WARNING)
        try:
            super(JobSubmissionClient, self).__init__(self.address)  # its own __init__ prefers RAY_ADDRESS
        except AuthenticationError as error:
            raise self._refuses_token(error) from None
        try:
            self._server_ray_version = self._do_request("GET", "/api/version").json()["ray_version"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"ray.address={self.address} answers, but is no Ray dashboard: write that of the head, http://HEAD:8265"
            ) from None

    def find(self, job: str) -> JobDetails | None:
        """None for a job that the cluster does not know, or no longer."""
        try:
            return self.get_job_info(job)
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        deadline = time.monotonic() + (PATIENCE if self._answered else 0)
        is_away = False
        while True:
            try:
                response = super()._do_request(method, endpoint, timeout=_SECONDS_FOR_AN_ANSWER, **kwargs)
                if response.status_code < 500:
                    self._answered = True
                    if is_away:
                        self._say(f"{self.address} answers again")
                    return response
                reason = _last_line(response.text)
            except AuthenticationError as error:
                raise self._refuses_token(error) from None
            except requests.RequestException as error:
                reason = type(error).__name__
            if not self._answered:
                raise ConfigError(
                    f"ray.address={self.address} does not answer ({reason}): start that cluster, or correct the address"
                )
            if time.monotonic() >= deadline:
                raise RskdError(
                    f"{self.address} has not answered for {PATIENCE / 60:.0f} minutes ({reason}): run it again when it "
                    "does, which finds its jobs"
                )
            if not is_away:
                self._say(f"{self.address} does not answer ({reason}): waiting for it, {PATIENCE / 60:.0f} min at most")
            is_away = True
            time.sleep(_SECONDS_BETWEEN)

    def _raise_error(self, r: requests.Response) -> NoReturn:
        raise RefusedError(f"{self.address} refuses ({r.status_code}, {_last_line(r.text)})", r.status_code)

    def _refuses_token(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"ray.address={self.address} refuses the token ({first_line(error)}): export RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
        )


def _last_line(text: str) -> str:
    """Where a traceback says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return first_line(lines[-1]) if lines else "no reason given"
