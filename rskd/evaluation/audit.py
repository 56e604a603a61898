"""Audit a cache: rerun its teacher on random windows and test that the cache holds the teacher's unbiased samples.

    windows ─┬─► teacher, in the cache's dtype ─► p ─────────┐
             └─► teacher, in the next wider dtype ─► draws ──┴─► values of each position ─► tests ─► AuditReport

Three tests, none of which trusts what the cache says of its teacher:
- reproduced: by the same keys, the cache overlaps with draws of the wider teacher as much as the teacher itself does.
  Rounding keeps both from doing so wholly, and about as much on any device and for any batch.
- unbiased: without keys, targets fit p as samples of p do, and a draw from them falls on each rank of p as often as p
  says.
- aligned: targets fit p far better than those of the position before or after.

Of a masked cache only the positions that have a loss count; their neighbours are those before and after among these.

Shapes: W windows, S positions in a window, R rows (positions in work at once), K unique tokens, V vocabulary, J bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rskd.cache.reader import LogitCache
from rskd.config import PlannedTeacher, StorageConfig, TeacherConfig
from rskd.errors import CacheMismatchError, ConfigError
from rskd.evaluation.window_values import mean_over_tokens
from rskd.models.files import check_model, model_fingerprints, resolve_model
from rskd.models.output_head import OutputHead
from rskd.progress import progress_bar
from rskd.rng import permutation, position_keys, uniforms
from rskd.sparse_targets import SparseTargets
from rskd.storage import Store
from rskd.teacher.sampling import Distribution, Sampling, draw, rows_per_slice
from rskd.teacher.transformers_teacher import TransformersTeacher

STANDARD_ERRORS = 4.0  # that `reproduced_wider` may lie below the teacher's own figure
ROUNDING = 1.1  # how much more an honest cache may have lost to rounding: other kernels (eager attention: 1.02)
Z_LIMIT = 5.0  # of `unbiased` and `aligned`: an honest cache exceeds it once in 1.7 million audits
CHI2_P_LIMIT = 1e-6
WIDER = {"bfloat16": "float32", "float16": "float32", "float32": "float64"}
_RANK_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # of the bins of ranks; the last bin is open
_NO_SAMPLER = 1 << 63  # added to a seed, it gives numbers that no sampler used
_ENGINE_GPU_SHARE = 0.4  # of a GPU's memory for vLLM, beside the two copies of the teacher
_REDRAWS = 4  # that stand for the expectation of a sampler that is not unbiased


class Teacher(Protocol):
    """What the audit needs of a teacher."""

    @property
    def head(self) -> OutputHead: ...
    @property
    def device(self) -> torch.device: ...
    def hidden(self, input_ids: Tensor, end_of_text_id: int | None = None, places: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class AuditReport:
    """What the tests found; `ok` if all were passed (the fingerprint's too, unless it is to be ignored)."""

    ok: bool
    rows: int
    positions: int
    reproduced: float  # mean of Σ_i min(w_i, w'_i), w' drawn again by the same keys
    reproduced_wider: float  # the same, w' drawn from the teacher in the wider dtype
    reproduced_bound: float  # the least reproduced_wider of an honest cache, from the teacher's own
    z_score: float  # of d = Σ w log p + H(p), whose mean is 0 for samples of p
    chi2: float  # of one draw a position over bins of ranks of p
    chi2_p: float  # how often chance alone gives as large a chi2
    alignment_z: float  # by how many standard errors the targets fit better than their neighbours'
    unbiased: bool
    aligned: bool
    fingerprint_matches: bool

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return asdict(self)


@dataclass(frozen=True)
class EngineTeacher:
    """A teacher whose hidden states another engine computes, with the head of the same weights."""

    engine: Any  # has `hidden`, as Teacher
    head: OutputHead
    device: torch.device

    def hidden(self, input_ids: Tensor, end_of_text_id: int | None = None, places: Tensor | None = None) -> Tensor:
        """Hidden states of the engine, where the head is."""
        hidden = self.engine.hidden(input_ids, end_of_text_id).to(self.device)
        return hidden if places is None else hidden.flatten(0, 1)[places.to(self.device)]


def audit_cache(
    uri: str,
    teacher_model: str,
    *,
    engine: Literal["transformers", "vllm"] = "transformers",
    rows: int = 16,
    ignore_fingerprint: bool = False,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> AuditReport:
    """Audit the cache at `uri` against `teacher_model` (`resolve_model`) on `rows` random windows.

    The dtype, and for vllm the quantisation, are the manifest's, whichever engine the cache was made by. Costs two
    copies of the teacher, one of them in a wider dtype, by Transformers; uses a GPU if there is one. With `engine` vllm
    (in its environment) the hidden states of the narrower one are computed by vLLM. `ignore_fingerprint` lets a cache
    pass whose teacher has another fingerprint but proves to be the same; `trust_remote_code` runs code of the model.

    Raises MissingOutputError and CorruptPartError for the cache, ConfigError for the model, CacheMismatchError for a
    model with fewer token ids than the cache's tokenizer.
    """
    check_model(teacher_model)
    cache = LogitCache.open(uri)
    directory = teacher_directory(cache, teacher_model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = cache.manifest.teacher["dtype"]
    teacher = TransformersTeacher.load(
        TeacherConfig(model=teacher_model, dtype=dtype, trust_remote_code=trust_remote_code),
        model_dir=directory,
        device=device,
    )
    if len(teacher.head.weight) < cache.vocab_size:
        raise CacheMismatchError(
            f"cache {uri} has {cache.vocab_size} token ids, model {teacher_model} has {len(teacher.head.weight)}: "
            "name the teacher that it was made with"
        )
    wider = teacher.to_dtype(getattr(torch, WIDER[dtype]))
    fingerprint_matches = cache.manifest.teacher["fingerprint"] in model_fingerprints(directory)
    with _run_by(engine, teacher, cache, directory, trust_remote_code=trust_remote_code) as audited:
        values = measure(cache, audited, wider, rows=rows, seed=seed)
    return judge(values, fingerprint_matches=fingerprint_matches, ignore_fingerprint=ignore_fingerprint)


@contextmanager
def _run_by(
    engine: str, teacher: TransformersTeacher, cache: LogitCache, directory: str, *, trust_remote_code: bool
) -> Iterator[Teacher]:
    """`teacher`, or the same weights run by vLLM as the cache's manifest says."""
    if engine == "transformers":
        yield teacher
        return
    from rskd.teacher.vllm_teacher import VllmTeacher  # this process is in vLLM's environment

    config = PlannedTeacher(
        engine="vllm",
        model=directory,
        dtype=cache.manifest.teacher["dtype"],
        quantization=cache.manifest.teacher.get("quantization"),
        batch_windows=1,
        workers=1,
        gpus_per_worker=int(teacher.device.type == "cuda"),
        gpu_memory_utilization=_ENGINE_GPU_SHARE,
        engine_args={"enforce_eager": True},  # compiling costs more than a few windows
        trust_remote_code=trust_remote_code,
    )
    audited = VllmTeacher.load(config, model_dir=directory, seq_len=cache.seq_len)
    try:
        yield EngineTeacher(audited, teacher.head, teacher.device)
    finally:
        audited.close()


def teacher_directory(cache: LogitCache, model: str) -> str:
    """Where `model` lies (`resolve_model`); a hub id that `cache` names is taken at the cache's revision.

    Converted teachers are kept under the storage root that the cache lies in, if it does.
    """
    on_hub = check_model(model) is None
    made_by = cache.manifest.teacher
    revision = made_by["revision"] if on_hub and made_by["model"] == model else None
    home, caches, _ = Store(cache.uri).absolute_uri.rpartition("/caches/")
    root = home.rpartition("/")[0] if caches else StorageConfig().root
    return resolve_model(model, revision=revision, teachers=f"{root}/teachers")


@torch.inference_mode()
def measure(cache: LogitCache, teacher: Teacher, wider: Teacher, *, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Values of each position of `rows` random windows, float64 [W, S] ([W, S, J] for the bins), on the CPU.

    Those that have a loss come first in a window, and are `counted`; the rest is 0. Raises ConfigError if none has.

    Overlaps: reproduced (cache with redrawn), reproduced_wider (cache with the wider teacher's), own_wider (redrawn
    with the wider teacher's), own (redrawn with itself: its mass). Σ w log p of the targets, and of those of the
    neighbours: fit, fit_before, fit_after. deviation: d less its expectation. rank_bin (one-hot) and expected_bin.
    """
    sampling = Sampling.of(cache.manifest.sampling)
    chosen = permutation(cache.num_rows, seed=seed)[:rows].sort().values
    windows = []
    with progress_bar("audit windows", len(chosen)) as advance:
        for row_id in chosen:
            windows.append(_measure_window(cache, teacher, wider, sampling, row_id[None], seed))
            advance()
    if not any(len(window["fit"]) for window in windows):
        raise ConfigError(f"none of {len(windows)} windows of cache {cache.uri} has a position with a loss: raise rows")
    return {name: pad_sequence([window[name] for window in windows], batch_first=True) for name in windows[0]}


def _measure_window(
    cache: LogitCache, teacher: Teacher, wider: Teacher, sampling: Sampling, row_id: Tensor, seed: int
) -> dict[str, Tensor]:
    corpus = cache.manifest.corpus
    rows = cache.read_rows(row_id)
    assert rows.targets is not None  # a cache has them
    places = torch.arange(cache.seq_len) if rows.loss_mask is None else rows.loss_mask[0].nonzero()[:, 0]
    stored = rows.targets.reshape(cache.seq_len)[places].to(teacher.device)
    isolating_id = corpus["end_of_text_id"] if corpus["isolate_documents"] else None
    hidden = [model.hidden(rows.input_ids[:, :-1], isolating_id, places) for model in (teacher, wider)]
    heads = [model.head.narrow(cache.vocab_size) for model in (teacher, wider)]
    keys = position_keys(row_id, cache.seq_len)[0][places].to(teacher.device)
    size = rows_per_slice(cache.vocab_size, [sampling], teacher.device)
    chunks = []
    for positions in torch.arange(len(places), device=teacher.device).split(size):
        p, p_wider = (Distribution.of(head.logits(states[positions])) for head, states in zip(heads, hidden))
        chunks.append(
            _overlaps(p, p_wider, sampling, keys[positions], stored[positions])
            | _fits(p, stored, positions)
            | _against_expectation(p, sampling, keys[positions], stored[positions], seed)
            | {"counted": torch.ones_like(positions)}
        )
    return {name: torch.cat([chunk[name] for chunk in chunks]).double().cpu() for name in chunks[0]}


def _overlaps(
    p: Distribution, p_wider: Distribution, sampling: Sampling, keys: Tensor, stored: SparseTargets
) -> dict[str, Tensor]:
    """Σ_i min(w_i, w'_i) of the stored targets, the teacher's own draws, and the wider teacher's."""
    own, wider = (_as_stored(draw(of, sampling, keys).targets(sampling), sampling) for of in (p, p_wider))
    cached, own, wider = (targets.to_dense(p.logits.shape[-1]) for targets in (stored, own, wider))
    return {
        "reproduced": torch.minimum(cached, own).sum(-1),
        "reproduced_wider": torch.minimum(cached, wider).sum(-1),
        "own_wider": torch.minimum(own, wider).sum(-1),
        "own": own.sum(-1),
    }


def _as_stored(targets: SparseTargets, sampling: Sampling) -> SparseTargets:
    """Probabilities of top_k and top_p as they come back from a cache."""
    if sampling.method in ("top_k", "top_p"):
        return SparseTargets(targets.ids, targets.weights.half().float())
    return targets


def _fits(p: Distribution, stored: SparseTargets, positions: Tensor) -> dict[str, Tensor]:
    """Σ w log p of the targets and of their neighbours'; the ends of a window have themselves for a neighbour."""
    last = len(stored.ids) - 1
    return {
        name: _fit(p, stored[(positions + shift).clamp(0, last)])
        for name, shift in (("fit", 0), ("fit_before", -1), ("fit_after", 1))
    }


def _fit(p: Distribution, targets: SparseTargets) -> Tensor:
    return (targets.weights * p.log_probabilities(targets.ids)).sum(-1)


def _against_expectation(
    p: Distribution, sampling: Sampling, keys: Tensor, stored: SparseTargets, seed: int
) -> dict[str, Tensor]:
    """What is observed of the targets less, or beside, what samples of p give on average.

    A sampler with weights normalised over its draws (random at another temperature than 1) has a bias of order 1/N by
    design: for it the average is that of redraws with other seeds.
    """
    ranks = _Ranks.of(p)
    u = uniforms(keys, 1, seed=_NO_SAMPLER + seed)
    one = {"rank_bin": F.one_hot(ranks.bin(_choose(stored, u)), ranks.num_bins)[:, 0]}
    if sampling.method != "random" or sampling.draws_counts:
        return one | {"deviation": _fit(p, stored) + p.entropy(), "expected_bin": ranks.mass()}
    redraws = [
        draw(p, replace(sampling, seed=sampling.seed + 1 + index), keys).targets(sampling) for index in range(_REDRAWS)
    ]
    return one | {
        "deviation": _fit(p, stored) - torch.stack([_fit(p, redraw) for redraw in redraws]).mean(0),
        "expected_bin": torch.stack([ranks.mass_of(redraw) for redraw in redraws]).mean(0),
    }


def _choose(targets: SparseTargets, u: Tensor) -> Tensor:
    """One id [R, 1] drawn from the weights by `u` [R, 1]."""
    cumulative = targets.weights.double().cumsum(-1)
    place = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    return targets.ids.gather(1, place.clamp(max=targets.ids.shape[-1] - 1))


@dataclass(frozen=True)
class _Ranks:
    """Bins of token ids by their rank in p. Ids of equal logits share the best rank of them."""

    p: Distribution
    top: Tensor  # ids of the greatest logits, int64 [R, M]; the last of them belongs to the open bin
    rising: Tensor  # their negated logits [R, M]

    num_bins = len(_RANK_EDGES) + 1

    @classmethod
    def of(cls, p: Distribution) -> _Ranks:
        top = p.logits.topk(min(_RANK_EDGES[-1], p.logits.shape[-1]))
        return cls(p, top.indices, -top.values)

    def bin(self, ids: Tensor) -> Tensor:
        """Bin of each of `ids` [R, K]."""
        negated = -self.p.logits.gather(1, ids)
        rank = torch.searchsorted(self.rising, negated)
        edges = torch.tensor(_RANK_EDGES, device=ids.device)
        is_open = negated >= self.rising[:, -1:]
        return torch.where(is_open, self.num_bins - 1, torch.bucketize(rank, edges, right=True))

    def mass(self) -> Tensor:
        """Mass of p in each bin, float64 [R, J]."""
        mass = self._sums(self.top, self.p.probabilities(self.top))
        mass[:, -1] = 1 - mass[:, :-1].sum(-1)
        return mass

    def mass_of(self, targets: SparseTargets) -> Tensor:
        """Weight of the targets in each bin, float64 [R, J]."""
        return self._sums(targets.ids, targets.weights.double())

    def _sums(self, ids: Tensor, weights: Tensor) -> Tensor:
        return weights.new_zeros(len(weights), self.num_bins).scatter_add_(1, self.bin(ids), weights)


def judge(values: Mapping[str, Tensor], *, fingerprint_matches: bool, ignore_fingerprint: bool = False) -> AuditReport:
    """The tests, from the values of each position (`measure`)."""
    counted = values["counted"]
    positions = int(counted.sum())
    reproduced_wider = float(values["reproduced_wider"].sum()) / positions
    least = values["own"] - ROUNDING * (values["own"] - values["own_wider"])
    error = mean_and_error(least - values["reproduced_wider"], counted)[1]
    bound = float(least.sum()) / positions - STANDARD_ERRORS * error
    z_score = _z(values["deviation"], counted)
    chi2, chi2_p = chi_square(values["rank_bin"].sum((0, 1)), values["expected_bin"].sum((0, 1)))
    alignment_z = min(_z(values["fit"] - values[neighbour], counted) for neighbour in ("fit_before", "fit_after"))
    unbiased = abs(z_score) <= Z_LIMIT and chi2_p >= CHI2_P_LIMIT
    aligned = alignment_z >= Z_LIMIT
    passed = reproduced_wider >= bound and unbiased and aligned
    return AuditReport(
        ok=passed and (fingerprint_matches or ignore_fingerprint),
        rows=len(counted),
        positions=positions,
        reproduced=float(values["reproduced"].sum()) / positions,
        reproduced_wider=reproduced_wider,
        reproduced_bound=bound,
        z_score=z_score,
        chi2=chi2,
        chi2_p=chi2_p,
        alignment_z=alignment_z,
        unbiased=unbiased,
        aligned=aligned,
        fingerprint_matches=fingerprint_matches,
    )


def mean_and_error(values: Tensor, counted: Tensor) -> tuple[float, float]:
    """Mean of those of `values` [W, S] that are `counted` (1, or 0), and its standard error.

    That is the larger of the errors over positions and over windows (`mean_over_tokens`): the error of a few windows
    is itself too uncertain to build on.
    """
    chosen, tokens = values[counted > 0], counted.sum(1)
    errors = [float(chosen.std()) / math.sqrt(len(chosen))] if len(chosen) > 1 else [math.inf]
    means = (values * counted).sum(1) / tokens.clamp(min=1)
    mean, over_windows = mean_over_tokens(means.numpy(), tokens.numpy())
    return float(mean), max(*errors, 0.0 if over_windows is None else float(over_windows))


def _z(values: Tensor, counted: Tensor) -> float:
    mean, error = mean_and_error(values, counted)
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def chi_square(observed: Tensor, expected: Tensor, least: float = 5.0) -> tuple[float, float]:
    """Pearson's statistic of counts [J] and its p-value; neighbouring bins that expect less than `least` are joined.

    Draws from rows with different distributions vary less than a multinomial, so the p-value errs on the safe side.
    """
    pairs = _joined(zip(observed.tolist(), expected.tolist()), least)
    chi2 = sum((o - e) ** 2 / e for o, e in pairs)
    if len(pairs) < 2:
        return chi2, 1.0
    half_freedom, half_chi2 = torch.tensor([(len(pairs) - 1) / 2, chi2 / 2], dtype=torch.float64)
    return chi2, float(torch.special.gammaincc(half_freedom, half_chi2))


def _joined(pairs: Iterable[tuple[float, float]], least: float) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for observed, expected in pairs:
        if joined and (joined[-1][1] < least or expected < least):
            joined[-1] = (joined[-1][0] + observed, joined[-1][1] + expected)
        else:
            joined.append((observed, expected))
    return joined
