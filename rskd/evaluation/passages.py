"""Where a student differs from its teacher: held-out text token by token, with the likeliest tokens of every model.

first tokens of a few windows ─► each model beside the teacher ─► TokenValues ─► Parquet, one row per model and position

    model string, window int64, position int32, token string (the one to predict, at position + 1),
    kl_to_teacher, probability float32 (of that token), likeliest list<string>, probabilities list<float32>

Of conversations all tokens are there, also those of the prompts, which have no loss.

Shapes: W windows, T positions, N = W·T, K likeliest tokens, V vocabulary.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.evaluation.language_modeling import Batch, States

NUM_PASSAGES = 4
NUM_TOKENS = 256  # of each passage, the first of a window
_LIKELIEST = 5


@dataclass(frozen=True)
class TokenValues:
    """One model at N positions; each predicts the token after it."""

    window: np.ndarray  # [N], row ids in the held-out corpus
    position: np.ndarray  # [N], in the window
    token: list[str]  # N, the one that is predicted
    kl_to_teacher: np.ndarray  # [N], nats
    probability: np.ndarray  # [N], of that token
    likeliest: list[list[str]]  # N lists of K, the likeliest first
    probabilities: np.ndarray  # [N, K]


def passage_rows(num_windows: int) -> np.ndarray:
    """Row ids of the windows whose beginnings are shown, spread evenly over so many."""
    return np.unique(np.linspace(0, num_windows - 1, min(NUM_PASSAGES, num_windows)).astype(np.int64))


@torch.inference_mode()
def token_values(batch: Batch, states: States, teacher: States, text_of: Callable[[int], str]) -> TokenValues:
    """A model at all positions of `batch`, beside its teacher. `text_of` is the text of a token id."""
    chunks = []
    for rows in states.chunks():
        log_probs, teacher_log_probs = (of.logits(rows).log_softmax(-1) for of in (states, teacher))
        chunks.append(_at_positions(log_probs, teacher_log_probs, batch.labels[rows].to(log_probs.device)))
    num_positions = batch.input_ids.shape[1] - 1
    where = {
        "window": np.repeat(batch.windows, num_positions),
        "position": np.tile(np.arange(num_positions, dtype=np.int32), len(batch.windows)),
        "token": [text_of(label) for label in batch.labels.tolist()],
    }
    return _as_values(where, chunks, text_of)


def _at_positions(log_probs: Tensor, teacher_log_probs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    top = log_probs.topk(min(_LIKELIEST, log_probs.shape[-1]))
    kl = F.kl_div(log_probs, teacher_log_probs, reduction="none", log_target=True).sum(-1)
    return kl, log_probs.gather(-1, labels[:, None])[:, 0].exp(), top.indices, top.values.exp()


def _as_values(
    where: Mapping[str, np.ndarray | list[str]], chunks: list[tuple[Tensor, ...]], text_of: Callable[[int], str]
) -> TokenValues:
    kl, probability, ids, probabilities = (torch.cat(values).cpu() for values in zip(*chunks, strict=True))
    return TokenValues(
        **where,  # pyright: ignore[reportArgumentType]
        kl_to_teacher=kl.float().numpy(),
        probability=probability.float().numpy(),
        likeliest=[[text_of(token_id) for token_id in likeliest] for likeliest in ids.tolist()],
        probabilities=probabilities.float().numpy(),
    )


def to_parquet(models: Mapping[str, TokenValues]) -> bytes:
    """The file of these models; the same bytes for the same values."""
    sink = io.BytesIO()
    pq.write_table(
        pa.concat_tables([_table(name, values) for name, values in models.items()]), sink, compression="zstd"
    )
    return sink.getvalue()


def from_parquet(data: bytes) -> dict[str, TokenValues]:
    """The models of a file, in its order."""
    table = pq.read_table(io.BytesIO(data))
    names = np.array(table["model"].to_pylist())
    return {name: _values(table.filter(names == name)) for name in dict.fromkeys(names.tolist())}


def _table(name: str, values: TokenValues) -> pa.Table:
    return pa.table(
        {
            "model": [name] * len(values.window),
            "window": values.window,
            "position": values.position,
            "token": values.token,
            "kl_to_teacher": values.kl_to_teacher,
            "probability": values.probability,
            "likeliest": values.likeliest,
            "probabilities": list(values.probabilities),
        }
    )


def _values(table: pa.Table) -> TokenValues:
    return TokenValues(
        **{name: table[name].to_numpy() for name in ("window", "position", "kl_to_teacher", "probability")},
        token=table["token"].to_pylist(),
        likeliest=table["likeliest"].to_pylist(),
        probabilities=np.stack(table["probabilities"].to_pylist()),
    )
