"""The vLLM teacher beside vLLM's prompt_logprobs and the Transformers teacher, on the same model and windows.

    .venv-vllm/bin/python tests/bench/bench_vllm.py MODEL_DIR [--windows B] [--seq-len S] [--rounds N] [--out DIR]

Runs in the environment of make vllm-env. Times are wall times, once a round one contender after the other; ratios are
medians over the rounds. `bytes / position` is what arrives in this process from that of the engine, counted where vLLM
decodes it. All are given the whole windows at once.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from measure import argument_parser, markdown_table, ratio, write_results
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder

from rskd.config import PlannedTeacher, TeacherConfig
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import Order
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher
from rskd.teacher.vllm_teacher import VllmTeacher

OURS, LOGPROBS, HIDDEN, TRANSFORMERS = (
    "vLLM teacher, N=22",
    "vLLM prompt_logprobs=50",
    "vLLM hidden states",
    "Transformers",
)
GPUS = torch.cuda.device_count()
CACHE_BYTES = 2**30  # of keys and values, for each engine on a CPU


class ReceivedBytes:
    """Counts what vLLM's decoder is given."""

    def __init__(self) -> None:
        self.count = 0
        decode = MsgpackDecoder.decode

        def counted(decoder: MsgpackDecoder, buffers: Any) -> Any:
            pieces = [buffers] if isinstance(buffers, bytes | bytearray | memoryview) else buffers
            self.count += sum(memoryview(piece).nbytes for piece in pieces)
            return decode(decoder, buffers)

        MsgpackDecoder.decode = counted


def contenders(model: str, windows: Tensor, dtype: str) -> dict[str, Callable[[], Any]]:
    """What each does with the windows [B, S+1]."""
    num_windows, seq_len = len(windows), windows.shape[1] - 1
    keys, order = position_keys(torch.arange(num_windows), seq_len), Order({"": Sampling()})
    eager = {"enforce_eager": not GPUS}  # on a CPU compiling takes longer than the benchmark
    share = {"gpu_memory_utilization": 0.3} if GPUS else {}
    device = {"gpus_per_worker": min(GPUS, 1), "dtype": dtype} | share
    config = PlannedTeacher(engine="vllm", model=model, batch_windows=4, workers=1, engine_args=eager, **device)
    ours = VllmTeacher.load(config, model_dir=model, seq_len=seq_len)
    logprobs = LLM(
        model,
        dtype=dtype,
        max_model_len=seq_len + 1,
        max_num_batched_tokens=4 * seq_len,
        max_num_seqs=min(4 * seq_len, 256),
        max_logprobs=50,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **eager,
        **({"gpu_memory_utilization": 0.3} if GPUS else {"kv_cache_memory_bytes": CACHE_BYTES}),
    )
    place = "cuda" if GPUS else "cpu"
    transformers = TransformersTeacher.load(TeacherConfig(model=model, dtype=dtype), model_dir=model, device=place)
    prompts: list[Any] = [{"prompt_token_ids": window[:-1].tolist()} for window in windows]
    params = SamplingParams(max_tokens=1, prompt_logprobs=50)
    return {
        OURS: lambda: ours.sample(windows, keys, order),
        LOGPROBS: lambda: logprobs.generate(prompts, params, use_tqdm=False),
        HIDDEN: lambda: ours.hidden(windows[:, :-1]),
        TRANSFORMERS: lambda: [
            transformers.sample(*batch, order) for batch in zip(windows.split(4), keys.to(place).split(4))
        ],
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="directory of a causal language model")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16" if GPUS else "float32")
    args = parser.parse_args()
    received = ReceivedBytes()
    shape = (args.windows, args.seq_len + 1)
    windows = torch.randint(1, 1000, shape, generator=torch.Generator().manual_seed(0))
    runs = contenders(args.model, windows, args.dtype)
    times: dict[str, list[float]] = {name: [] for name in runs}
    bytes_received: dict[str, int] = {}
    for measured in [False, *[True] * args.rounds]:
        for name, run in runs.items():
            before, started = received.count, time.perf_counter()
            run()
            if measured:
                times[name].append(time.perf_counter() - started)
            bytes_received[name] = received.count - before
    positions = args.windows * args.seq_len
    table = [
        {
            "contender": name,
            "positions/s": positions / statistics.median(times[name]),
            "time / vLLM teacher": ratio(times[name], times[OURS]),
            "bytes / position": bytes_received[name] / positions,
        }
        for name in runs
    ]
    setting = f"{Path(args.model).name}, {args.dtype}, {args.windows} windows of {args.seq_len}, {args.rounds} rounds"
    print(f"\n{setting}\n{markdown_table(table)}", flush=True)
    write_results(args.out, f"vllm-{'cuda' if GPUS else 'cpu'}", "The vLLM teacher, beside its peers", {setting: table})


if __name__ == "__main__":
    main()
