"""Promote a student: it and the champion on the same held-out windows ─► the gate ─► the registry's aliases.

    finished student, champion of the registry ─► windows ─► promotion.decide ─► version with its verdict
                                                                └── PROMOTE ─► champion; the one before: previous

A student that was judged against this champion, on these windows and by this gate, is not judged again; what `rskd
evaluate` measured of these weights on these windows is not measured again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rskd import records, tracking
from rskd.config import DistillConfig
from rskd.cores import usable_cores
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.costs import Reserved, recorded_costs
from rskd.evaluation.promotion import Decision, Measured, decide, named_teacher
from rskd.evaluation.results import PROMOTIONS, WINDOW_VALUES, missing_table, read_table
from rskd.evaluation.window_values import METRICS, WindowValues, from_parquet
from rskd.jobs.at_work import AtWork, at_work
from rskd.jobs.cluster.stage import on_cluster
from rskd.jobs.evaluate import evaluation_run, measure_windows, plan_for, student_figures
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.lineage.corpus import corpus_recipe
from rskd.lineage.evaluation import evaluation_parts, num_held_out, open_held_out, precision
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import check_student
from rskd.plan import Plan, planned_evaluate
from rskd.storage import Store
from rskd.student.checkpoint import student_digest
from rskd.tracking.registry import CHALLENGER, CHAMPION, Registry, Version

_CHAMPION = ":champion"  # its name among the models of an evaluation: no student can be called so
_TOKENIZER, _TEACHER, _HELD_OUT = "rskd.tokenizer", "rskd.teacher", "rskd.held_out"


@on_cluster
@one_at_a_time
def promote_student(config: DistillConfig, student: str = "default") -> dict[str, Any]:
    """Let a finished student take the champion's place in the registry, if the gate says so (`config.promotion`).

    Returns verdict, reason, ledger (see `rskd.evaluation.promotion`), model, version, against (the version that it was
    compared with, or None), champion (the version that is champion now, or None) and skipped.

    Raises ConfigError for a wrong config or path, or an MLflow that cannot be used; MissingOutputError and
    CacheMismatchError for a corpus or student that is not there, or not what the configuration says.
    """
    config.student_spec(student)
    registry, inputs = Registry.of(config), Inputs(config)
    _ = inputs.corpus_head  # the teacher and its tokenizer, before the outputs
    with inputs_first(config):
        corpus = open_held_out(inputs)
        record = check_student(inputs, student)
    champion, digest = registry.version(CHAMPION), student_digest(record)
    store, file = Store(config.home).child(PROMOTIONS), f"{student}.json"
    done = records.read(store, file)
    if champion is not None and champion.digest == digest:
        told = {"verdict": "PROMOTE", "reason": "it is the champion", "ledger": [], "against": None}
        known = done["decision"] if done and done["recipe"]["student"] == digest else told
        return known | _place(registry, champion) | {"skipped": True}
    recipe = _recipe(inputs, corpus, digest, champion)
    if done is not None and done["recipe"] == recipe:
        return done["decision"] | {"champion": champion and champion.version, "skipped": True}

    makes = {"decision": records.digest(recipe)}
    values = _evaluated(inputs, corpus, student, record)
    plan = None
    if not values or (champion is not None and _is_comparable(champion, _identity(inputs, corpus))):
        plan = plan_for(config, corpus, inputs.teacher_dir, Store(config.home), student)
    reserves, planned = (plan.reserved, plan.params) if plan else (Reserved(usable_cores()), None)
    with at_work(config, "promote", student, reserves=reserves, makes=makes, planned=planned) as work:
        tracked = work.run
        measured = _measure(inputs, corpus, student, values, registry, champion, plan, work)
        decision = decide(measured.get(_CHAMPION), measured[student], config.promotion)
        tracked.metrics({row["metric"]: row["challenger"] for row in decision.ledger if row["challenger"] is not None})
        tags = _tags(inputs, corpus, record, decision, champion)
        description = f"Student {student} of {config.name}. {decision.verdict}: {decision.reason}."
        uri = config.student_uri(student)
        version = registry.register(
            uri, digest, name=f"{config.name} {student}", run=tracked, tags=tags, description=description
        )
        if decision.verdict == "PROMOTE":
            registry.promote_over(champion, version.version)
        else:
            registry.set_alias(CHALLENGER, version.version)
        found = {
            "verdict": decision.verdict,
            "reason": decision.reason,
            "ledger": list(decision.ledger),
            "against": champion.version if champion else None,
            **_place(registry, version),
        }
        tracked.text("decision.json", json.dumps(found, indent=2))
        records.write(store, file, {"recipe": recipe, "decision": found})
    judged = {metric: measured[student].values.metric(metric) for metric in METRICS}
    tracking.log_headline(config, student_figures(config, {student: judged}), recorded_costs(Store(config.home)))
    return found | {"skipped": False}


def _tags(
    inputs: Inputs, corpus: PackedCorpus, record: dict[str, Any], decision: Decision, champion: Version | None
) -> dict[str, str]:
    """What a version says of itself."""
    return _identity(inputs, corpus) | {
        "rskd.verdict": decision.verdict,
        "rskd.reason": decision.reason,
        "rskd.ledger": json.dumps(decision.ledger),
        "rskd.against": str(champion.version) if champion else "",
        "rskd.source": str(record["recipe"].get("source")),
        "rskd.corpus": corpus.manifest.fingerprint,
    }


def _place(registry: Registry, version: Version) -> dict[str, Any]:
    """Where a version stands."""
    champion = registry.version(CHAMPION)
    return {"model": registry.name, "version": version.version, "champion": champion.version if champion else None}


def _recipe(inputs: Inputs, corpus: PackedCorpus, digest: str, champion: Version | None) -> dict[str, Any]:
    """All that a decision depends on."""
    config = inputs.config
    return {
        "student": digest,
        "champion": champion.digest if champion else None,
        "windows": corpus.manifest.fingerprint,
        "num_windows": num_held_out(config, corpus),
        "teacher": _identity(inputs, corpus)[_TEACHER],
        "gate": config.promotion.model_dump(mode="json"),
        **precision(config.evaluate),
    }


def _identity(inputs: Inputs, corpus: PackedCorpus) -> dict[str, str]:
    """What a student and the champion must have in common to be compared."""
    manifest = corpus.manifest
    rule = {"eval_threshold": manifest.eval_threshold, "eval_multiplier": manifest.eval_multiplier}
    return {
        _TOKENIZER: manifest.tokenizer["fingerprint"],
        _TEACHER: named_teacher(inputs.teacher_fingerprints[0], inputs.config.teacher.dtype),
        _HELD_OUT: records.digest(corpus_recipe(manifest.head) | rule),  # of a corpus that grows, too
    }


def _measure(
    inputs: Inputs,
    corpus: PackedCorpus,
    student: str,
    values: dict[str, WindowValues],
    registry: Registry,
    champion: Version | None,
    plan: Plan | None,
    work: AtWork,
) -> dict[str, Measured]:
    """The student, and the champion where there is one, on the same windows.

    `values` are known of the student; what else is needed is measured by the `plan`.
    """
    config = inputs.config
    wanted = _identity(inputs, corpus)
    identities = {student: wanted}
    if champion is not None:
        identities[_CHAMPION] = {name: champion.tags.get(name, "unknown") for name in wanted}
    if plan is not None:
        settings = planned_evaluate(config.evaluate, plan)
        run = evaluation_run(config, corpus, inputs.teacher_dir, [] if values else [student], settings)
        if champion is not None and _is_comparable(champion, wanted):
            run = replace(run, students=run.students | {_CHAMPION: (registry.download(champion), "auto")})
        title = " and ".join(name.replace(_CHAMPION, "the champion") for name in run.students)
        found = measure_windows(config.ray, run, title=title)
        values = values | {name: found[name][WINDOW_VALUES] for name in run.students}
        work.add(tokens=run.num_windows * corpus.seq_len)
    if champion is not None and _CHAMPION not in values:  # no number of it would mean anything here
        values[_CHAMPION] = values[student].unknown()
    return {
        name: Measured(identity[_TOKENIZER], identity[_TEACHER], identity[_HELD_OUT], values[name])
        for name, identity in identities.items()
    }


def _is_comparable(champion: Version, identity: dict[str, str]) -> bool:
    """Whether the champion is measured on the same windows as the student, beside the same teacher."""
    return identity.items() <= champion.tags.items()


def _evaluated(inputs: Inputs, corpus: PackedCorpus, student: str, record: dict[str, Any]) -> dict[str, WindowValues]:
    """What the newest evaluation measured of these very weights, by the student's name; nothing where it did not."""
    home = Store(inputs.config.home)
    windows, *_ = evaluation_parts(inputs, corpus, {student: record})
    evaluation = records.read(home, windows.file)
    if evaluation is None:
        return {}
    made = evaluation["recipe"] | {"students": {student: evaluation["recipe"]["students"].get(student)}}
    if made != windows.recipe or missing_table(home, evaluation):
        return {}
    data = read_table(home, WINDOW_VALUES, evaluation)
    return {} if data is None else {student: from_parquet(data)[student]}
