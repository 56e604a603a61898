"""What a distillation will cost: storage, teacher and student time, money, for a number of tokens.

Measured where there is a cache of this configuration, or a finished stage in MLflow. Fitted, for the unique tokens of a
cache that does not exist, where `probe` ran the teacher on a few windows. Else from the defaults below. `source` says
which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rskd import records, tracking
from rskd.cache.inspection import inspect
from rskd.config import DistillConfig, PlannedTeacher, SamplingConfig
from rskd.corpus.packed_corpus import MANIFEST_FILE, PackedCorpus
from rskd.costs import COSTS, Reserved
from rskd.errors import ConfigError
from rskd.evaluation.unique_tokens import PowerLaw, UniqueTokens, rounds_against_unique_tokens
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.models.load import num_head_parameters, num_parameters
from rskd.pages.figures import unique_tokens_by_rounds
from rskd.pages.parts import definitions, figure_html, html_page, section
from rskd.plan import (
    DEFAULT_BATCH,
    Plan,
    plan_student,
    plan_teacher,
    planned_teacher,
    planned_train,
    recorded_batch,
    resources_here,
)
from rskd.progress import progress_bar
from rskd.provenance import provenance
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher
from rskd.teacher_statistics import STATISTICS

# From tests/bench/bench_storage.py: SmolLM2-135M on CPython's documentation, 51,200 positions in windows of 256,
# 2026-11-24. Mean unique tokens by rounds (paper, Appendix C).
UNIQUE_TOKENS = {"random": PowerLaw(1.05, 0.719), "systematic": PowerLaw(1.135, 0.727)}
# Bytes for each position: the window's own ids, each unique token.
BYTES_PER_POSITION = 1.5
BYTES_PER_COUNT = {"plain": 1.9, "compact": 1.6}
BYTES_PER_PROBABILITY = 3.15
BYTES_PER_WEIGHT = 4.7  # rskd.reproduction at cpu-small, V = 4,096, 2026-11-25
# Sustained floating-point operations per second in a forward pass.
CPU_THREAD_FLOPS = 27e9
GPU_FLOPS = 150e12
PROBE = "unique_tokens"  # .json and .html in the distillation's folder
_SPEED_DEPENDS_ON = {
    "micro_batch",
    "precision",
    "workers",
    "sharding",
    "activation_checkpointing",
    "compile",
    "gpus_per_worker",
    "threads_per_worker",
}


def estimate(config: DistillConfig, *, tokens: int | None = None) -> dict[str, Any]:
    """Costs of distilling `tokens` training tokens (those of the packed corpus by default).

    Of conversations, storage and the teacher's output head scale with the share of tokens that have a loss in the
    packed corpus; before there is one, all count.

    Returns corpus {tokens, windows, parts; loss_tokens of conversations}, teacher {tokens_per_s, source, and COSTS},
    caches {<name>: bytes, bytes_per_token, unique_per_token, source}, students {<name>: tokens, epochs, tokens_per_s,
    source, and COSTS}, and `break_even` (see there); the speed of a student that was not trained yet, and its costs,
    are unknown: None.

    Raises ConfigError for a teacher that does not exist, MissingOutputError without `tokens` and a packed corpus.
    """
    inputs = Inputs(config)
    seq_len = config.corpus.seq_len
    if tokens is None:
        with inputs_first(config):
            tokens = open_corpus(inputs, "train").num_rows * seq_len
    windows = math.ceil(tokens / seq_len)
    plan = _teacher_plan(config)
    planned = planned_teacher(config.teacher, plan)
    measured = tracking.measured_speed(config, "cache", None, {"teacher": planned.model_dump(mode="json")})
    loss_share = _loss_share(inputs)
    speed = measured or teacher_tokens_per_s(planned, _parameters_per_token(inputs, loss_share))
    teacher = {
        "tokens_per_s": speed,
        **_costs(config, plan.reserved, tokens / speed),
        "source": _source(measured),
    }
    laws = _probed_laws(config)
    samplings = config.cache_samplings.items()
    caches = {name: _cache(config, name, sampling, laws, loss_share) for name, sampling in samplings}
    of_chat = {"loss_tokens": round(tokens * loss_share)} if config.corpus.kind == "chat" else {}
    parts = math.ceil(windows / config.corpus.windows_per_part)
    return {
        "corpus": {"tokens": tokens, "windows": windows, "parts": parts, **of_chat},
        "teacher": teacher,
        "caches": {name: cache | {"bytes": round(tokens * cache["bytes_per_token"])} for name, cache in caches.items()},
        "students": {name: _student(config, name, tokens) for name in config.student_specs},
        "break_even": break_even(config, tokens=tokens, tokens_per_s=speed),
    }


def break_even(config: DistillConfig, *, tokens: int, tokens_per_s: float) -> dict[str, Any] | None:
    """From where on a cache is cheaper than a teacher online; None where no student learns from a cache.

    Cached, the teacher runs once over the `tokens` of the corpus. Online it runs over each token that a student trains
    on, steps·global_batch·seq_len of them, for each student again. At the same speed and on the same machines:

        cached = tokens / tokens_per_s        online = Σ_students steps·global_batch·seq_len / tokens_per_s

    Returns `students`, the least whole number n of students of the configured (mean) tokens T for which n·T > tokens;
    `epochs`, the passes over the corpus of each of the n configured students beyond which n·epochs > 1, so 1/n; and
    `cached` and `online`, the COSTS of the teacher for the configured students. Training comes on top of both, alike.
    """
    specs = config.student_specs.items()
    trained = [_trained_tokens(config, name) for name, spec in specs if spec.objective.kind == "sparse_kd"]
    if not trained:
        return None
    reserved = _teacher_plan(config).reserved
    return {
        "students": tokens * len(trained) // sum(trained) + 1,
        "epochs": 1 / len(trained),
        "cached": _costs(config, reserved, tokens / tokens_per_s),
        "online": _costs(config, reserved, sum(trained) / tokens_per_s),
    }


def probe(config: DistillConfig, *, windows: int) -> dict[str, UniqueTokens]:
    """Run the teacher on the first `windows` of the packed corpus, and fit unique tokens to sampling rounds.

    What `estimate` uses from then on; written, with the figure, to <home>/unique_tokens.json and .html.

    Raises ConfigError for a teacher that does not exist and for windows without any loss, MissingOutputError without a
    packed corpus.
    """
    inputs = Inputs(config)
    with inputs_first(config):
        corpus = open_corpus(inputs, "train")
    teacher = TransformersTeacher.load(
        config.teacher, model_dir=inputs.teacher_dir, device="cuda" if torch.cuda.is_available() else "cpu"
    )
    num_windows = min(windows, corpus.num_rows)
    has_loss = corpus.read_rows(np.arange(num_windows)).has_loss
    if has_loss is not None and not has_loss.any():
        raise ConfigError(
            f"none of the first {num_windows} windows of corpus {corpus.uri} has a position with a loss: probe more"
        )
    found = rounds_against_unique_tokens(_window_logits(teacher, corpus, num_windows))
    facts = provenance() | {"positions": str(num_windows * corpus.seq_len if has_loss is None else has_loss.sum())}
    methods = {name: unique.to_dict() for name, unique in found.items()}
    home = Store(config.home)
    records.write(home, f"{PROBE}.json", {"of": _probe_inputs(config), "methods": methods, "provenance": facts})
    laws = {f"{name}, U of N rounds": unique.described_law for name, unique in found.items()}
    sections = [
        section("Setting", definitions({"Teacher": config.teacher.model} | facts)),
        section("Rounds against unique tokens", figure_html(unique_tokens_by_rounds(found)) + definitions(laws)),
    ]
    home.write(f"{PROBE}.html", html_page("unique tokens", config.name, sections).encode())
    return found


def teacher_tokens_per_s(config: PlannedTeacher, num_parameters: float) -> float:
    """Tokens per second of all teacher workers, at 2 floating-point operations for each parameter and token."""
    device_flops = config.gpus_per_worker * GPU_FLOPS or config.threads_per_worker * CPU_THREAD_FLOPS
    return config.workers * device_flops / (2 * num_parameters)


def predicted_costs(
    sampling: SamplingConfig, laws: Mapping[str, PowerLaw], loss_share: float = 1.0
) -> tuple[float, float]:
    """Unique tokens and bytes for each position of a cache that does not exist yet, where that share has a loss.

    At most, for top_p and for random sampling at another temperature than 1, whose law nobody fitted.
    """
    unique, bytes_per_entry = _predicted_entries(sampling, laws)
    statistics = sum(STATISTICS[name].bytes_per_position for name in sampling.statistics)
    return loss_share * unique, loss_share * (unique * bytes_per_entry + statistics) + BYTES_PER_POSITION


def _predicted_entries(sampling: SamplingConfig, laws: Mapping[str, PowerLaw]) -> tuple[float, float]:
    """Unique tokens where there is a loss, and the bytes of each."""
    if sampling.method in ("top_k", "top_p"):
        assert sampling.k is not None  # SamplingConfig checks it
        return float(sampling.k), BYTES_PER_PROBABILITY
    if sampling.temperature != 1:
        return float(sampling.num_samples), BYTES_PER_WEIGHT
    return laws[sampling.method].unique_tokens(sampling.num_samples), BYTES_PER_COUNT[sampling.layout]


def _loss_share(inputs: Inputs) -> float:
    """Of positions; 1 for texts, and for conversations that are not packed yet."""
    config = inputs.config
    if config.corpus.kind != "chat" or not Store(config.corpus_uri("train")).exists(MANIFEST_FILE):
        return 1.0
    return open_corpus(inputs, "train").manifest.shares["loss_share"]


def _parameters_per_token(inputs: Inputs, loss_share: float) -> float:
    """Of the teacher, with those of its output head as often as it runs."""
    options = {"trust_remote_code": inputs.config.teacher.trust_remote_code}
    total = num_parameters(inputs.teacher_dir, **options)
    return total if loss_share == 1 else total - (1 - loss_share) * num_head_parameters(inputs.teacher_dir, **options)


def _probe_inputs(config: DistillConfig) -> dict[str, Any]:
    """What the laws depend on, as far as the configuration says it."""
    return {
        "teacher": config.teacher.model_dump(mode="json", include={"model", "revision"}),
        "corpus": config.corpus.model_dump(mode="json", include={"source", "tokenizer", "seq_len"}),
    }


def _window_logits(teacher: TransformersTeacher, corpus: PackedCorpus, num_windows: int) -> Iterator[Tensor]:
    """Logits [1, T, V] of one window at a time, where it has a loss."""
    manifest = corpus.manifest
    end_of_text_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
    with progress_bar("probe windows", num_windows) as advance:
        for row in range(num_windows):
            windows = corpus.read_rows(np.array([row]))
            inputs = torch.from_numpy(windows.input_ids[:, :-1]).long()
            places = None if windows.has_loss is None else torch.from_numpy(np.flatnonzero(windows.has_loss))
            vocab_size = manifest.tokenizer["vocab_size"]
            logits = teacher.logits(inputs, places, vocab_size=vocab_size, end_of_text_id=end_of_text_id)
            yield logits if places is None else logits[None]
            advance(1)


def _probed_laws(config: DistillConfig) -> dict[str, PowerLaw] | None:
    """The laws that `probe` found for this teacher and corpus, or None."""
    found = records.read(Store(config.home), f"{PROBE}.json")
    if found is None or found["of"] != _probe_inputs(config):
        return None
    return {name: PowerLaw(**method["law"]) for name, method in found["methods"].items()}


def _cache(
    config: DistillConfig,
    name: str,
    sampling: SamplingConfig,
    laws: Mapping[str, PowerLaw] | None,
    loss_share: float,
) -> dict[str, Any]:
    uri = config.cache_uri(name)
    found = inspect(uri) if Store(uri).exists("manifest.json") else None
    wanted = sampling.model_dump(mode="json")
    if found and (found["sampling"], found["teacher"]["model"]) == (wanted, config.teacher.model):
        return {key: found[key] for key in ("unique_per_token", "bytes_per_token")} | {"source": "measured"}
    unique, num_bytes = predicted_costs(sampling, laws or UNIQUE_TOKENS, loss_share)
    fitted = laws is not None and sampling.method in laws and sampling.temperature == 1
    return {"unique_per_token": unique, "bytes_per_token": num_bytes, "source": "fitted" if fitted else "default"}


def _student(config: DistillConfig, name: str, tokens: int) -> dict[str, Any]:
    """Passes over `tokens`, and the time of training at the speed at which the same student was trained before."""
    spec, trained = config.student_specs[name], _trained_tokens(config, name)
    plan = plan_student(config, name, resources_here(), partial(_batch, config))
    params = spec.model_dump(mode="json", include={"student": True, "objective": {"kind"}})
    params["train"] = planned_train(spec.train, plan).model_dump(mode="json", include=_SPEED_DEPENDS_ON)
    speed = tracking.measured_speed(config, "train", name, params)
    return {
        "tokens": trained,
        "epochs": trained / tokens,
        "tokens_per_s": speed,
        **_costs(config, plan.reserved, trained / speed if speed else None),
        "source": _source(speed),
    }


def _trained_tokens(config: DistillConfig, student: str) -> int:
    train = config.student_specs[student].train
    return train.steps * train.global_batch * config.corpus.seq_len


def _teacher_plan(config: DistillConfig) -> Plan:
    """On this machine, as is a student's: a cluster is not asked."""
    return plan_teacher(config, resources_here(), partial(_batch, config))


def _batch(config: DistillConfig, cap: int, plan: Plan) -> int:
    """What was measured for a stage; nothing is measured for an estimate."""
    return recorded_batch(Store(config.home), plan.stage, plan.student) or min(cap, DEFAULT_BATCH[plan.stage])


def _costs(config: DistillConfig, reserved: Reserved, seconds: float | None) -> dict[str, float | None]:
    """COSTS of holding something for so many seconds; None where these are not known."""
    if seconds is None:
        return dict.fromkeys(COSTS)
    priced = reserved.costs(seconds).priced(config.costs)
    return {name: getattr(priced, name) for name in COSTS}


def _source(measured: float | None) -> str:
    return "default" if measured is None else "measured"
