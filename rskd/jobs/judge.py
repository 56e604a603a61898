"""Judge: answers of models ─► requests to a large model, a few at once ─► ratings ─► a verdict on each set of prompts.

    answers ─► request(…) ─► already paid? ─► JudgeClient ─► PaidReplies ─► Rated ─► Verdict ─► verdict.json

A reply is on storage as soon as it has come. So a run that was stopped, failed or reached its cap goes on without
paying twice, and equal answers to a prompt are rated once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rskd import records
from rskd.config import DistillConfig, JudgeConfig
from rskd.costs import Reserved
from rskd.errors import ConfigError
from rskd.evaluation.answers import Answered, read_answers
from rskd.evaluation.judge_client import api_key
from rskd.evaluation.judging import Rated, Verdict, judge, orders, request
from rskd.evaluation.kinship import kinship
from rskd.evaluation.ratings import PaidReplies, judge_recipe, tokens_spent, write_ratings, write_verdicts
from rskd.jobs.ask_judge import Requests, ask_judge
from rskd.jobs.at_work import AtWork, at_work
from rskd.jobs.generate import generate_answers
from rskd.jobs.one_at_a_time import one_at_a_time
from rskd.lineage.answers import digest_of_answers, find_model, models_that_answer, parts_of, prompt_sets
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.storage import Store

_UNPARSED_SHARE = 0.05  # from here on it is warned about

_logger = logging.getLogger(__name__)

Asked = list[list[str]]  # the digests of the requests for each answer of a set, one an order


def judge_models(config: DistillConfig, model: str | None = None) -> dict[str, Any]:
    """Generate what is missing of the answers of `model`, by default of all that answer, and have them rated.

    Returns {models: {<model>: what `judge_answers` gives}, judge, tokens_spent, warnings}. Before anything is generated
    it raises ConfigError for the config, the key and the prompts, and what `generate_answers` does of a model.
    """
    settings = judge_section(config)
    api_key(settings)
    prompt_sets(config)
    models = models_that_answer(config) if model is None else [model]
    inputs = Inputs(config)
    with inputs_first(config):
        for name in models:
            find_model(inputs, name)
    for name in models:
        generate_answers(config, name)
    warnings = _warnings(config)
    for warning in warnings:
        _logger.warning(warning)
    judged = {name: judge_answers(config, name) for name in models}
    return {"models": judged, "judge": settings.model, "tokens_spent": tokens_spent(config), "warnings": warnings}


def judge_section(config: DistillConfig) -> JudgeConfig:
    """The section `judge`; ConfigError where the configuration has none."""
    if config.judge is None:
        raise ConfigError("the config has no section judge: add one, with endpoint and model")
    return config.judge


@one_at_a_time
def judge_answers(config: DistillConfig, model: str) -> dict[str, Any]:
    """Have the answers of one model rated, and write the verdicts where `read_judgements` finds them.

    Returns {<set>: Verdict as a dict, "skipped": bool}. Raises ConfigError for an endpoint that refuses the key or the
    model, RskdError for one that does not answer and for a cap that is reached: what was rated is kept.
    """
    settings = judge_section(config)
    sets = prompt_sets(config)
    with inputs_first(config):
        found = find_model(Inputs(config), model)
        parts = parts_of(config, found, sets)
        answers = {name: list(read_answers(Store(config.answers_uri(model)), parts[name])) for name in sets}
    asked, bodies = _requests(settings, answers)
    paid = PaidReplies(Store(config.judgement_uri(model)).child("paid"))
    missing = {digest: body for digest, body in bodies.items() if digest not in paid}
    made_from = {"answers": digest_of_answers(parts), "model": found.digest}
    conclude = partial(_conclude, config, model, answers, asked, paid, made_from)
    if not missing:
        return conclude() | {"skipped": True}
    with at_work(config, "judge", model, reserves=Reserved(0), makes={"answers": made_from["answers"]}) as work:
        rated = len(bodies) - len(missing)
        ask_judge(settings, missing, paid, rated=rated, spent=tokens_spent(config), title=f"judge {model}")
        verdicts = conclude()
        _track(work, verdicts)
    return verdicts | {"skipped": False}


def _requests(settings: JudgeConfig, answers: Mapping[str, Sequence[Answered]]) -> tuple[dict[str, Asked], Requests]:
    """The digests of the requests for each answer, by set, and what makes their bodies; equal ones are one request."""
    asked: dict[str, Asked] = {}
    bodies: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, of_set in answers.items():
        asked[name] = []
        for answered in of_set:
            makers = [partial(request, settings, answered, order) for order in orders(settings)]
            digests = [records.digest(body()) for body in makers]
            asked[name].append(digests)
            bodies |= dict(zip(digests, makers, strict=True))
    return asked, bodies


def _conclude(
    config: DistillConfig,
    model: str,
    answers: Mapping[str, Sequence[Answered]],
    asked: Mapping[str, Asked],
    paid: PaidReplies,
    made_from: Mapping[str, str],
) -> dict[str, Any]:
    """The verdict on each set, which it writes, with the ratings and the digests of what they were made from."""
    settings, store = judge_section(config), Store(config.judgement_uri(model))
    verdicts = {}
    for name, of_set in answers.items():
        ratings = [
            [
                Rated.read(order, paid[digest].text) if digest in paid else None
                for order, digest in zip(orders(settings), digests, strict=True)
            ]
            for digests in asked[name]
        ]
        verdict = judge(of_set, ratings)
        _warn(model, name, verdict)
        write_ratings(store, name, _rows(of_set, ratings, asked[name]))
        verdicts[name] = asdict(verdict)
    content = {
        "judge": judge_recipe(settings),
        "generate": config.generate.model_dump(mode="json") if config.generate else None,
        **made_from,
        "sets": verdicts,
        "warnings": _warnings(config),
    }
    write_verdicts(store, content)
    return verdicts


def _warnings(config: DistillConfig) -> list[str]:
    """What to bear in mind with any verdict of this judge."""
    kin = kinship(judge_section(config).model, config.teacher.model)
    return [kin] if kin else []


def _warn(model: str, prompt_set: str, verdict: Verdict) -> None:
    replies = verdict.ratings + verdict.unparsed
    if verdict.unparsed > _UNPARSED_SHARE * replies:
        _logger.warning(
            "%d of %d replies of the judge on %s of %s are no rating: the score lies between %.1f and %.1f, depending "
            "on them",
            verdict.unparsed,
            replies,
            prompt_set,
            model,
            verdict.worst,
            verdict.best,
        )


def _rows(answers: Sequence[Answered], ratings: Sequence[Sequence[Rated | None]], asked: Asked) -> list[dict[str, Any]]:
    """Each rating with what it is of; those that were refused have no order, and no scores."""
    return [
        {
            "prompt": answered.prompt_index,
            "generation": answered.generation,
            "order": rated.order if rated else "refused",
            "reference": rated.reference if rated else None,
            "answer": rated.answer if rated else None,
            "request": digest,
        }
        for answered, of_answer, digests in zip(answers, ratings, asked, strict=True)
        for rated, digest in zip(of_answer, digests, strict=True)
    ]


def _track(work: AtWork, verdicts: Mapping[str, Mapping[str, Any]]) -> None:
    """Log the numbers of each verdict."""
    for name, verdict in verdicts.items():
        numbers = {key: value for key, value in verdict.items() if isinstance(value, int | float)}
        work.run.metrics({f"judge/{name}/{key}": value for key, value in numbers.items()})


def verdict_rows(found: Mapping[str, Any]) -> dict[str, str]:
    """What `judge_models` gives as rows of a table, one for each model and set."""
    rows = {
        f"{model} · {name}": verdict_in_words(verdict)
        for model, verdicts in found["models"].items()
        for name, verdict in verdicts.items()
        if isinstance(verdict, dict)
    }
    return rows | {"judge": found["judge"], "tokens spent": f"{found['tokens_spent']:,}"}


def verdict_in_words(verdict: Mapping[str, Any]) -> str:
    """Score, interval, what was counted, and the biases that were measured."""
    said = ["no score" if verdict["score"] is None else f"{verdict['score']:.1f}%"]
    if verdict["low"] is not None:
        said[0] += f" ({verdict['low']:.1f} to {verdict['high']:.1f})"
    said.append(f"{verdict['answers_counted']} of {verdict['answers']} answers")
    said += [f"{verdict[kind]} {kind}" for kind in ("unparsed", "refused", "empty", "cut") if verdict[kind]]
    if verdict["first_place_gain"] is not None:
        said.append(f"first place {verdict['first_place_gain']:+.2f} points")
    said.append(f"{verdict['answer_words']:.0f} words (references {verdict['reference_words']:.0f})")
    return " · ".join(said)
