"""The losses, forward and backward, beside their peers: time and peak memory by one and the same setting.

    python tests/bench/bench_loss.py [--out DIR] [--quick]

torch alone is enough; the Triton kernel runs on a GPU. Sparse KD is held against cross-entropy:
`F.cross_entropy(F.linear(...))`, `F.linear_cross_entropy` by its options, and on a GPU Liger and cut-cross-entropy
where they are installed. Full KD and top-k are held against the same loss written densely. Times are paired: each
contender runs once a round, `time` is the median ratio to the fastest peer; one that is far behind runs once only.
Peaks are beyond the inputs, on a CPU each in a process of its own, beside the fastest peer's and beside the smallest
of all peers' at whatever time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measure import (
    Row,
    argument_parser,
    markdown_table,
    paired_seconds,
    peak_elsewhere,
    peak_mib,
    ratio,
    tiny_option,
    write_results,
)
from torch import Tensor

from rskd import SparseTargets, sparse_kd_loss
from rskd.student.objective import full_kd_loss

Loss = Callable[[Tensor, Tensor], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = "rskd"
IMPLS = ("chunked", "triton") if DEVICE == "cuda" else ("chunked",)


class Setting(NamedTuple):
    """What one table is about."""

    family: str
    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: str
    rounds: int

    def __str__(self) -> str:
        return f"{self.family}, N={self.num_tokens} D={self.hidden_size} V={self.vocab_size} {self.dtype}"


CPU_SETTINGS = [
    Setting("sparse_kd", 1024, 576, 49152, "float32", 7),
    Setting("sparse_kd", 1024, 576, 49152, "bfloat16", 5),
    Setting("full_kd", 1024, 576, 49152, "float32", 5),
    Setting("top_k", 1024, 576, 49152, "float32", 5),
    Setting("top_k and ghost token", 1024, 576, 49152, "float32", 5),
    Setting("sparse_kd", 4096, 576, 49152, "float32", 3),
]
GPU_SETTINGS = [
    Setting(family, 8192, hidden_size, vocab_size, "bfloat16", 20)
    for vocab_size in (128256, 49152)
    for family, hidden_size in (
        ("sparse_kd", 2048),
        ("sparse_kd", 4096),
        ("full_kd", 2048),
        ("top_k", 2048),
        ("top_k and ghost token", 2048),
    )
]
TINY_SETTINGS = [Setting("sparse_kd", 32, 16, 512, "float32", 2), Setting("top_k", 32, 16, 512, "float32", 2)]
OPTIONAL_PEERS = {"Liger": "liger_kernel", "cut-cross-entropy": "cut_cross_entropy"}  # GPU alone; packages
NUM_UNIQUE = (16, 50)
SLOW = 2.0  # times the fastest: a contender beyond is timed once


def make_inputs(setting: Setting) -> tuple[Tensor, Tensor]:
    """hidden [N, D] and weight [V, D]."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(rows: int, scale: float) -> Tensor:
        values = scale * torch.randn(rows, setting.hidden_size, generator=generator, device=DEVICE)
        return values.to(getattr(torch, setting.dtype)).requires_grad_()

    return normal(setting.num_tokens, 1.0), normal(setting.vocab_size, 0.02)


def contenders(setting: Setting) -> dict[str, Loss]:
    """Peers and ours, whose names start with OURS."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    shape = (setting.num_tokens, setting.vocab_size)
    if setting.family == "sparse_kd":
        return _sparse_kd(shape, generator, emulated=DEVICE == "cpu" and setting.dtype == "bfloat16")
    teacher_logits = torch.randn(shape, generator=generator, device=DEVICE).mul_(3)
    if setting.family == "full_kd":
        return _full_kd(teacher_logits)
    weights, ids = teacher_logits.softmax(-1).topk(max(NUM_UNIQUE))
    return _top_k(SparseTargets(ids, weights), ghost_token=setting.family == "top_k and ghost token")


def _sparse_kd(shape: tuple[int, int], generator: torch.Generator, *, emulated: bool) -> dict[str, Loss]:
    """Without whole logits where bf16 products are `emulated`: those take minutes."""
    num_tokens, vocab_size = shape
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator, device=DEVICE)
    losses = _linear_cross_entropies(labels) | _gpu_peers(labels)
    if not emulated:
        losses["cross_entropy(linear)"] = lambda h, w: F.cross_entropy(F.linear(h, w), labels)
    for num_unique in NUM_UNIQUE:
        ids = torch.randint(vocab_size, (num_tokens, num_unique), generator=generator, device=DEVICE)
        targets = SparseTargets(ids, torch.full(ids.shape, 1 / num_unique, device=DEVICE))
        for impl in IMPLS:
            losses[f"{OURS} {impl}, K={num_unique}"] = lambda h, w, targets=targets, impl=impl: sparse_kd_loss(
                h, w, targets, impl=impl
            )
    return losses


def _full_kd(teacher_logits: Tensor) -> dict[str, Loss]:
    return {
        "dense": lambda h, w: F.cross_entropy(F.linear(h, w), teacher_logits.softmax(-1)),
        OURS: lambda h, w: full_kd_loss(h, w, teacher_logits),
    }


def _top_k(targets: SparseTargets, *, ghost_token: bool) -> dict[str, Loss]:
    def dense(hidden: Tensor, weight: Tensor) -> Tensor:
        log_q = F.linear(hidden, weight).log_softmax(-1)
        losses = -(targets.weights * log_q.gather(1, targets.ids)).sum(-1)
        if ghost_token:
            others = log_q.scatter(1, targets.ids, -torch.inf).logsumexp(-1)
            losses = losses - (1 - targets.mass) * others
        return losses.mean()

    residual = "ghost" if ghost_token else "none"
    return {"dense": dense, OURS: lambda h, w: sparse_kd_loss(h, w, targets, residual=residual)}


def _linear_cross_entropies(labels: Tensor) -> dict[str, Loss]:
    """torch's fused loss by the options that bear on time and memory (torch >= 2.13)."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}
    sizes = (128, 256, 512) if DEVICE == "cpu" else (512, 1024, 2048, 4096)
    choices = {"defaults": {}} | {f"chunks of {size}": {"batch_chunk_size": size} for size in sizes}
    losses: dict[str, Loss] = {}
    for name, choice in choices.items():
        options = torch.nn.LinearCrossEntropyOptions(**choice)
        losses[f"linear_cross_entropy, {name}"] = lambda h, w, options=options: F.linear_cross_entropy(
            h, w, labels, options=options
        )
    return losses


def _gpu_peers(labels: Tensor) -> dict[str, Loss]:
    losses: dict[str, Loss] = {}
    if DEVICE == "cuda" and find_spec(OPTIONAL_PEERS["Liger"]):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        losses["Liger"] = lambda h, w: liger(w, h, labels)
    if DEVICE == "cuda" and find_spec(OPTIONAL_PEERS["cut-cross-entropy"]):
        from cut_cross_entropy import linear_cross_entropy

        losses["cut-cross-entropy"] = lambda h, w: linear_cross_entropy(h, w, labels)
    return losses


def forward_backward(loss: Loss, inputs: tuple[Tensor, Tensor]) -> None:
    for tensor in inputs:
        tensor.grad = None
    loss(*inputs).backward()


def peak_here(setting: Setting, name: str) -> float:
    """Peak MiB of one contender, after a small call that loads what it needs."""
    small = setting._replace(num_tokens=8, vocab_size=1000)
    forward_backward(contenders(small)[name], make_inputs(small))
    loss, inputs = contenders(setting)[name], make_inputs(setting)
    for tensor in inputs:
        tensor.grad = None
    return peak_mib(lambda: forward_backward(loss, inputs))


def compare(setting: Setting) -> list[Row]:
    """The table of one setting, fastest first."""
    losses, inputs = contenders(setting), make_inputs(setting)
    runs = {name: lambda loss=loss: forward_backward(loss, inputs) for name, loss in losses.items()}
    times = paired_seconds(runs, rounds=1)  # warms up; of the slow ones that is all
    limit = SLOW * min(min(seconds) for seconds in times.values())
    times |= paired_seconds({name: run for name, run in runs.items() if times[name][0] <= limit}, setting.rounds)
    peak = peak_here if DEVICE == "cuda" else partial(peak_elsewhere, __file__)
    peaks = {name: peak(setting, name) for name in losses}
    peers = [name for name in losses if not name.startswith(OURS)]
    fastest = min(peers, key=lambda name: statistics.median(times[name]))
    smallest = min(peaks[name] for name in peers)
    rows: list[Row] = [
        {
            "loss": name,
            "rounds": len(times[name]),
            "median s": statistics.median(times[name]),
            "time / fastest peer": ratio(times[name], times[fastest]),
            "peak MiB": peaks[name],
            "peak / fastest peer": peaks[name] / peaks[fastest],
            "peak / smallest peer": peaks[name] / smallest,
        }
        for name in sorted(losses, key=lambda name: statistics.median(times[name]))
    ]
    absent = [name for name in OPTIONAL_PEERS if name not in losses and setting.family == "sparse_kd"]
    return rows + [{"loss": name, "rounds": "not installed"} for name in absent if DEVICE == "cuda"]


def main() -> None:
    parser = argument_parser(__doc__)
    tiny_option(parser)
    parser.add_argument("--quick", action="store_true", help="the first setting alone, two rounds")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        *fields, name = json.loads(args.peak)
        print(peak_here(Setting(*fields), name))
        return
    settings = TINY_SETTINGS if args.tiny else GPU_SETTINGS if DEVICE == "cuda" else CPU_SETTINGS
    if args.quick:
        settings = [settings[0]._replace(rounds=2)]
    tables: dict[str, list[Row]] = {}
    for setting in settings:
        tables[str(setting)] = compare(setting)
        print(f"\n{setting}\n{markdown_table(tables[str(setting)])}", flush=True)
        write_results(args.out, f"loss-{DEVICE}", "Losses, forward and backward, beside their peers", tables)


if __name__ == "__main__":
    main()
