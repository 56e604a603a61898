"""What a measured figure depends on beside its inputs: the command, the day, the machine."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from pathlib import Path

import torch


def provenance() -> dict[str, str]:
    """Command, date (UTC), device, threads and version of torch of this process."""
    script = Path(sys.argv[0])
    program = f"python -m {'.'.join(script.with_suffix('').parts[-2:])}" if script.suffix == ".py" else script.name
    return {
        "command": " ".join([program, *sys.argv[1:]]),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Name of the CPU, and the widest instructions that torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{match[1] if match else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
