"""When Ray Train should not restart. Light on purpose: its controller process imports this and little else of rskd."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from rskd.errors import RskdError
from rskd.full_disk import explain_full_disk
from rskd.jobs.metrics import Live
from rskd.out_of_memory import explain_out_of_memory


class GiveUpOnExplainedErrors(UserCallback):
    """A restart fixes a lost worker, not a corrupt part or a loss that diverged: those end the run at once.

    `out_of_memory` is what to do where memory ran out, which a restart does not change either.
    """

    def __init__(self, checkpoints: str, live: Live, max_failures: int, out_of_memory: str):
        self._checkpoints = checkpoints
        self._live = live
        self._restarts_left = max_failures
        self._out_of_memory = out_of_memory

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raised here, in the controller, an error is not retried."""
        for error in worker_exceptions.values():
            if isinstance(error, RskdError):
                raise error
            full = explain_full_disk(error, self._checkpoints, "choose another storage.root")
            if full is not None:  # Ray Train uploads checkpoints by itself
                raise full
            no_memory = explain_out_of_memory(error, self._out_of_memory)
            if no_memory is not None:  # Ray ends a worker for that
                raise no_memory
        if self._restarts_left > 0:
            self._restarts_left -= 1
            self._live.add("rskd_retries_total")
