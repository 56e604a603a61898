"""Sampling from hidden states beside what it cannot do without: the product with the LM head, and a softmax.

    python tests/bench/bench_sampler.py [--out DIR] [--tokens N] [--quick]

torch alone is enough. The peers are `linear(hidden, weight).softmax(-1)` in float32, of all rows at once and of as
many rows at a time as the sampler takes. Times are paired: each contender runs once a round, ratios are medians over
the rounds. Peaks are beyond the inputs, on a CPU each in a process of its own, and are held against the logits of all
rows in float32. The profile says where the sampler's time goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
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
    where_time_goes,
    write_results,
)
from torch import Tensor

from rskd import sample_from_hidden
from rskd.teacher.hidden_to_targets import CHUNK_ROWS

Contender = Callable[[Tensor, Tensor], object]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AT_ONCE, IN_CHUNKS, SYSTEMATIC = "product + softmax, at once", "product + softmax, in chunks", "systematic, N=22"


class Setting(NamedTuple):
    """What one table is about."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: str
    rounds: int

    def __str__(self) -> str:
        return f"{self.num_tokens:,} tokens, D={self.hidden_size} V={self.vocab_size} {self.dtype}"


CPU_SETTINGS = [
    Setting(4096, 576, 49152, "float32", 5),
    Setting(4096, 576, 128256, "float32", 3),
    Setting(2048, 2048, 49152, "float32", 3),
    Setting(1024, 2048, 128256, "float32", 3),
]
GPU_SETTINGS = [
    Setting(4096, hidden_size, vocab_size, dtype, 20)
    for dtype in ("bfloat16", "float32")
    for vocab_size in (49152, 128256)
    for hidden_size in (576, 2048, 4096)
]
TINY_SETTINGS = [Setting(32, 16, 512, "float32", 2)]


def _softmax(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden, weight).softmax(-1, dtype=torch.float32)


def _softmax_in_chunks(hidden: Tensor, weight: Tensor) -> None:
    for rows in hidden.split(CHUNK_ROWS):
        _softmax(rows, weight)


CONTENDERS: dict[str, Contender] = {
    AT_ONCE: _softmax,
    IN_CHUNKS: _softmax_in_chunks,
    SYSTEMATIC: lambda hidden, weight: sample_from_hidden(hidden, weight, num_samples=22),
    "random, N=50": lambda hidden, weight: sample_from_hidden(hidden, weight, method="random", num_samples=50),
}


def make_inputs(setting: Setting) -> tuple[Tensor, Tensor]:
    """hidden [R, D] and weight [V, D]: logits with a standard deviation of 3."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = ((setting.num_tokens, setting.hidden_size), (setting.vocab_size, setting.hidden_size))
    hidden, weight = (torch.randn(shape, generator=generator, device=DEVICE) for shape in shapes)
    dtype = getattr(torch, setting.dtype)
    return hidden.to(dtype), weight.mul_(3 / setting.hidden_size**0.5).to(dtype)


def peak_here(setting: Setting, name: str) -> float:
    """Peak MiB of one contender, after a small call that loads what it needs."""
    CONTENDERS[name](*make_inputs(setting._replace(num_tokens=8, vocab_size=1000)))
    inputs = make_inputs(setting)
    return peak_mib(lambda: CONTENDERS[name](*inputs))


def compare(setting: Setting) -> list[Row]:
    """The table of one setting."""
    inputs = make_inputs(setting)
    runs = {name: lambda run=run: run(*inputs) for name, run in CONTENDERS.items()}
    paired_seconds(runs, rounds=1)
    times = paired_seconds(runs, setting.rounds)
    peak = peak_here if DEVICE == "cuda" else partial(peak_elsewhere, __file__)
    peaks = {name: peak(setting, name) for name in CONTENDERS}
    logits_mib = 4 * setting.num_tokens * setting.vocab_size / 2**20
    return [
        {
            "contender": name,
            "median s": statistics.median(times[name]),
            "time / at once": ratio(times[name], times[AT_ONCE]),
            "time / in chunks": ratio(times[name], times[IN_CHUNKS]),
            "peak MiB": peaks[name],
            "peak / fp32 logits": peaks[name] / logits_mib,
        }
        for name in CONTENDERS
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    tiny_option(parser)
    parser.add_argument("--tokens", type=int, help="of every setting, instead of its own number")
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
    if args.tokens:
        settings = [setting._replace(num_tokens=args.tokens) for setting in settings]
    tables: dict[str, list[Row]] = {}
    for setting in settings:
        tables[str(setting)] = compare(setting)
        print(f"\n{setting}\n{markdown_table(tables[str(setting)])}", flush=True)
    profiled = f"profile of {SYSTEMATIC}: {settings[0]}"
    inputs = make_inputs(settings[0])
    tables[profiled] = where_time_goes(lambda: CONTENDERS[SYSTEMATIC](*inputs))
    print(f"\n{profiled}\n{markdown_table(tables[profiled])}", flush=True)
    write_results(args.out, f"sampler-{DEVICE}", "Sampling from hidden states, beside product and softmax", tables)


if __name__ == "__main__":
    main()
