"""Rate answers by the rubric, where there is no judge: answers ─► ROUGE-L ─► <name>/rubric/<model>.json

What it finds is no judgement and is kept apart from those. It is skipped where the answers are unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.evaluation import rubric
from rskd.evaluation.answers import read_answers
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.lineage.answers import digest_of_answers, find_model, parts_of, prompt_sets
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.storage import Store

_FOLDER = "rubric"


@one_at_a_time
def rate_answers(config: DistillConfig, model: str) -> dict[str, Any]:
    """Rate the answers of one model that `generate_answers` made.

    Returns {<set>: Verdict as a dict, "skipped": bool}. Raises MissingOutputError where an answer is missing.
    """
    sets = prompt_sets(config)
    with inputs_first(config):
        parts = parts_of(config, find_model(Inputs(config), model), sets)
    store, file = Store(config.home).child(_FOLDER), f"{model}.json"
    made_from = {"rated by": rubric.NAME, "answers": digest_of_answers(parts)}
    known = records.read(store, file)
    if known is not None and known.items() >= made_from.items():
        return known["sets"] | {"skipped": True}
    answers = Store(config.answers_uri(model))
    found = {name: asdict(rubric.rate(list(read_answers(answers, of_set)))) for name, of_set in parts.items()}
    records.write(store, file, {**made_from, "sets": found})
    return found | {"skipped": False}


def rubric_rows(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `rate_answers` gives, as rows of a table: score and interval of each set."""
    return {
        name: {key: verdict[key] for key in ("score", "low", "high", "answers", "answer_words", "cut", "empty")}
        for name, verdict in found.items()
        if isinstance(verdict, dict)
    }
