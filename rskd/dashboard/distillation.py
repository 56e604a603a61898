"""One distillation as rows: its stages, caches, students, and what was measured of them.

Whether an output is stale is judged by what the outputs say of each other, since no configuration is at hand: a cache
of windows that are not the corpus's, a student of a cache that has changed, an evaluation of other weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rskd import records
from rskd.cache.checks import kept_checks
from rskd.cache.inspection import growth, inspect
from rskd.corpus.packed_corpus import CorpusManifest, read_manifest
from rskd.costs import Costs, recorded_costs
from rskd.dashboard.curves import learning_curve
from rskd.dashboard.evaluation import measured, read_evaluation
from rskd.errors import MissingOutputError
from rskd.models.digests import RESULT_FILE
from rskd.pages.wording import objective_in_words, sampling_in_words
from rskd.storage import Store
from rskd.student.checkpoint import LOG_FILE

Row = dict[str, Any]

_FOLDERS = {"corpus", "caches", "students", "checkpoints"}
_STEP = re.compile(r"checkpoint-(\d+)$")
_LEVELS = ("missing", "unfinished", "stale", "done")


def is_distillation(home: Store) -> bool:
    """Whether a stage has begun to write into this folder."""
    return bool(_FOLDERS & set(home.folders()))


def read_distillation(home: Store, name: str) -> dict[str, list[Row]]:
    """Its rows by kind: one of `distillations`, all of `caches`, `students` and `evaluations`.

    Raises OutputError for a file of rskd's that cannot be read.
    """
    corpus = {split: read_manifest(home.child(f"corpus/{split}")) for split in ("train", "eval")}
    costs = recorded_costs(home)
    caches = [_cache(home, cache, corpus["train"], costs.get("cache")) for cache in home.folders("caches")]
    evaluation = read_evaluation(home)
    names = sorted({*home.folders("students"), *home.folders("checkpoints")})
    sources = ({"": corpus["train"].digest} if corpus["train"] else {}) | {one["name"]: one["digest"] for one in caches}
    students = [
        _student(home, student, sources, evaluation) | {"cost": _held(costs.get(f"train {student}"))}
        for student in names
    ]
    for cache in caches:
        cache["students"] = [one["name"] for one in students if one["cache"] == cache["name"]]
    rows = {"caches": caches, "students": students}
    evaluations = [_evaluation(evaluation, corpus["eval"])] if evaluation else []
    distillation = _facts(name, corpus, caches, evaluation) | {
        "stages": [*_stages(corpus, caches, students, evaluations)],
        "modified": home.modified("evaluation.json" if evaluation else ""),
        "costs": {stage: _held(cost) for stage, cost in costs.items()},
    }
    named = {kind: [{"distillation": name} | row for row in found] for kind, found in rows.items()}
    return {"distillations": [distillation], **named, "evaluations": [{"distillation": name} | e for e in evaluations]}


def _facts(name: str, corpus: Mapping[str, CorpusManifest | None], caches: list[Row], evaluation: Row | None) -> Row:
    train, held_out = corpus["train"], corpus["eval"]
    teacher = caches[0]["teacher"] if caches else {"model": train.tokenizer["name"], "dtype": None} if train else {}
    source = train.source if train else {}
    return {
        "name": name,
        "teacher": teacher.get("model"),
        "dtype": teacher.get("dtype"),
        "source": " ".join(filter(None, (source.get("kind"), source.get("uri")))),
        "seq_len": train.seq_len if train else None,
        "train_windows": train.totals["windows"] if train else None,
        "eval_windows": held_out.totals["windows"] if held_out else None,
        "comparable": evaluation["comparable"] if evaluation else None,
    }


def _held(cost: Costs | None) -> Row | None:
    """What a stage held, of which its price follows."""
    return cost and {key: round(getattr(cost, key), 1) for key in ("tokens", "seconds", "core_seconds", "gpu_seconds")}


def _cache(home: Store, name: str, corpus: CorpusManifest | None, cost: Costs | None) -> Row:
    uri = f"{home.uri}/caches/{name}"
    try:
        found = inspect(uri)
    except MissingOutputError:
        return {"name": name, "state": "missing", "reason": "", "teacher": {}, "digest": None, "method": None}
    expected = len(corpus.parts) if corpus else found["parts_expected"]
    unfinished = not found["complete"] or (expected is not None and found["parts"] < expected)
    stale = corpus is not None and found["parts"] > len(corpus.parts)
    sampling = found.pop("sampling")
    return found | {
        "name": name,
        "state": "stale" if stale else "unfinished" if unfinished else "done",
        "reason": f"{found['parts']:,} of {expected:,} parts" if unfinished and expected else "",
        "method": sampling["method"],
        "targets": sampling_in_words(sampling),
        "parts_expected": expected,
        "teacher": {key: found["teacher"].get(key) for key in ("model", "dtype", "fingerprint")},
        "growth": growth(uri, found["generation"]) if found["generation"] else [],
        "checks": {check: _told(kept, found["digest"]) for check, kept in kept_checks(uri).items()},
        "cost": _held(cost),  # of the one pass of the teacher that made all caches of the distillation
    }


def _told(kept: Row, digest: str | None) -> Row:
    """Of a kept check: whether the cache passed, when, whether it was this generation, and what was wrong."""
    report = kept["report"]
    problems = [f"{one['part']}: {one['problem']}" for one in report.get("problems", ())]
    failed = [test for test in ("unbiased", "aligned", "fingerprint_matches") if report.get(test) is False]
    return {
        "ok": report["ok"],
        "checked": kept["checked"],
        "current": kept["manifest"] == digest,
        "problems": [*problems[:3], *(f"not {test}" for test in failed)],
    }


def _student(home: Store, name: str, sources: Mapping[str, str | None], evaluation: Row | None) -> Row:
    """A student; `sources` are the digests, by the cache's name, of what it may have been trained from ("": labels)."""
    store = home.child(f"students/{name}")
    record = records.read(store, RESULT_FILE)
    if record is None:
        return _in_training(home, name)
    recipe, summary = record.get("recipe", {}), record["summary"]
    objective, sampling = recipe.get("objective"), recipe.get("sampling")
    loss, targets = objective_in_words(objective, sampling) if objective else ("", "")
    source = next((one for one, digest in sources.items() if digest == recipe.get("source")), None)
    return {
        "name": name,
        "state": "done" if source is not None else "stale",
        "reason": "" if source is not None else "what it was trained from has changed since then",
        "cache": source or None,
        "objective": loss,
        "targets": targets,
        "kind": objective and objective["kind"],
        "method": (sampling or {}).get("method") if objective and objective["kind"] == "sparse_kd" else None,
        "init": recipe.get("student", {}).get("init"),
        "seed": recipe.get("train", {}).get("seed"),
        "lr": recipe.get("train", {}).get("lr"),
        **{key: summary.get(key) for key in ("steps", "tokens", "tokens_per_s", "seconds", "loss")},
        "curve": learning_curve(store.read(LOG_FILE)) if store.exists(LOG_FILE) else None,
        **measured(home, name, record, evaluation),
    }


def _in_training(home: Store, name: str) -> Row:
    """A student that has checkpoints and no weights yet."""
    folder = home.child(f"checkpoints/{name}")
    found = [_STEP.search(checkpoint) for run in folder.folders() for checkpoint in folder.folders(run)]
    steps = [int(match[1]) for match in found if match]
    reason = f"at step {max(steps):,}" if steps else ""
    return {"name": name, "state": "unfinished", "reason": reason, "cache": None, "measured": None, "curve": None}


def _evaluation(evaluation: Row, held_out: CorpusManifest | None) -> Row:
    fits = held_out is None or evaluation["corpus"] == held_out.fingerprint
    kept = {key: evaluation[key] for key in ("windows", "tokens", "comparable")}
    return kept | {"state": "done" if fits else "stale", "reason": "" if fits else "of other held-out windows"}


def _stages(
    corpus: Mapping[str, CorpusManifest | None], caches: list[Row], students: list[Row], evaluations: list[Row]
) -> Iterable[Row]:
    """A row for each kind of output: the least state of its outputs, and why."""
    yield {"stage": "pack", "state": "done" if all(corpus.values()) else "missing", "reason": ""}
    for stage, rows in (("cache", caches), ("train", students), ("evaluate", evaluations)):
        least = min(rows, key=lambda row: _LEVELS.index(row["state"]), default=None)
        if least is None:
            yield {"stage": stage, "state": "missing", "reason": ""}
            continue
        reason = f"{least['name']}: {least['reason']}" if least["reason"] and "name" in least else least["reason"]
        done = sum(row["state"] == "done" for row in rows)
        yield {"stage": stage, "state": least["state"], "reason": reason, "done": done, "of": len(rows)}
