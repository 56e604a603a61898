"""Peak memory of a training step, sharded or not, with and without activation checkpointing.

    python tests/bench/bench_sharding.py [--ranks N] [--out DIR]

Each row is a run of its own, of N ranks (NCCL where there are so many GPUs, else gloo on the CPU). `state` is what a
rank holds for weights, gradients and moments on paper. Measured is the rank with the highest peak, from before the
student is built: during the second step, and until the student is in place.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from bench_student import Shape, make_batch
from measure import Row, argument_parser, held_mib, markdown_table, peak_since_mib, write_results
from transformers import LlamaForCausalLM

from rskd.config import ObjectiveConfig, TrainConfig
from rskd.student.sharding import distribute, student_of
from rskd.student.trainer import StudentLoss, make_optimizer, train_step

_STATE_BYTES = 16  # of a parameter: fp32 weight, gradient and AdamW's two moments


def measured(args: argparse.Namespace, sharding: str, checkpointing: str) -> Row:
    """A row of the table, from ranks in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", json.dumps([folder, sharding, checkpointing])]
        sizes = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in ("ranks", "rows", "seq_len", "layers")]
        # Freed tensors go back to the system, so that resident memory is what is held.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        ranks = [subprocess.Popen([*command, f"--number={n}", *sizes], env=environment) for n in range(args.ranks)]
        codes = [rank.wait() for rank in ranks]
        assert not any(codes), codes
        found = [json.loads(Path(folder, f"{n}.json").read_text()) for n in range(args.ranks)]
    parameters = found[0]["parameters"]
    step, start = (max(rank[key] for rank in found) for key in ("step_mib", "start_mib"))
    state = _STATE_BYTES / (args.ranks if sharding == "full" else 1)
    return {
        "sharding": sharding,
        "activation_checkpointing": checkpointing,
        "ranks": args.ranks,
        "parameters": f"{parameters / 1e6:.1f}M",
        "state (B/parameter)": state,
        "peak of a step (B/parameter)": step * 2**20 / parameters,
        "peak of a step (MiB)": step,
        "peak until it is in place (MiB)": start,
    }


def run_rank(args: argparse.Namespace) -> None:
    """Train two steps as one of the ranks, and write down what they took."""
    folder, sharding, checkpointing = json.loads(args.rank)
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= args.ranks
    device = torch.device("cuda", args.number) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method=store, rank=args.number, world_size=args.ranks)
    config = TrainConfig(
        steps=10,
        global_batch=args.rows * args.ranks,
        micro_batch=args.rows,
        precision="bfloat16" if on_gpu else "float32",
        workers=args.ranks,
        sharding=sharding,
        activation_checkpointing=checkpointing,
    )
    shape = Shape(576, args.layers, 8192)
    batch = make_batch(shape, args.rows, args.seq_len, 12)
    before = held_mib()
    make_loss = partial(StudentLoss, objective=ObjectiveConfig(), vocab_size=shape.vocab)
    loss = distribute(partial(_student, shape), make_loss, config, device)
    optimizer = make_optimizer(student_of(loss), config)
    start_mib = peak_since_mib() - before
    step = partial(train_step, loss, optimizer, batch, config, device=device)
    step(step=0)
    held_mib()
    step(step=1)
    step_mib = peak_since_mib() - before
    parameters = student_of(loss).num_parameters()
    Path(folder, f"{args.number}.json").write_text(
        json.dumps({"parameters": parameters, "step_mib": step_mib, "start_mib": start_mib})
    )
    dist.barrier()
    dist.destroy_process_group()


def _student(shape: Shape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return shape.model()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2, help="windows of a rank in one forward pass")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        run_rank(args)
        return
    rows = [measured(args, sharding, blocks) for sharding in ("none", "full") for blocks in ("none", "blocks")]
    print(markdown_table(rows))
    where = "cuda" if torch.cuda.is_available() else "cpu"
    title = f"Peak memory of training on {args.ranks} ranks, {args.rows} windows of {args.seq_len} each"
    write_results(args.out, f"sharding-{where}", title, {"Peak memory": rows})


if __name__ == "__main__":
    main()
