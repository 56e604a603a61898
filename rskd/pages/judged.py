"""Answers on the report: how a judge rates them, and a few of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rskd.evaluation.answers import Answered
from rskd.evaluation.generation import Answer
from rskd.pages.parts import section, table

SHOWN = 5  # prompts of each set
LONGEST = 800  # characters of a text


@dataclass(frozen=True)
class Judged:
    """What the answers to the sets of prompts came to."""

    answers: Mapping[str, Mapping[str, Sequence[Answered]]] = field(default_factory=dict)  # by set and model; the first
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by model, of `read_judgements`


def judged_sections(judged: Judged) -> list[str]:
    """Sections of the page; none where nothing was generated."""
    sections = []
    if judged.verdicts:
        warnings = dict.fromkeys(one for verdict in judged.verdicts.values() for one in verdict["warnings"])
        judges = dict.fromkeys(verdict["judge"]["model"] for verdict in judged.verdicts.values())
        note = escape(f"By {', '.join(judges)}. {_NOTE} {' '.join(warnings)}")
        sections.append(section("Answers, rated", _verdicts(judged.verdicts), note))
    sections += [
        section(
            f"Answers to {escape(name)}",
            _side_by_side(of_set),
            f"The first answer to each of the first {SHOWN} prompts.",
        )
        for name, of_set in judged.answers.items()
    ]
    return sections


def _verdicts(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["prompts", "model", "score, %", "95%", "answers counted", "no rating", "first place, points", "words"]
    rows = [
        [
            escape(name),
            escape(model),
            _number(verdict["score"]),
            "–" if verdict["low"] is None else f"{verdict['low']:.1f} to {verdict['high']:.1f}",
            f"{verdict['answers_counted']:,} of {verdict['answers']:,}",
            f"{verdict['unparsed'] + verdict['refused']:,}",
            _number(verdict["first_place_gain"], "+.2f"),
            f"{verdict['answer_words']:.0f} ({verdict['reference_words']:.0f})",
        ]
        for model, found in verdicts.items()
        for name, verdict in found["sets"].items()
    ]
    rows.sort(key=lambda row: row[0])
    return table(head, rows, num_text=2)


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)


def _side_by_side(of_set: Mapping[str, Sequence[Answered]]) -> str:
    """A row for each prompt: the question, the reference, and what each model said."""
    rows = []
    for answers in zip(*of_set.values()):
        prompt = answers[0].prompt
        rows.append([_text(prompt.question), _text(prompt.reference), *(_answer(one.answer) for one in answers)])
    head = ["prompt", "reference", *map(escape, of_set)]
    return table(head, rows, num_text=len(head))


def _answer(answer: Answer) -> str:
    """What a model said, and where it did not end by itself."""
    notes = {"length": f"stopped after {answer.num_tokens:,} tokens", "no room": "no room for an answer"}
    return _text(answer.text, notes.get(answer.finish, "" if answer.text else "an empty answer"))


def _text(text: str, note: str = "") -> str:
    """A text with its line breaks, and below it a note; one that is too long is cut, and its length said."""
    notes = [note] if note else []
    if len(text) > LONGEST:
        text, notes = f"{text[:LONGEST]}…", [f"the first {LONGEST:,} of {len(text):,} characters", *notes]
    small = f"<small>{'; '.join(notes)}</small>" if notes else ""
    return f'<div style="white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12em">{escape(text)}{small}</div>'


_NOTE = (
    "The total of the answers' points over that of the references', each rated from 1 to 10 in one request, with a "
    "bootstrap interval over prompts. First place: points that a text gains by standing first. Words: mean length of "
    "the answers, and of the references."
)
