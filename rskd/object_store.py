"""S3 whose outages are waited for, where the store is known to be there.

    request ─► no connection, 5xx, 429 ─► the store has answered before? ─► wait, ask again ─► … ─► answer, or give up
                                          else: botocore's own few retries, so a wrong endpoint is reported in seconds

What refuses (403 and the like) is an answer, which a retry does not change.
"""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar

from s3fs import S3FileSystem

PATIENCE_SECONDS = 300.0  # for each request
_LONGEST_DELAY_SECONDS = 4.0
_OUTAGE_STATUSES = {429, 500, 502, 503, 504}
S3_OPTIONS: dict[str, Any] = {
    # Listings are never cached, since another writer may have changed them; nor is what was read of a file.
    "use_listings_cache": False,
    "default_fill_cache": False,
    "default_cache_type": "none",
    # A store that never answered is reported within seconds; one that is slow is waited for.
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 60,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
}

_logger = logging.getLogger(__name__)


class PatientS3FileSystem(S3FileSystem):
    """An S3FileSystem whose requests wait up to PATIENCE_SECONDS for a store that has answered this process.

    Costs nothing while the store answers. A put that is sent again after its answer was lost may find its own object:
    a conditional one then says that it exists.
    """

    retries: ClassVar[int] = 3  # of a body that breaks off: each request waits by itself
    known_to_answer: ClassVar[bool] = False  # one store a process: the environment names it
    _waiting: ClassVar[bool] = False

    async def set_session(self, refresh: bool = False, kwargs: dict[str, Any] | None = None) -> Any:
        """The client, which asks `_delay` first whether to send a failed request again."""
        client = await super().set_session(refresh, kwargs or {})
        client.meta.events.register_first("needs-retry.s3", self._delay, unique_id="rskd-patience")
        return client

    @classmethod
    def _delay(
        cls,
        attempts: int,
        request_dict: dict[str, Any],
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        **_: Any,
    ) -> float | None:
        """Seconds until the request is sent again; None leaves it to botocore. Called after every attempt."""
        status = response[1]["ResponseMetadata"]["HTTPStatusCode"] if response else None
        if status is not None and status not in _OUTAGE_STATUSES:
            cls.known_to_answer, cls._waiting = True, False
            return None
        since = request_dict["context"].setdefault("rskd_waiting_since", time.monotonic())
        if not cls.known_to_answer or time.monotonic() - since > PATIENCE_SECONDS:
            return None
        if not cls._waiting:
            cls._waiting = True
            problem = f"status {status}" if status else type(caught_exception).__name__
            patience = f"{PATIENCE_SECONDS / 60:.0f} minutes"
            _logger.warning("the object store does not answer (%s): waiting up to %s for it", problem, patience)
        return min(0.25 * 2**attempts, _LONGEST_DELAY_SECONDS)
