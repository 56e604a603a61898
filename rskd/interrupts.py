"""Ctrl-C and SIGTERM: one line, an orderly end, and 130 or 143 as the exit code.

    imports ─► end_at_once: the line, and out
    work    ─► stoppable: KeyboardInterrupt ─► MLflow's runs KILLED ─► the line ─► leave: Ray and servers end

    threads ─► a stop that they look for while they wait ─► KeyboardInterrupt in each

The second signal is ignored, so that haste does not break off that end; a third interrupts even that. Libraries set
handlers of their own, which know nothing of all this: `handlers_kept` undoes it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import FrameType
from typing import Any, NoReturn, TypeVar

MESSAGE = "stopped; what was finished is kept, run again to go on"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_TO_STOP = 60.0  # that threads have to end after an interrupt
_SECONDS_BETWEEN_LOOKS = 0.2
_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)  # of the thread that asks

T = TypeVar("T")


def exit_code(signal_number: int) -> int:
    """The exit code of a process that a signal ended, by custom: 130 for ctrl-C, 143 for SIGTERM."""
    return 128 + signal_number


def end_at_once() -> None:
    """From here on either signal ends the process, which has nothing to tidy up yet, with the line."""

    def end(signal_number: int, frame: FrameType | None) -> NoReturn:
        code = exit_code(signal_number)
        os.write(2, f"rskd: {MESSAGE}\n".encode())
        if "--json" in sys.argv:
            os.write(1, f"{failure(MESSAGE, code)}\n".encode())
        os._exit(code)

    _handle_by(end)


def failure(message: str, code: int) -> str:
    """What a command that failed prints on stdout with --json."""
    return json.dumps({"ok": False, "error": message, "exit_code": code})


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Within it, either signal raises KeyboardInterrupt, but for the second; yields the list of those that came."""
    came: list[int] = []

    def stop(signal_number: int, frame: FrameType | None) -> None:
        came.append(signal_number)
        if len(came) != 2:
            raise KeyboardInterrupt

    with handlers_kept():
        _handle_by(stop)
        yield came


@contextmanager
def deferred() -> Iterator[None]:
    """Within it, a signal waits until the end of the block, and so does the second; a third does not."""
    came: list[int] = []

    def wait(signal_number: int, frame: FrameType | None) -> None:
        came.append(signal_number)
        if len(came) > 2:
            raise KeyboardInterrupt

    with handlers_kept():
        _handle_by(wait)
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def recognised() -> Iterator[None]:
    """Within it, an error that a library made of an interrupt is that interrupt again.

    C code does: Ray's `CoreWorker.wait` leaves a SystemError, whose cause is what the handler of the signal raised.
    """
    try:
        yield
    except Exception as error:
        interrupt = _interrupt_behind(error)
        if interrupt is None:
            raise
        raise interrupt from None


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """KeyboardInterrupt, or Prefect's signal of its own, that this error came from."""
    if isinstance(error, GeneratorExit | SystemExit):
        return None
    if not isinstance(error, Exception):
        return error
    behind = error.__cause__ or error.__context__
    return behind and _interrupt_behind(behind)


def in_threads(work: Callable[[T], object], items: Sequence[T], at_once: int) -> None:
    """Call `work` with each of `items`, so many at a time, each in a thread with this context; one at a time, here.

    An interrupt of this thread is a KeyboardInterrupt in each of them, where it waits by `result_of` or `pause`, and is
    raised here once they have ended. So is what `work` raises.
    """
    if at_once == 1:
        for item in items:
            work(item)
        return
    stop = threading.Event()

    def run(item: T) -> None:
        _stop.set(stop)
        work(item)

    pool = ThreadPoolExecutor(at_once, "side-by-side")
    running = [pool.submit(copy_context().run, run, item) for item in items]
    try:
        for one in running:
            one.result()
    except BaseException:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([one for one in running if not one.cancelled()], timeout=_SECONDS_TO_STOP)
        raise
    pool.shutdown()


def result_of(work: Future[T]) -> T:
    """What `work` comes to, waited for in Python, which any signal interrupts, and the stop of a thread too."""
    while _stop.get() is not None and not wait([work], timeout=_SECONDS_BETWEEN_LOOKS).done:
        pause(0)
    return work.result()


def pause(seconds: float) -> None:
    """Sleep; KeyboardInterrupt in a thread that is to stop."""
    stop = _stop.get()
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise KeyboardInterrupt


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Whatever handles the signals within it, afterwards they are handled as before."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            _handle(number, signal.SIG_DFL if handler is None else handler)


def leave(code: int) -> NoReturn:
    """Exit with a code, whatever signals come. Work that was stopped is not waited for where it is in a thread."""
    for number in _SIGNALS:
        _handle(number, signal.SIG_IGN)
    if code in map(exit_code, _SIGNALS):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _handle_by(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in _SIGNALS:
        _handle(number, handler)


def _handle(number: signal.Signals, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # no other one may
        signal.signal(number, handler)
