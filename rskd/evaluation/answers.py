"""Answers on storage: Parquet parts of a few prompts each, whose names say what they were made from.

    <name>/answers/<model>/<prompt set>/part-00000-<first 12 hex of the digest of its recipe>.parquet

    prompt int64, generation int32, messages list<struct<role, content>>, reference string, answer string,
    num_tokens int32, finish string (stop, length, no room)

A recipe is the model, the settings and the prompts of that part. So a run that was stopped goes on with the parts that
are missing, and what was made otherwise is not taken for what is wanted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rskd import records
from rskd.errors import CorruptPartError, MissingOutputError
from rskd.evaluation.generation import Answer
from rskd.evaluation.prompts import Prompt
from rskd.storage import Store

PROMPTS_PER_PART = 16
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("generation", pa.int32()),
        ("messages", pa.list_(_MESSAGE)),
        ("reference", pa.string()),
        ("answer", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish", pa.string()),
    ]
)


@dataclass(frozen=True)
class AnswerPart:
    """A run of prompts of a set, whose answers are one file."""

    file: str  # below the model's folder
    first_prompt: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Answered:
    """One answer to one prompt of a set."""

    prompt_index: int
    generation: int
    prompt: Prompt
    answer: Answer


def answer_parts(prompt_set: str, prompts: Sequence[Prompt], recipe: Mapping[str, Any]) -> list[AnswerPart]:
    """The parts of a set's answers; `recipe` is all else that they depend on."""
    parts = []
    for first in range(0, len(prompts), PROMPTS_PER_PART):
        asked = tuple(prompts[first : first + PROMPTS_PER_PART])
        made_from = records.digest({"recipe": dict(recipe), "prompts": [asdict(prompt) for prompt in asked]})
        name = f"part-{first // PROMPTS_PER_PART:05d}-{made_from[:12]}.parquet"
        parts.append(AnswerPart(f"{prompt_set}/{name}", first, asked))
    return parts


def missing_parts(store: Store, parts: Sequence[AnswerPart]) -> list[AnswerPart]:
    """Those that are not in `store`, the folder of a model's answers."""
    there = store.sizes(recursive=True)
    return [part for part in parts if part.file not in there]


def remove_other_parts(store: Store, prompt_set: str, parts: Sequence[AnswerPart]) -> None:
    """Remove the files of a set that are none of `parts`: answers to other prompts, or of another model."""
    wanted = {part.file for part in parts}
    for name in store.list(prompt_set):
        if f"{prompt_set}/{name}" not in wanted:
            store.remove(f"{prompt_set}/{name}")


def write_answers(store: Store, part: AnswerPart, answers: Sequence[Answer]) -> int:
    """Commit the answers of a part, those to one prompt side by side; the bytes of the file."""
    generations = len(answers) // len(part.prompts)
    rows = [
        {
            "prompt": part.first_prompt + index,
            "generation": generation,
            "messages": [{"role": one["role"], "content": one["content"]} for one in prompt.messages],
            "reference": prompt.reference,
            "answer": answer.text,
            "num_tokens": answer.num_tokens,
            "finish": answer.finish,
        }
        for index, prompt in enumerate(part.prompts)
        for generation, answer in enumerate(answers[index * generations : (index + 1) * generations])
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink, compression="zstd", write_page_checksum=True)
    store.create(part.file, sink.getvalue())
    return sink.getbuffer().nbytes


def read_answers(store: Store, parts: Sequence[AnswerPart]) -> Iterator[Answered]:
    """The answers of `parts`, in order.

    Raises MissingOutputError for a part that is not there, CorruptPartError for one that was damaged.
    """
    missing = missing_parts(store, parts)
    if missing:
        raise MissingOutputError(f"{store.uri}/{missing[0].file} is missing: run rskd generate")
    for part in parts:
        try:
            rows = pq.read_table(io.BytesIO(store.read(part.file)), page_checksum_verification=True).to_pylist()
        except (pa.ArrowException, OSError):
            raise CorruptPartError(
                f"{store.uri}/{part.file} is not what was written: remove it and run rskd generate"
            ) from None
        for row in rows:
            prompt = part.prompts[row["prompt"] - part.first_prompt]
            answer = Answer(row["answer"], row["num_tokens"], row["finish"])
            yield Answered(row["prompt"], row["generation"], prompt, answer)


def first_answers(store: Store, parts: Sequence[AnswerPart], num_prompts: int) -> list[Answered]:
    """The first answer to each of the first prompts of a set."""
    found = read_answers(store, parts[: -(-num_prompts // PROMPTS_PER_PART)])
    return [answered for answered in found if answered.generation == 0][:num_prompts]
