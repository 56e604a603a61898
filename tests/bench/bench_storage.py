"""Bytes and fidelity of cached targets, by sampling: python tests/bench/bench_storage.py (about four minutes).

SmolLM2-135M reads CPython's documentation once; every sampling is drawn from the same logits and written as a cache.
Fidelity is the mean over positions of Σ(w - p)². The paper's format has 24 bits for each unique token (17 of the id, 7
of the count); the unigram bound is the entropy of a cache's ids, as if each were coded by itself and counts were free.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from measure import Row, argument_parser, markdown_table, write_results
from rich.progress import track

from rskd.cache.codec import PartData
from rskd.cache.layout import most_frequent
from rskd.cache.verify import verify
from rskd.cache.writer import CacheWriter
from rskd.config import DistillConfig, load_config
from rskd.corpus.packed_corpus import rows_per_group
from rskd.corpus.packing import cut_windows, shuffled, tokenize
from rskd.corpus.sources import group_files, list_files, read_documents
from rskd.models.files import resolve_teacher
from rskd.models.output_head import OutputHead
from rskd.models.tokenizer import end_of_text_id, load_tokenizer, vocab_size
from rskd.rng import position_keys
from rskd.storage import Store
from rskd.teacher.hidden_to_targets import SampledRows, sample_rows
from rskd.teacher.sampling import Drawn, Sampling, concatenate
from rskd.teacher.transformers_teacher import TransformersTeacher
from rskd.teacher_statistics import STATISTICS

PAPER, FAIR = "random N=50", "systematic N=22"  # about as close
SAMPLINGS = {
    **{f"random N={n}": Sampling("random", n) for n in (12, 25, 50)},
    **{f"systematic N={n}": Sampling("systematic", n) for n in (12, 22, 50)},
    **{f"top_k k={k}": Sampling("top_k", k=k) for k in (12, 50)},
}
WINDOWS_PER_BATCH, ROWS_PER_CHUNK = 4, 64


@dataclass(frozen=True)
class CorpusPart:
    """The only part of the corpus, as `CacheWriter.finish` asks for it."""

    rows: int
    index: int = 0
    first_row: int = 0
    sha256: str = "bench"


@dataclass
class Samples:
    """What one sampling drew: P positions in all."""

    drawn: Drawn  # [P, K]
    error: float  # mean Σ(w - p)²


def read_windows(config: DistillConfig, teacher_dir: str, *, num_windows: int) -> tuple[np.ndarray, int]:
    """Windows int32 [W, S+1] of shuffled documents, and the size of the vocabulary."""
    tokenizer = load_tokenizer(teacher_dir)
    source = config.corpus.source
    groups = group_files(list_files(source), kind=source.kind)
    texts = [text for group in groups for text in read_documents(source, group)]
    order = shuffled(len(texts), seed=0, group=0)
    documents, tokens = [], 0
    for ids in tokenize(tokenizer.backend_tokenizer, (texts[i] for i in order), end_of_text_id(tokenizer)):
        documents.append(ids)
        tokens += len(ids)
        if tokens > num_windows * config.corpus.seq_len:
            break
    return cut_windows(documents, config.corpus.seq_len)[:num_windows], vocab_size(tokenizer)


@torch.inference_mode()
def sample(
    teacher: TransformersTeacher, windows: np.ndarray, vocab_size: int
) -> tuple[dict[str, Samples], dict[str, np.ndarray]]:
    """All samplings, and the statistics [P], of one pass over the windows."""
    head = teacher.head.narrow(vocab_size)
    batches: list[SampledRows] = []
    errors: Counter[str] = Counter()
    for start in track(range(0, len(windows), WINDOWS_PER_BATCH), "teacher"):
        input_ids = torch.tensor(windows[start : start + WINDOWS_PER_BATCH]).long()
        keys = position_keys(torch.arange(start, start + len(input_ids)), windows.shape[1] - 1).flatten()
        hidden = teacher.hidden(input_ids[:, :-1]).flatten(0, 1)
        labels = input_ids[:, 1:].flatten()
        batches.append(sample_rows(hidden, head, SAMPLINGS, keys, labels=labels, statistics=STATISTICS))
        errors.update(squared_errors(hidden, head, batches[-1].drawn))
    positions = windows.size - len(windows)
    samples = {
        name: Samples(concatenate([batch.drawn[name] for batch in batches]), errors[name] / positions)
        for name in SAMPLINGS
    }
    return samples, {name: torch.cat([batch.statistics[name] for batch in batches]).numpy() for name in STATISTICS}


def squared_errors(hidden: torch.Tensor, head: OutputHead, drawn: dict[str, Drawn]) -> Counter[str]:
    """Sum over positions of Σ(w - p)², by sampling, against probabilities in float64."""
    total: Counter[str] = Counter()
    for start in range(0, len(hidden), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        p = torch.softmax(head.logits(hidden[rows]).double(), -1)
        for name, one in drawn.items():
            part = Drawn(one.ids[rows], one.values[rows])
            total[name] += float(squared_error(part, SAMPLINGS[name], p).sum())
    return total


def squared_error(drawn: Drawn, sampling: Sampling, p: torch.Tensor) -> torch.Tensor:
    """Σ(w - p)² of each position, [R]."""
    targets = drawn.targets(sampling)
    w = targets.weights.double()
    return p.square().sum(-1) + (w.square() - 2 * w * p.gather(1, targets.ids)).sum(-1)


def bytes_per_token(
    drawn: Drawn,
    sampling: Sampling,
    windows: np.ndarray,
    vocab_size: int,
    *,
    layout: str = "plain",
    statistics: Mapping[str, np.ndarray] | None = None,
) -> float:
    """Bytes of all files of a cache of these samples, which is verified, for each position."""
    rows, seq_len = len(windows), windows.shape[1] - 1
    ranks = {"most_frequent": most_frequent(windows)} if layout == "compact" else {}
    head: dict[str, Any] = {
        "sampling": asdict(sampling) | {"statistics": list(statistics or ()), "layout": layout},
        "teacher": {},
        "tokenizer": {"vocab_size": vocab_size} | ranks,
        "corpus": {"seq_len": seq_len, "rows_per_group": rows_per_group(seq_len), "parts": 1},
    }
    data = PartData(
        np.arange(rows),
        windows,
        ids=drawn.ids.int().numpy().reshape(rows, seq_len, -1),
        values=drawn.values.numpy().reshape(rows, seq_len, -1),
        statistics={name: values.reshape(rows, seq_len) for name, values in (statistics or {}).items()},
    )
    with tempfile.TemporaryDirectory() as uri:
        writer = CacheWriter(uri, manifest_head=head)
        writer.commit_part(0, data, corpus_sha256="bench")
        writer.finish([CorpusPart(rows)])
        assert verify(uri).ok
        return sum(Store(uri).sizes(recursive=True).values()) / (rows * seq_len)


def unigram_bound(drawn: Drawn) -> float:
    """Bytes a position for the ids alone, each coded by itself at their entropy."""
    ids = drawn.ids[drawn.values > 0]
    share = torch.unique(ids, return_counts=True)[1].double() / len(ids)
    return float(-(share * share.log2()).sum() / 8 * len(ids) / len(drawn.ids))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--config", default="flows/configs/demo.yaml", help="corpus and teacher")
    parser.add_argument("--windows", type=int, default=200)
    args = parser.parse_args()
    config = load_config(args.config)
    teacher_dir = resolve_teacher(config)
    windows, vocab_size = read_windows(config, teacher_dir, num_windows=args.windows)
    samples, statistics = sample(TransformersTeacher.load(config.teacher, model_dir=teacher_dir), windows, vocab_size)

    unique = {name: float((one.drawn.values > 0).sum(-1).float().mean()) for name, one in samples.items()}
    paper = 3 * unique[PAPER]
    positions = windows.size - len(windows)
    rows: list[Row] = []
    for name, one in samples.items():
        sampling = SAMPLINGS[name]
        for layout in ("plain", "compact") if sampling.draws_counts else ("plain",):
            size = bytes_per_token(one.drawn, sampling, windows, vocab_size, layout=layout)
            rows.append(
                {
                    "sampling": name,
                    "layout": layout,
                    "mean Σ(w-p)²": f"{one.error:.2e}",
                    "unique/token": unique[name],
                    "bytes/token": size,
                    "to the paper's": size / paper,
                    "unigram bound of the ids": unigram_bound(one.drawn),
                }
            )
    drawn, sampling = samples[FAIR].drawn, SAMPLINGS[FAIR]
    plain = bytes_per_token(drawn, sampling, windows, vocab_size)
    costs: list[Row] = []
    for statistic in STATISTICS:
        chosen = {statistic: statistics[statistic]}
        size = bytes_per_token(drawn, sampling, windows, vocab_size, statistics=chosen)
        costs.append({"statistic": statistic, "bytes/token": size - plain})
    title = f"{positions:,} positions of {args.config}; the paper's {PAPER} takes {paper:.1f} bytes a token"
    tables = {title: rows, f"Statistics, beside {FAIR}": costs}
    for heading, table in tables.items():
        print(f"\n{heading}\n\n{markdown_table(table)}")
    write_results(args.out, "storage", "Bytes and fidelity of cached targets", tables)


if __name__ == "__main__":
    main()
