"""The entrypoint of a job: python -m rskd.jobs.cluster.job URI, the file of its call.

What came of it is written beside that file, unless it was stopped. Exit codes are those of `rskd.errors`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from rskd import environment, interrupts
from rskd.errors import ConfigError, explained_by, first_line
from rskd.jobs.cluster.log import Told
from rskd.jobs.cluster.records import Outcome, read_call, write_outcome
from rskd.progress import watched_by
from rskd.tracking.started_by import tagged


def run(uri: str) -> int:
    """Run a stage and record what came of it; the exit code."""
    with interrupts.stoppable() as signals:
        try:
            environment.prepare()
            outcome = _outcome(uri)
            with interrupts.deferred():
                write_outcome(uri, outcome)
            return outcome.exit_code
        except BaseException as error:
            if signals:  # whatever became of them on the way
                print(f"rskd: {interrupts.MESSAGE}", flush=True)
                return interrupts.exit_code(signals[0])
            known = explained_by(error)
            print(f"rskd: {known or f'{type(error).__name__}: {first_line(error)}'}", flush=True)
            return ConfigError.exit_code


def _outcome(uri: str) -> Outcome:
    call = read_call(uri)
    with suppress(OSError):  # a machine that does not share it
        os.chdir(call.directory)
    try:
        with watched_by(Told()), tagged(call.tags):
            return Outcome.of_result(call())
    except Exception as error:
        outcome = Outcome.of_error(error)
        print(f"rskd: {outcome.message}", flush=True)
        return outcome


if __name__ == "__main__":
    interrupts.leave(run(sys.argv[1]))
