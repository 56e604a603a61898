"""Sparse KD loss, forward and backward, beside cross-entropy: `make bench`, or python tests/bench/bench_loss.py.

Every round times each loss once, one after the other, so that a busy machine slows all of them alike; the table shows
medians, and ratios to the fastest cross-entropy of the same table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rskd import SparseTargets, sparse_kd_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(num_tokens: int, vocab_size: int, num_unique: int) -> dict[str, Loss]:
    """Name to loss(hidden [N, D], weight [V, D]); the first two are the peers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    ids = torch.randint(vocab_size, (num_tokens, num_unique), generator=generator)
    targets = SparseTargets(ids, torch.full(ids.shape, 1 / num_unique))
    return {
        "cross_entropy(linear)": lambda hidden, weight: F.cross_entropy(F.linear(hidden, weight), labels),
        "linear_cross_entropy": lambda hidden, weight: F.linear_cross_entropy(hidden, weight, labels),
        "sparse_kd eager": lambda hidden, weight: sparse_kd_loss(hidden, weight, targets, impl="eager"),
        "sparse_kd chunked": lambda hidden, weight: sparse_kd_loss(hidden, weight, targets, impl="chunked"),
    }


def seconds(loss: Loss, hidden: Tensor, weight: Tensor) -> float:
    """Wall time of one forward and backward."""
    hidden.grad = weight.grad = None
    started = time.perf_counter()
    loss(hidden, weight).backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--unique", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.manual_seed(0)
    hidden = torch.randn(args.tokens, args.hidden, requires_grad=True)
    weight = (0.02 * torch.randn(args.vocab, args.hidden)).requires_grad_()
    contenders = losses(args.tokens, args.vocab, args.unique)
    for loss in contenders.values():
        seconds(loss, hidden, weight)
    rounds = [{name: seconds(loss, hidden, weight) for name, loss in contenders.items()} for _ in range(args.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in contenders}
    fastest = min(medians[name] for name in list(contenders)[:2])

    shape = f"N={args.tokens} D={args.hidden} V={args.vocab} K={args.unique} fp32"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table("loss", "median s", "ratio", title=f"forward + backward, {shape}; {machine}", title_justify="left")
    for name, median in medians.items():
        table.add_row(name, f"{median:.3f}", f"{median / fastest:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
