"""What a cache costs on the device: a teacher's forward pass, and the sampling of its targets, beside the roofline.

    python tests/bench/bench_teacher.py [--out DIR] [--tiny]

Llamas of random weights, in bf16 on a GPU, by the product's own `TransformersTeacher.sample`. Contenders of one pass
over a batch, each once a round:

- `forward`: hidden states alone;
- `forward, product, softmax`: and the product with the output head, of as many rows at a time as the sampler takes;
- `forward, targets`: and 22 systematic rounds, brought to the CPU, as `rskd cache` does for each batch.

MFU counts the matrix products (`made_llamas.py`). The roofline is the least time by the peaks of `device_peaks.py`: of
the body, the longer of its products and of reading its weights once; of the head, the longer of its products and of
writing them and reading them once. `sampling / softmax` is what sampling takes in place of product and softmax.

Runs on a bare machine with a GPU and what infra/requirements-gpu.txt lists.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from device_peaks import Peak, device_peak
from made_llamas import Shape
from measure import Row, argument_parser, markdown_table, paired_seconds, tiny_option, whole_peak_mib, write_results

from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import CHUNK_ROWS, Order
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
FORWARD, SOFTMAX, TARGETS = "forward", "forward, product, softmax", "forward, targets"


class Setting(NamedTuple):
    """A teacher, and the windows of a batch."""

    shape: Shape
    rows: int
    seq_len: int
    rounds: int


# 0.1B as SmolLM2-135M, 1.2B, and 3B as Llama 3.2 3B.
SETTINGS = [
    Setting(Shape(576, 30, 49_152), 32, 2048, 10),
    Setting(Shape(2048, 24, 49_152), 16, 2048, 8),
    Setting(Shape(3072, 28, 128_256), 8, 2048, 8),
]
TINY_SETTINGS = [Setting(Shape(64, 2, 512), 2, 32, 2)]


def contenders(teacher: TransformersTeacher, setting: Setting) -> dict[str, Callable[[], Any]]:
    """One batch through the teacher, to a lesser or greater extent."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(setting.shape.vocab, (setting.rows, setting.seq_len + 1), generator=generator)
    keys = position_keys(torch.arange(setting.rows), setting.seq_len)
    order = Order({"systematic": Sampling()}, ("label_logprob",), setting.shape.vocab)

    def forward() -> torch.Tensor:
        return teacher.hidden(ids[:, :-1]).flatten(0, 1)

    @torch.inference_mode()
    def softmax() -> None:
        for products in teacher.head.products(forward(), CHUNK_ROWS):
            products.softmax(-1, dtype=torch.float32)

    def targets() -> None:
        sampled = teacher.sample(ids, keys, order)
        for drawn in sampled.drawn.values():
            drawn.ids.int().cpu(), drawn.values.cpu()

    return {FORWARD: forward, SOFTMAX: softmax, TARGETS: targets}


def measure(setting: Setting, peak: Peak) -> list[Row]:
    """A row for each contender."""
    torch.manual_seed(0)
    model = setting.shape.model().to(DTYPE).to(DEVICE).eval().requires_grad_(False)
    teacher, parameters = TransformersTeacher(model), model.num_parameters()
    runs = contenders(teacher, setting)
    paired_seconds(runs, rounds=2)
    times = {name: statistics.median(seconds) for name, seconds in paired_seconds(runs, setting.rounds).items()}
    tokens, width = setting.rows * setting.seq_len, torch.finfo(DTYPE).bits // 8
    head_weights = setting.shape.vocab * setting.shape.hidden
    body = (tokens * setting.shape.body_flops(parameters, setting.seq_len), (parameters - head_weights) * width)
    head = (tokens * setting.shape.head_flops(), 2 * tokens * setting.shape.vocab * width)
    rows = []
    for name, run in runs.items():
        work = [body] if name == FORWARD else [body, head]
        beyond = times[name] - times[FORWARD]
        rows.append(
            {
                "contender": name,
                "tokens/s": tokens / times[name],
                "ms a batch": 1e3 * times[name],
                "share of the time beyond forward": beyond / times[name],
                "sampling / softmax": beyond / (times[SOFTMAX] - times[FORWARD]) if name == TARGETS else float("nan"),
                "MFU": sum(flops for flops, _ in work) / times[name] / peak.flops_per_s,
                "share of the roofline": peak.least_seconds(*work) / times[name],
                "peak MiB": whole_peak_mib(run),
            }
        )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    tiny_option(parser)
    args = parser.parse_args()
    peak = device_peak(DEVICE)
    speeds = f"{peak.flops_per_s / 1e12:.3g} TFLOP/s, {peak.bytes_per_s / 1e12:.3g} TB/s"
    title = f"Caching on one device, {str(DTYPE).removeprefix('torch.')}; peak {speeds} ({peak.source})"
    tables: dict[str, list[Row]] = {}
    for setting in TINY_SETTINGS if args.tiny else SETTINGS:
        with torch.device("meta"):
            size = setting.shape.model().num_parameters()
        heading = (
            f"{size / 1e6:.0f}M parameters, V={setting.shape.vocab:,}, {setting.rows} windows of {setting.seq_len}"
        )
        try:
            tables[heading] = measure(setting, peak)
        except torch.OutOfMemoryError:
            tables[heading] = [{"contender": FORWARD, "tokens/s": "out of memory"}]
        print(f"\n{heading}\n{markdown_table(tables[heading])}", flush=True)
        write_results(args.out, f"teacher-{DEVICE.type}", title, tables)


if __name__ == "__main__":
    main()
