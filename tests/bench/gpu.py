"""All checks, or all benchmarks, on one GPU: python tests/bench/gpu.py check|bench [--again] [--tiny]

    make check-gpu    numerics on the device: losses, sampler, teacher, student, end to end
    make bench-gpu    time, memory and speed beside peers; dated tables in tests/bench/results

Each step is a process of its own that ends within ten minutes, the most worthwhile first (`steps.py`). Records and logs
are in .rskd/gpu/<device>-<code>/, where <code> is a digest of the sources, torch and triton: what has passed on this
device with this code is not run again. A dated summary is among the results.

Needs torch; Triton for the kernel. infra/requirements-gpu.txt lists what a machine that has no more needs for the rest,
as wheels to carry there: nothing is downloaded. A step whose packages are missing is reported as `not installed`.
Exit codes: 0 nothing failed, 1 something did, 2 no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from measure import RESULTS, environment
from steps import Step, missing, read_record, run_all, summary

ROOT = Path(__file__).parents[2]
MODELS = ("transformers", "accelerate", "pydantic", "pyarrow", "fsspec", "yaml")
_VERSIONS = ("torch", "triton", "transformers", "flash-attn", "liger-kernel", "cut-cross-entropy")


def check_steps() -> list[Step]:
    """The steps of `make check-gpu`, the most worthwhile first."""
    numerics = ("tests/numerics/test_gradients.py", "tests/unit/student/test_triton_loss.py")
    without_interpreter = ("-k", "not interpreter")
    return [
        _pytest(
            "losses: Triton, chunked, eager beside float64", 90, *numerics, *without_interpreter, needs=("triton",)
        ),
        _pytest("sampler: draws beside the CPU's", 40, "tests/gpu/test_sampler.py"),
        _pytest("sampler: statistics", 60, "tests/numerics/test_sampling_statistics.py"),
        _pytest("teacher", 60, "tests/gpu/test_teacher.py", needs=MODELS),
        _pytest("student: precision, checkpointing, FSDP on one rank", 90, "tests/gpu/test_student.py", needs=MODELS),
        _pytest("end to end", 90, "tests/gpu/test_end_to_end.py", needs=MODELS),
        _pytest("flash attention", 60, "tests/gpu/test_flash_attention.py", needs=(*MODELS, "flash_attn")),
        _pytest("student: compiled", 180, "tests/gpu/test_compiled.py", needs=(*MODELS, "triton")),
    ]


def bench_steps(results: Path, *, tiny: bool) -> list[Step]:
    """The steps of `make bench-gpu`, the most worthwhile first."""

    def bench(name: str, expected_s: int, script: str, *options: str, needs: tuple[str, ...] = ()) -> Step:
        path = f"tests/bench/bench_{script}.py"
        command = (sys.executable, path, "--out", str(results), *options, *(["--tiny"] if tiny else []))
        return Step(name, command, expected_s, needs, proof="written: ")

    return [
        bench("loss beside its peers", 180, "loss"),
        bench("training: sharding, checkpointing", 180, "training", needs=MODELS),
        bench("caching: teacher and sampler", 120, "teacher", needs=MODELS),
        bench("sampler beside product and softmax", 120, "sampler"),
        bench("training: objectives", 180, "student", needs=MODELS),
        bench("training: compiled", 400, "training", "--compile", needs=(*MODELS, "triton")),
    ]


def _pytest(name: str, expected_s: int, *arguments: str, needs: tuple[str, ...] = ()) -> Step:
    """Tests by the plugins that a bare machine has: pytest alone."""
    options = ("-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers", "-q", "-rs")
    command = (sys.executable, "-m", "pytest", *options, *arguments)
    return Step(name, command, expected_s, ("pytest", *needs), proof=r"[1-9]\d* passed")


def identity(device: str) -> str:
    """The device and the code that results are of: only on both of them a step is not run again."""
    content = hashlib.sha256(" ".join(f"{name}={installed(name)}" for name in _VERSIONS).encode())
    for folder in ("rskd", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            content.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-')}-{content.hexdigest()[:12]}"


def installed(package: str) -> str:
    """Its version, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_summary(what: str, steps: list[Step], folder: Path, results: Path) -> None:
    """`results`/<date>-gpu-<what>.md: the environment, and what became of each step."""
    facts = environment() | {name: installed(name) for name in _VERSIONS} | {"code": folder.name}
    records = {step.name: read_record(folder, step) for step in steps}
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    path = results / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-gpu-{what}.md"
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# make {what}-gpu\n\n{lines}\n\n{summary(steps, records)}\n")
    print(f"written: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "bench"))
    parser.add_argument("--again", action="store_true", help="run the steps that passed, too")
    parser.add_argument(
        "--tiny", action="store_true", help="every step in small on the CPU: tests them, measures nothing"
    )
    parser.add_argument("--state", type=Path, default=ROOT / ".rskd" / "gpu", help="folder of records and logs")
    parser.add_argument("--results", type=Path, help=f"folder of the tables (default: {RESULTS.relative_to(ROOT)})")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print(f"make {args.what}-gpu needs a GPU, and torch {torch.__version__} sees none (--tiny runs on the CPU)")
        return 2
    small = {"CUDA_VISIBLE_DEVICES": "", "RSKD_TINY": "1"} if args.tiny else {}
    folder = args.state / identity("tiny" if args.tiny else environment()["device"])
    results = (args.results or (folder if args.tiny else RESULTS)).absolute()
    steps = check_steps() if args.what == "check" else bench_steps(results, tiny=args.tiny)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends with the summary, as Ctrl-C does
    code = run_all(steps, folder, again=args.again, environment={"PYTHONPATH": str(ROOT)} | small)
    write_summary(args.what, steps, folder, results)
    if absent := sorted({package for step in steps for package in missing(step)}):
        print(f"not installed: {', '.join(absent)} (infra/requirements-gpu.txt lists what to carry)")
    return code


if __name__ == "__main__":
    sys.exit(main())
