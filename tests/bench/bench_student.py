"""A training step of one student, with each objective: python tests/bench/bench_student.py [--out DIR].

Steps are the product's own (`rskd.student.trainer.train_step`), once a round one objective after the other, each with a
student and an optimizer of its own; the table has medians of the ratios. full_kd runs the teacher on every batch. Sizes
count all parameters; the paper (Table 4) has 2.6 times the speed of full_kd at a ratio of 10, and 1.73 times at 2.7.

Runs on a bare machine with a GPU and what infra/requirements-gpu.txt lists.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from made_llamas import Shape, make_batch
from measure import (
    Row,
    argument_parser,
    markdown_table,
    paired_seconds,
    ratio,
    tiny_option,
    where_time_goes,
    write_results,
)

from rskd.cache.loader import CacheBatch
from rskd.config import ObjectiveConfig, TrainConfig
from rskd.models.causal_lm import hidden_states, output_head
from rskd.student.sharding import replicate
from rskd.student.trainer import StudentLoss, make_optimizer, train_step


def step_of(kind: str, student: Shape, teacher: torch.nn.Module, batch: CacheBatch, precision: str) -> Any:
    """A function that makes one step with this objective."""
    device = next(teacher.parameters()).device
    config = TrainConfig(
        steps=10**6, global_batch=len(batch.row_ids), micro_batch=len(batch.row_ids), precision=precision
    )  # pyright: ignore[reportArgumentType]

    @torch.inference_mode()
    def teacher_logits(input_ids: torch.Tensor) -> torch.Tensor:
        return output_head(teacher).logits(hidden_states(teacher, input_ids))  # pyright: ignore[reportArgumentType]

    torch.manual_seed(0)
    loss = StudentLoss(
        student.model(),
        ObjectiveConfig(kind=kind),  # pyright: ignore[reportArgumentType]
        vocab_size=student.vocab,
        teacher_logits=teacher_logits,
    )
    module = replicate(loss, config, device)
    optimizer = make_optimizer(loss.student, config)
    return partial(train_step, module, optimizer, batch, config, step=10, device=device)


def measure(student: Shape, teacher_shape: Shape, args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """A row for each objective, and the profile of a step of sparse_kd."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, precision)
    teacher = teacher_shape.model().to(device, dtype).eval().requires_grad_(False)
    batch = make_batch(student, args.rows, args.seq_len, args.unique)
    steps = {kind: step_of(kind, student, teacher, batch, precision) for kind in ("ce", "sparse_kd", "full_kd")}
    for step in steps.values():
        step()
    times = paired_seconds(steps, args.rounds)
    size = student.model().num_parameters()
    names = {"student": f"{size / 1e6:.0f}M", "teacher": f"{teacher.num_parameters() / size:.1f} times"}
    rows: list[Row] = [
        {
            **names,
            "objective": kind,
            "tokens/s": args.rows * args.seq_len / sorted(times[kind])[args.rounds // 2],
            "speed to ce": 1 / ratio(times[kind], times["ce"]),
            "speed to full_kd": 1 / ratio(times[kind], times["full_kd"]),
        }
        for kind in steps
    ]
    return rows, where_time_goes(steps["sparse_kd"])


def main() -> None:
    parser = argument_parser(__doc__)
    tiny_option(parser)
    parser.add_argument("--rows", type=int, default=1 if not torch.cuda.is_available() else 8)
    parser.add_argument("--seq-len", type=int, default=512 if not torch.cuda.is_available() else 2048)
    parser.add_argument("--unique", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    large, vocab, layers = (576, 49_152, 30) if not torch.cuda.is_available() else (2048, 128_256, 30)
    if args.tiny:
        large, vocab, layers, args.seq_len, args.rounds = 192, 512, 6, 32, 1
    teacher = Shape(large, layers, vocab)
    students = (Shape(large, layers // 6, vocab), Shape(large // 3 // 64 * 64, layers * 3 // 10, vocab))
    measured = [measure(student, teacher, args) for student in students]
    tables = {"Objectives": [row for rows, _ in measured for row in rows]}
    for rows, profile in measured:
        tables[f"Profile of a step of sparse_kd, student of {rows[0]['student']}"] = profile
    title = f"Training steps of {args.rows} windows of {args.seq_len}, {args.unique} unique tokens"
    for heading, rows in tables.items():
        print(f"\n{heading}\n\n{markdown_table(rows)}")
    write_results(args.out, f"student-{'cuda' if torch.cuda.is_available() else 'cpu'}", title, tables)


if __name__ == "__main__":
    main()
