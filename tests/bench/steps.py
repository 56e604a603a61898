"""Steps that each run in a process of their own, under a time limit, and of which a rerun does only what is left.

    steps ─► passed before? ─ yes ─► skipped
                  └ no ─► packages there? ─► process, its output in a log ─► record ─► table of all steps, exit code

A step that fails, runs out of memory or takes too long is recorded and keeps no other one from running. A rerun begins
with the steps that have not run yet, then tries again those that failed. Whatever a step leaves running is killed.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from rskd.markdown import markdown_table

Status = Literal["passed", "failed", "out of memory", "too long", "not installed", "left"]
FAILURES: tuple[Status, ...] = ("failed", "out of memory", "too long")
LIMIT_S = 570  # a machine may be lent for ten minutes at a time
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory", re.IGNORECASE)
_LONGEST_NOTE = 80


@dataclass(frozen=True)
class Step:
    """One process. `needs` are packages that it imports, `proof` what the output of a step that passed holds."""

    name: str
    command: tuple[str, ...]
    expected_s: int
    needs: tuple[str, ...] = ()
    proof: str = ""
    limit_s: float = LIMIT_S


@dataclass(frozen=True)
class Record:
    """What became of a step."""

    status: Status
    seconds: float = 0.0
    note: str = ""
    ended: str = ""  # UTC


def run_all(steps: Sequence[Step], folder: Path, *, again: bool = False, environment: Mapping[str, str]) -> int:
    """Run what has not passed, with records and logs in `folder`; prints progress and a table. Returns the exit code.

    0 if nothing failed, 1 if something did, 130 after an interruption. `again` forgets what was recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if again:
        for step in steps:
            record_file(folder, step).unlink(missing_ok=True)
    records = {step.name: read_record(folder, step) for step in steps}
    todo = [step for step in steps if records[step.name].status != "passed"]
    todo.sort(key=lambda step: records[step.name].status in FAILURES)
    print(f"{len(steps) - len(todo)} of {len(steps)} steps passed before; logs: {folder}", flush=True)
    interrupted = False
    for number, step in enumerate(todo):
        left = sum(other.expected_s for other in todo[number:] if not missing(other))
        print(
            f"[{number + 1}/{len(todo)}] {step.name}: about {step.expected_s} s; all that is left: {left} s", flush=True
        )
        try:
            records[step.name] = run(step, folder, environment)
        except KeyboardInterrupt:
            interrupted = True
            break
        done = records[step.name]
        print(f"      {done.status}, {done.seconds:.0f} s: {done.note}", flush=True)
        record_file(folder, step).write_text(json.dumps(asdict(done)))
    print(f"\n{summary(steps, records)}\n")
    counts = {status: sum(record.status == status for record in records.values()) for status in get_args(Status)}
    print(", ".join(f"{count} {status}" for status, count in counts.items() if count), flush=True)
    if interrupted:
        return 130
    return int(any(record.status in FAILURES for record in records.values()))


def run(step: Step, folder: Path, environment: Mapping[str, str]) -> Record:
    """Run one step; its output goes to a log in `folder`."""
    if absent := missing(step):
        return Record("not installed", note=", ".join(absent), ended=_now())
    log = folder / f"{_slug(step.name)}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            code = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    status, note = _judge(step, code, log.read_text(errors="replace"))
    return Record(status, round(time.monotonic() - started, 1), note, _now())


def missing(step: Step) -> list[str]:
    """The packages that a step needs and that are not installed."""
    return [package for package in step.needs if find_spec(package) is None]


def summary(steps: Sequence[Step], records: Mapping[str, Record]) -> str:
    """A table of all steps, in Markdown."""
    rows = [
        (step.name, record.status, f"{record.seconds:.0f}", record.note, record.ended)
        for step in steps
        for record in [records[step.name]]
    ]
    return markdown_table(("step", "result", "s", "note", "ended (UTC)"), rows)


def record_file(folder: Path, step: Step) -> Path:
    """Where the record of a step is."""
    return folder / f"{_slug(step.name)}.json"


def read_record(folder: Path, step: Step) -> Record:
    """What was recorded of a step; `left` where there is no record, or half of one."""
    try:
        return Record(**json.loads(record_file(folder, step).read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return Record("left")


def _judge(step: Step, code: int | None, output: str) -> tuple[Status, str]:
    lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
    last = lines[-1][:_LONGEST_NOTE] if lines else "no output"
    if code is None:
        return "too long", f"killed after {step.limit_s:g} s; {last}"
    if code and _OUT_OF_MEMORY.search(output):
        return "out of memory", last
    if code:
        return "failed", f"killed by signal {-code}; {last}" if code < 0 else last
    if not re.search(step.proof, output):
        return "failed", f"nothing was tested; {last}"
    return "passed", last


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}"
