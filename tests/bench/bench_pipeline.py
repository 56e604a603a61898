"""The jobs beside the bare work that they organise: python tests/bench/bench_pipeline.py [--out DIR] (8 minutes).

Caching: `rskd cache` through Ray with 1 and 2 workers of one thread, against the same teacher's forward pass and output
head alone, on the same windows in batches of the same size, in 1 and 2 processes at once. Two bare processes show what
the cores allow. Speeds are of the steady state, from commit to commit once every worker has committed a part and as
long as all have work; start-up (Ray, loading the teacher) is given apart.

Training: `rskd train` from that cache with 1 and 2 workers of one thread, against as many students at once that share
nothing, each on its worker's part of the batch: what the cores allow. `all-reduce` is the time in which gloo averages
gradients of that size once, with nothing beside it; DDP hides some of it behind the backward pass. `data wait` is the
share of a step's time that went on waiting for the loader.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.distributed as dist
from measure import Row, argument_parser, markdown_table, write_results

from rskd.cache.manifest import PARTS_FOLDER
from rskd.config import DistillConfig, load_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.jobs.cache import cache_logits
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student
from rskd.models.files import resolve_teacher
from rskd.models.load import load_model
from rskd.storage import Store
from rskd.student.checkpoint import LOG_FILE
from rskd.teacher.transformers_teacher import TransformersTeacher

WORKERS = (1, 2)
GLOBAL_BATCH = 8


def make_config(
    folder: Path, windows: int, steps: int, workers: int, more: Mapping[str, str] | None = None
) -> DistillConfig:
    """The demo's teacher and student on part of the documentation; outputs of each number of workers apart.

    `more` are settings by `section.key`.
    """
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for name in sorted(topics):
        (text / f"{name}.txt").write_text(topics[name])
    changes = {
        "name": f"workers-{workers}",
        "storage.root": str(folder / "store"),
        "corpus.source": json.dumps({"kind": "text", "uri": str(text)}),
        "corpus.max_windows": windows,
        "corpus.windows_per_part": 4,
        "samplings": json.dumps({"default": {"num_samples": 22}}),
        "students": json.dumps({"default": {}}),
        "teacher.workers": workers,
        "teacher.threads_per_worker": 1,
        "train.steps": steps,
        "train.global_batch": GLOBAL_BATCH,
        "train.workers": workers,
        "train.threads_per_worker": 1,
        **(more or {}),
    }
    return load_config("flows/configs/demo.yaml", [f"{key}={value}" for key, value in changes.items()])


def alone(config: DistillConfig, processes: int) -> float:
    """Tokens/s of the teacher's forward pass and output head in as many processes at once, together."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(pool.map(alone_in_this_process, [config] * processes))


@torch.inference_mode()
def alone_in_this_process(config: DistillConfig) -> float:
    torch.set_num_threads(config.teacher.threads_per_worker)
    model_dir = resolve_teacher(config)
    teacher = TransformersTeacher.load(config.teacher, model_dir=model_dir)
    input_ids = torch.from_numpy(PackedCorpus.open(config.corpus_uri("train")).read_part(0).input_ids).long()
    batches = input_ids[:, :-1].split(config.teacher.batch_windows)
    for batch in batches:  # the first pass warms up
        teacher.head.logits(teacher.hidden(batch))
    started, tokens = time.perf_counter(), 0
    while time.perf_counter() - started < 20:
        for batch in batches:
            teacher.head.logits(teacher.hidden(batch))
            tokens += batch.numel()
    return tokens / (time.perf_counter() - started)


def steady_speed(config: DistillConfig) -> float:
    """Tokens/s of all workers together, by the times at which parts were committed."""
    workers = config.teacher.workers
    folder = Path(config.cache_uri("default")) / PARTS_FOLDER
    committed = sorted(record.stat().st_mtime for record in folder.glob("*.json"))
    first, last = workers - 1, len(committed) - workers
    tokens = (last - first) * config.corpus.windows_per_part * config.corpus.seq_len
    return tokens / (committed[last] - committed[first])


def measure_caching(configs: dict[int, DistillConfig]) -> list[Row]:
    rows: list[Row] = []
    for workers, config in configs.items():
        before = alone(config, workers)
        summary = cache_logits(config)["default"]
        bare = statistics.mean([before, alone(config, workers)])
        steady = steady_speed(config)
        rows.append(
            {
                "workers": workers,
                "tokens/s": steady,
                "teacher and head alone": bare,
                "to alone": steady / bare,
                "start-up, s": summary["startup_seconds"],
                "stalled, s": summary["stall_seconds"],
                "in all, s": summary["seconds"],
            }
        )
    return [row | {"to 1 worker": row["tokens/s"] / rows[0]["tokens/s"]} for row in rows]


def students_apart(folder: Path, windows: int, steps: int, workers: int) -> float:
    """Tokens/s of as many students at once, each in a process of its own without Ray."""
    train = {"workers": 0, "global_batch": GLOBAL_BATCH // workers}
    students = {f"apart-{index}": {"train": train} for index in range(workers)}
    more = {"students": json.dumps(students), "tracking.enabled": "false"}
    config = make_config(folder, windows, steps, workers, more)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return sum(each["tokens_per_s"] for each in pool.map(train_student, [config] * workers, students))


def all_reduce_seconds(folder: Path, workers: int, numbers: int) -> float:
    """Of so many float32 numbers over gloo; the median of five."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        calls = [pool.submit(_all_reduce, folder / "rendezvous", workers, rank, numbers) for rank in range(workers)]
        return max(call.result() for call in calls)


def _all_reduce(rendezvous: Path, workers: int, rank: int, numbers: int) -> float:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=workers)
    gradients, times = torch.ones(numbers), []
    for _ in range(6):
        started = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - started)
    dist.destroy_process_group()
    return statistics.median(times[1:])


def measure_training(folder: Path, windows: int, steps: int, configs: dict[int, DistillConfig]) -> list[Row]:
    rows: list[Row] = []
    for workers, config in configs.items():
        summary = train_student(config)
        lines = Store(config.student_uri("default")).read(LOG_FILE).splitlines()
        waits = [json.loads(line)["data_wait"] for line in lines[1:]]
        apart = students_apart(folder, windows, steps, workers)
        size = load_model(config.student_uri("default"), "sdpa").num_parameters()
        rows.append(
            {
                "workers": workers,
                "tokens/s": summary["tokens_per_s"],
                "students apart": apart,
                "to apart": summary["tokens_per_s"] / apart,
                "step, s": GLOBAL_BATCH * config.corpus.seq_len / summary["tokens_per_s"],
                "all-reduce, s": all_reduce_seconds(folder, workers, size) if workers > 1 else 0.0,
                "data wait, %": 100 * statistics.median(waits),
                "at most, %": 100 * max(waits),
            }
        )
    return [row | {"to 1 worker": row["tokens/s"] / rows[0]["tokens/s"]} for row in rows]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        configs = {workers: make_config(Path(folder), args.windows, args.steps, workers) for workers in WORKERS}
        for config in configs.values():
            pack_corpus(config)
        tables = {
            "Caching": measure_caching(configs),
            f"Training, batches of {GLOBAL_BATCH} windows": measure_training(
                Path(folder), args.windows, args.steps, configs
            ),
        }
    title = f"Jobs, {args.windows} windows of 256"
    for heading, rows in tables.items():
        print(f"\n{heading}\n\n{markdown_table(rows)}")
    write_results(args.out, "pipeline", title, tables)


if __name__ == "__main__":
    main()
