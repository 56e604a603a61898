"""How the benchmarks measure: paired times, peak memory, and results with the environment that they come from.

Needs torch alone, so that it runs on a bare machine with a GPU.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rskd.provenance import processor

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def paired_seconds(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times of each contender, once a round one after the other, so that a busy machine slows all of them alike.

    Wall time on a GPU; on a CPU the processor time of this process, which is not spent while others run.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            synchronize()
            started = clock()
            run()
            synchronize()
            times[name].append(clock() - started)
    return times


def ratio(times: list[float], peer: list[float]) -> float:
    """Median over the rounds of time / peer's time."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, peer))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(run: Callable[[], Any]) -> float:
    """Peak memory of `run` beyond what is held before it: allocated on a GPU, resident on a CPU (Linux).

    On a CPU call it once in a fresh process: freed memory that the process still holds would hide a peak.
    """
    before = held_mib()
    run()
    return peak_since_mib() - before


def held_mib() -> float:
    """Memory that is held now, from where `peak_since_mib` starts anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return _status_mib("VmRSS")


def peak_since_mib() -> float:
    """The most that was held since the last `held_mib`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20
    return _status_mib("VmHWM")


def whole_peak_mib(run: Callable[[], Any]) -> float:
    """Peak memory of `run` with all that is held before it, allocated on a GPU; NaN on a CPU."""
    if not torch.cuda.is_available():
        run()
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def peak_elsewhere(script: str, setting: Iterable[Any], name: str) -> float:
    """What `script --peak` prints for one contender of a setting: its peak in a process of its own."""
    command = [sys.executable, script, "--peak", json.dumps([*setting, name])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all benchmarks share: `--out`, and their own description as the help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def tiny_option(parser: argparse.ArgumentParser) -> None:
    """`--tiny`, of the benchmarks that `make bench-gpu` runs."""
    parser.add_argument(
        "--tiny", action="store_true", help="in seconds on a CPU: tests the benchmark, measures nothing"
    )


def _status_mib(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def where_time_goes(run: Callable[[], Any], lines: int = 12) -> list[Row]:
    """The operators in which a second call of `run` spends most, on the device that does the work."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    run()
    with profile(activities=activities) as profiled:
        run()
    field = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    operators = sorted(profiled.key_averages(), key=lambda operator: -getattr(operator, field))
    total = sum(getattr(operator, field) for operator in operators)
    return [
        {
            "operator": operator.key[:60],
            "calls": operator.count,
            "ms": getattr(operator, field) / 1e3,
            "share": getattr(operator, field) / total,
        }
        for operator in operators[:lines]
    ]


def environment() -> dict[str, str]:
    """What the figures depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        **{name: version(name) for name in ("triton", "transformers") if find_spec(name)},
        **({"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {}),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "command": " ".join(["python", *sys.argv]),
    }


def markdown_table(rows: list[Row]) -> str:
    """A table of the rows, whose keys are the columns."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_text(row.get(name, "")) for name in header] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else str(round(value))


def write_results(out: Path, name: str, title: str, tables: dict[str, list[Row]]) -> None:
    """`out`/<date>-<name>.md with the environment and a table under each heading, and one .csv with all rows."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{name}"
    facts = "\n".join(f"- {key}: {value}" for key, value in environment().items())
    parts = [f"## {heading}\n\n{markdown_table(rows)}\n" for heading, rows in tables.items() if rows]
    stem.with_suffix(".md").write_text(f"# {title}\n\n{facts}\n\n" + "\n".join(parts))
    rows = [{"table": heading, **row} for heading, table in tables.items() for row in table]
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {stem.name}.md and .csv")
