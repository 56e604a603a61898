"""What a measured figure depends on beside its inputs: the command, the day, the machine."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from itertools import takewhile
from pathlib import Path

import torch


def provenance() -> dict[str, str]:
    """Command, date (UTC), device, threads and version of torch of this process."""
    return {
        "command": " ".join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


def _program(script: Path) -> str:
    """What was typed before the arguments; Python gives the file of a module that was run by -m."""
    if script.suffix != ".py":
        return script.name
    packages = [folder.name for folder in takewhile(_is_package, script.parents)]
    if not packages:
        return f"python {script}"
    return f"python -m {'.'.join([*reversed(packages), script.stem]).removesuffix('.__main__')}"


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").exists()


def processor() -> str:
    """Name of the CPU, and the widest instructions that torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{match[1] if match else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
