"""A training step of one student by how it is held on the device: python tests/bench/bench_training.py [--compile].

Plain and sharded (FSDP2 on one rank: what sharding costs before there is anything to divide), with and without
activation checkpointing, and with `--compile` also with compiled decoder blocks; each with cross-entropy and with
sparse KD from targets in memory. `speed to ce` is the ratio of the medians (paper: 0.90). `MFU` counts the work of
`made_llamas.py` against the peak of `device_peaks.py`; checkpointing's recomputation does not count. `peak MiB` is all
that is allocated: weights, gradients, moments and activations. What does not fit is a row that says so.

Runs on a bare machine with a GPU and what infra/requirements-gpu.txt lists.
"""

from __future__ import annotations

import gc
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from device_peaks import Peak, device_peak
from made_llamas import Shape, make_batch
from measure import Row, argument_parser, markdown_table, synchronize, tiny_option, whole_peak_mib, write_results

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.student.sharding import distribute, student_of
from rskd.student.trainer import StudentLoss, make_optimizer, train_step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = "bfloat16" if DEVICE.type == "cuda" else "float32"
OBJECTIVES = ("ce", "sparse_kd")


class Setting(NamedTuple):
    """A student and the windows of its step."""

    shape: Shape
    rows: int
    seq_len: int
    rounds: int
    num_unique: int = 12


# Of the size of SmolLM2-135M, of the paper's 300M student, and of 1.2 billion parameters.
SETTINGS = [
    Setting(Shape(576, 30, 49_152), 16, 2048, 10),
    Setting(Shape(1024, 16, 128_256), 8, 2048, 10),
    Setting(Shape(2048, 18, 128_256), 4, 2048, 8),
]
TINY_SETTINGS = [Setting(Shape(64, 2, 512), 2, 32, 1)]


def measure(setting: Setting, how: dict[str, Any], peak: Peak) -> list[Row]:
    """A row for each objective."""
    batch = make_batch(setting.shape, setting.rows, setting.seq_len, setting.num_unique)
    rows, seconds = [], {}
    for kind in OBJECTIVES:
        row: Row = {
            "sharding": how["sharding"],
            "checkpointing": how["activation_checkpointing"],
            "compiled": "yes" if how["compile"] else "no",
            "objective": kind,
        }
        try:
            seconds[kind], peak_mib, parameters = _steps(setting, kind, how, batch)
        except torch.OutOfMemoryError:
            row |= {"tokens/s": "out of memory"}
        else:
            tokens = setting.rows * setting.seq_len
            flops = tokens * setting.shape.training_flops(parameters, setting.seq_len)
            row |= {
                "tokens/s": tokens / seconds[kind],
                "ms a step": 1e3 * seconds[kind],
                "speed to ce": seconds["ce"] / seconds[kind] if "ce" in seconds else float("nan"),
                "MFU": flops / seconds[kind] / peak.flops_per_s,
                "peak MiB": peak_mib,
                "bytes a parameter": peak_mib * 2**20 / parameters,
            }
        rows.append(row)
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def _steps(setting: Setting, kind: str, how: dict[str, Any], batch: CacheBatch) -> tuple[float, float, int]:
    """Median seconds of a step, peak MiB, and the number of parameters."""
    config = TrainConfig(steps=10**6, global_batch=setting.rows, micro_batch=setting.rows, precision=PRECISION, **how)  # pyright: ignore[reportArgumentType]
    make_loss = partial(StudentLoss, objective=ObjectiveConfig(kind=kind), vocab_size=setting.shape.vocab)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    loss = distribute(setting.shape.model, make_loss, config, DEVICE)
    student = student_of(loss)
    step = partial(train_step, loss, make_optimizer(student, config), batch, config, step=10, device=DEVICE)
    for _ in range(3):  # compiles, and makes the optimizer's moments
        step()
    peak_mib = whole_peak_mib(step)
    seconds = []
    for _ in range(setting.rounds):
        synchronize()
        started = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), peak_mib, student.num_parameters()


def main() -> None:
    parser = argument_parser(__doc__)
    tiny_option(parser)
    parser.add_argument("--compile", action="store_true", help="with compiled decoder blocks, in place of plain ones")
    args = parser.parse_args()
    ways = [
        {"sharding": sharding, "activation_checkpointing": checkpointing, "compile": args.compile}
        for sharding in ("none", "full")
        for checkpointing in ("none", "blocks")
    ]
    settings = TINY_SETTINGS if args.tiny else SETTINGS
    if args.compile:  # minutes for each: one size says what it brings
        settings, ways = settings[:1], [ways[0], ways[-1]]
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    peak = device_peak(DEVICE)
    title = f"Training steps on one device, {PRECISION}; peak {peak.flops_per_s / 1e12:.3g} TFLOP/s ({peak.source})"
    name = f"training-{'compiled-' if args.compile else ''}{DEVICE.type}"
    tables: dict[str, list[Row]] = {}
    for setting in settings:
        with torch.device("meta"):
            size = setting.shape.model().num_parameters()
        heading = (
            f"{size / 1e6:.0f}M parameters, V={setting.shape.vocab:,}, {setting.rows} windows of {setting.seq_len}"
        )
        tables[heading] = []
        for how in ways:
            tables[heading] += measure(setting, how, peak)
        print(f"\n{heading}\n{markdown_table(tables[heading])}", flush=True)
        write_results(args.out, name, title, tables)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
