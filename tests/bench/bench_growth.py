"""How time and memory grow: python tests/bench/bench_growth.py [--out DIR] (a few minutes).

Sparse KD loss (forward and backward) and `sample_from_hidden`, with one of vocabulary V, target entries K (for the
sampler: rounds), tokens N changed at a time; and a student's training step on the same number of tokens in windows of
growing length S, whose attention is the one thing that grows faster than its tokens. Each point is a process of its
own. The exponent is the slope of log(time) or log(peak) from the value before: 1 is linear, 2 would be quadratic.

Needs torch and transformers; draws a picture where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from measure import Row, argument_parser, markdown_table, paired_seconds, peak_mib, write_results
from torch import Tensor

from rskd import SparseTargets, sample_from_hidden, sparse_kd_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BASE = {"V": 49_152, "K": 16, "N": 1024, "S": 256}
HIDDEN_SIZE = 256 if DEVICE == "cpu" else 2048
VALUES = {
    "V": (32_768, 65_536, 131_072, 262_144),
    "K": (4, 8, 16, 32, 64, 128),
    "N": (256, 512, 1024, 2048, 4096),
    "S": (128, 256, 512, 1024, 2048),
}
CURVES = {"loss": ("V", "K", "N"), "sampler": ("V", "K", "N"), "student step": ("S",)}
ROUNDS = 5


def make_inputs(point: dict[str, int]) -> tuple[Tensor, Tensor]:
    """hidden [N, D] and weight [V, D]."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(point["N"], HIDDEN_SIZE, generator=generator, device=DEVICE)
    weight = 0.1 * torch.randn(point["V"], HIDDEN_SIZE, generator=generator, device=DEVICE)
    return hidden.to(DTYPE), weight.to(DTYPE)


def loss_at(point: dict[str, int]) -> Callable[[], object]:
    hidden, weight = (tensor.requires_grad_() for tensor in make_inputs(point))
    ids = torch.randint(point["V"], (point["N"], point["K"]), device=DEVICE)
    targets = SparseTargets(ids, torch.full(ids.shape, 1 / point["K"], device=DEVICE))

    def forward_backward() -> None:
        hidden.grad = weight.grad = None
        sparse_kd_loss(hidden, weight, targets).backward()

    return forward_backward


def sampler_at(point: dict[str, int]) -> Callable[[], object]:
    hidden, weight = make_inputs(point)
    return lambda: sample_from_hidden(hidden, weight, num_samples=point["K"])


def student_step_at(point: dict[str, int]) -> Callable[[], object]:
    from bench_student import Shape, make_batch, step_of

    shape = Shape(HIDDEN_SIZE, 4, 8192)
    batch = make_batch(shape, max(VALUES["S"]) // point["S"], point["S"], point["K"])
    teacher = torch.nn.Linear(1, 1, device=DEVICE)  # never asked
    return step_of("sparse_kd", shape, teacher, batch, "bfloat16" if DEVICE == "cuda" else "float32")


WORK = {"loss": loss_at, "sampler": sampler_at, "student step": student_step_at}


def measure_here(work: str, point: dict[str, int]) -> tuple[float, float]:
    """Median seconds and peak MiB of one point, after a small one that loads what it needs."""
    WORK[work](point | {"N": 8, "V": 1024})()
    run = WORK[work](point)
    peak = peak_mib(run)
    return statistics.median(paired_seconds({work: run}, ROUNDS)[work]), peak


def measure(work: str, variable: str) -> list[Row]:
    """A curve: a row for each value of one variable."""
    rows: list[Row] = []
    for value in VALUES[variable]:
        call = [sys.executable, __file__, "--point", json.dumps([work, BASE | {variable: value}])]
        seconds, peak = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        row: Row = {variable: value, "ms": 1e3 * seconds, "peak MiB": peak}
        for key in ("ms", "peak MiB"):
            row[f"exponent of {key}"] = _exponent(variable, key, rows[-1], row) if rows else ""
        rows.append(row)
    return rows


def _exponent(variable: str, key: str, last: Row, row: Row) -> str:
    return f"{math.log(row[key] / last[key]) / math.log(row[variable] / last[variable]):.2f}"


def draw(tables: dict[str, list[Row]], path: Path) -> None:
    """Time and memory of every curve, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as such, a tenth of the size
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(tables), figsize=(3 * len(tables), 5.5), sharey="row", layout="constrained")
    for column, (heading, rows) in enumerate(tables.items()):
        variable = next(iter(rows[0]))
        for axis, key in zip(axes[:, column], ("ms", "peak MiB")):
            axis.loglog([row[variable] for row in rows], [row[key] for row in rows], "o-")
            axis.set(title=heading, xlabel=variable, ylabel=key if column == 0 else "")
            axis.set_xticks([row[variable] for row in rows], [f"{row[variable]:,}" for row in rows], rotation=30)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    print(f"written: {path}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        work, point = json.loads(args.point)
        print(json.dumps(measure_here(work, point)))
        return
    tables: dict[str, list[Row]] = {}
    for work, variables in CURVES.items():
        for variable in variables:
            heading = f"{work} by {variable}"
            tables[heading] = measure(work, variable)
            print(f"\n{heading}\n\n{markdown_table(tables[heading])}", flush=True)
    write_results(args.out, f"growth-{DEVICE}", "How time and memory grow", tables)
    if find_spec("matplotlib"):
        draw(tables, args.out / f"growth-{DEVICE}.svg")


if __name__ == "__main__":
    main()
