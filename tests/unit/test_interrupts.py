"""Signals in this process and in small ones; the stages' are in tests/integration/test_interrupts.py."""

import json
import signal
import subprocess
import sys

import pytest

from rskd import interrupts

BY = pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
LINE = "rskd: stopped; what was finished is kept, run again to go on\n"


def _failure(code: int) -> dict:
    return {"ok": False, "error": "stopped; what was finished is kept, run again to go on", "exit_code": code}


def _command(work: str, by: signal.Signals) -> subprocess.CompletedProcess[str]:
    """A command whose work is this code, in which `again()` sends the signal."""
    code = f"""
import signal, sys, threading, typer
from rskd.cli import Outcome, run_app
app = typer.Typer()
def again():
    signal.raise_signal({int(by)})
@app.command()
def main() -> Outcome:
    {work.replace(chr(10), chr(10) + "    ")}
    return Outcome({{"done": True}}, "")
run_app(app)
"""
    return subprocess.run([sys.executable, "-c", code, "--json"], capture_output=True, text=True, check=False)


@BY
def test_while_modules_are_imported_it_is_the_line_already(by: signal.Signals, code: int):
    program = f"import signal; from rskd import interrupts; interrupts.end_at_once(); signal.raise_signal({int(by)})"
    done = subprocess.run([sys.executable, "-c", program, "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, json.loads(done.stdout)) == (code, LINE, _failure(code))


@BY
@pytest.mark.parametrize(
    "work",
    [
        "again()",
        "try:\n    again()\nfinally:\n    again()",
        "try:\n    again()\nexcept KeyboardInterrupt:\n    sys.exit(1)",
        "try:\n    again()\nexcept KeyboardInterrupt:\n    raise RuntimeError('a worker died')",
        "threading.Thread(target=threading.Event().wait).start()\nagain()",
    ],
    ids=["once", "twice", "a library exits", "a library raises", "a thread goes on"],
)
def test_a_command_ends_with_the_line_and_the_object(by: signal.Signals, code: int, work: str):
    done = _command(work, by)
    assert (done.returncode, done.stderr, json.loads(done.stdout)) == (code, LINE, _failure(code))


def test_what_finished_in_spite_of_a_signal_is_told():
    done = _command("try:\n    again()\nexcept KeyboardInterrupt:\n    pass", signal.SIGTERM)
    assert (done.returncode, done.stderr, json.loads(done.stdout)) == (0, "", {"done": True})


def test_servers_end_in_order_though_nobody_waits_for_threads():
    work = "import atexit\natexit.register(print, 'ended', file=sys.stderr)\nagain()"
    assert _command(work, signal.SIGINT).stderr == f"{LINE}ended\n"


def test_a_deferred_signal_comes_at_the_end_and_a_third_at_once():
    reached = []

    def signalled(times: int) -> None:
        with interrupts.deferred():
            for _ in range(times):
                signal.raise_signal(signal.SIGTERM)
            reached.append(times)

    for times in (2, 3):
        with interrupts.stoppable(), pytest.raises(KeyboardInterrupt):
            signalled(times)
    assert reached == [2]


def test_handlers_of_libraries_do_not_stay():
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.handlers_kept():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
    assert signal.getsignal(signal.SIGTERM) is before


def _in_c_code() -> None:
    raise SystemError("returned a result with an exception set") from KeyboardInterrupt()


def _by_a_handler() -> None:
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("a worker died")


def _of_another_kind() -> None:
    try:
        raise ValueError("first")
    finally:
        raise FileNotFoundError("second")


@pytest.mark.parametrize("work", [_in_c_code, _by_a_handler])
def test_an_error_made_of_an_interrupt_is_that_interrupt(work):
    with pytest.raises(KeyboardInterrupt), interrupts.recognised():
        work()


def test_any_other_error_stays():
    with pytest.raises(FileNotFoundError), interrupts.recognised():
        _of_another_kind()
