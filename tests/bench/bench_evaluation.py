"""Memory and time of an evaluation with three students: python tests/bench/bench_evaluation.py (minutes).

at once      teacher and students are loaded together, as until 2026-11
recomputed   teacher and one student are loaded: the teacher reads every window once for each student
kept         one model is loaded: the teacher's final hidden states are kept on disk, its head gives the logits again

The teacher and the windows are those of a configuration; the students are copies of the teacher in `evaluate.dtype`.
Each way runs in a process of its own; all find the same figures. On a GPU: --set evaluate.gpus=1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from measure import Row, argument_parser, markdown_table, peak_mib, synchronize, write_results

from rskd.config import DistillConfig, load_config
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.evaluation.language_modeling import TEACHER, measure, over_windows
from rskd.evaluation.results import WINDOW_VALUES
from rskd.evaluation.window_values import METRICS, WindowValues
from rskd.jobs.evaluate import evaluation_run
from rskd.jobs.evaluate_worker import (
    EvaluationRun,
    compare_models,
    language_model,
    read_batch,
    window_batches,
)
from rskd.jobs.pack import pack_corpus
from rskd.models.files import resolve_teacher

STUDENTS = ("one", "two", "three")
WAYS = ("at once", "recomputed", "kept")
ALONE = ["ray.enabled=false", "train.workers=0", "tracking.enabled=false"]


def side_by_side(run: EvaluationRun, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, WindowValues]]:
    """The students of each group loaded together, and the teacher beside them."""
    corpus = PackedCorpus.open(run.corpus_uri)
    for group in groups:
        models = {TEACHER: language_model(run.load_teacher().model, corpus)}
        models |= {name: language_model(run.load_student(name), corpus) for name in group}
        for job in window_batches(run):
            batch = read_batch(run, corpus, job)
            states = {name: model.read(batch) for name, model in models.items()}
            for name, own in states.items():
                if name != TEACHER or group is groups[0]:
                    yield name, measure(name, batch, own, states[TEACHER], num_bins=run.settings.num_bins)
        del models, states


def evaluate(way: str, run: EvaluationRun) -> dict[str, dict[str, float]]:
    """METRICS of all models, found in one of WAYS."""
    if way == "kept":
        *_, findings = compare_models(run, window_batches(run))
        assert isinstance(findings, dict)
        values = {name: found[WINDOW_VALUES] for name, found in findings.items()}
    else:
        groups = [STUDENTS] if way == "at once" else [[name] for name in STUDENTS]
        parts: dict[str, list[WindowValues]] = {}
        for name, found in side_by_side(run, groups):
            parts.setdefault(name, []).append(found)
        values = {name: WindowValues.joined(found) for name, found in parts.items()}
    return {name: {metric: over_windows(found)[metric] for metric in METRICS} for name, found in values.items()}


def run_of(config: DistillConfig, windows: int) -> EvaluationRun:
    teacher_dir = resolve_teacher(config)
    corpus = PackedCorpus.open(config.corpus_uri("eval"))
    run = evaluation_run(config, corpus, teacher_dir, [])
    windows = min(windows, corpus.num_rows)
    students = dict.fromkeys(STUDENTS, (teacher_dir, "auto"))
    return replace(run, num_windows=windows, windows=range(windows), students=students)


def measured(way: str, run: EvaluationRun) -> Row:
    found: dict[str, dict[str, float]] = {}
    seconds, processor = time.perf_counter(), time.process_time()
    peak = peak_mib(lambda: found.update(evaluate(way, run)))
    synchronize()
    seconds, processor = time.perf_counter() - seconds, time.process_time() - processor
    return {"models": way, "peak, MiB": peak, "seconds": seconds, "processor s": processor, "found": found}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--config", default="flows/configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help="this one alone, as JSON")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [*ALONE, *arguments.set])
    if arguments.way:
        print(json.dumps(measured(arguments.way, run_of(config, arguments.windows))))
        return
    pack_corpus(config)
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    found = [row.pop("found") for row in rows]
    assert all(one == found[0] for one in found), "the ways differ in their figures"
    tokens = arguments.windows * config.corpus.seq_len
    title = f"Evaluation of {Path(config.teacher.model).name} and three copies as students, {tokens:,} tokens"
    print(markdown_table(rows))
    name = f"evaluation-{'gpu' if torch.cuda.is_available() else 'cpu'}"
    write_results(arguments.out, name, title, {"Models loaded": rows})


if __name__ == "__main__":
    main()
