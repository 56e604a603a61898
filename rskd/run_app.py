"""Run the verbs of a command line: one line for an error, one JSON object for --json, and the exit code.

    argv ─► run_app ─► a verb ─► Outcome ─► text, or JSON on stdout ─► exit code

Exit codes are those of `rskd.errors` (0 done, 2 config or call, 3 outputs, 1 else), 130 after ctrl-C and 143 after
SIGTERM (`rskd.interrupts`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from rskd import environment, interrupts
from rskd.errors import explained_by, first_line
from rskd.outcome import Outcome
from rskd.progress import show_announcements

_INTERRUPTED = interrupts.exit_code(signal.SIGINT)


def run_app(app: typer.Typer) -> NoReturn:
    """Run an app whose commands return an Outcome, on the process's arguments, and exit with its code."""
    args = sys.argv[1:]
    verbs = [arg for arg in args if arg not in ("--json", "--debug")]
    interrupts.leave(run(lambda: app(verbs, standalone_mode=False), as_json="--json" in args, debug="--debug" in args))


def run(command: Callable[[], Any], *, as_json: bool = False, debug: bool = False) -> int:
    """Run a command that returns an Outcome (or None), print what it says, and return the exit code."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries, as our own, are for terminals
    with _stdout_for_json_alone() if as_json else _plain_stdout() as stdout, interrupts.stoppable() as signals:
        try:
            environment.prepare()
            show_announcements()
            outcome = command()
            if outcome == _INTERRUPTED:  # typer's answer to KeyboardInterrupt
                raise KeyboardInterrupt
            if not isinstance(outcome, Outcome):  # --help
                return outcome if isinstance(outcome, int) else 0
            if as_json:
                print(json.dumps(outcome.data, default=str), file=stdout)
            else:
                outcome.show()
            return outcome.exit_code
        except BaseException as error:
            if debug:
                traceback.print_exc()
            message, exit_code = _explain(error, signals)
            print(f"rskd: {message}", file=sys.stderr)
            if as_json:
                print(interrupts.failure(message, exit_code), file=stdout)
            return exit_code


def _explain(error: BaseException, signals: list[int]) -> tuple[str, int]:
    if signals:  # whatever became of them on the way
        return interrupts.MESSAGE, interrupts.exit_code(signals[0])
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return interrupts.MESSAGE, _INTERRUPTED
    known = explained_by(error)
    if known is not None:
        return str(known), known.exit_code
    if isinstance(error, typer.TyperException):
        return f"{error.format_message()} (see rskd --help)", error.exit_code
    return f"{type(error).__name__}: {first_line(error, 1000)} (--debug shows where)", 1


@contextmanager
def _stdout_for_json_alone() -> Iterator[Any]:
    """Send everything that libraries print on stdout, from any process or C code, to stderr; yield the real stdout."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)
        try:
            yield stdout
        finally:
            sys.stdout.flush()
            stdout.flush()
            os.dup2(stdout.fileno(), 1)


@contextmanager
def _plain_stdout() -> Iterator[Any]:
    yield sys.stdout
