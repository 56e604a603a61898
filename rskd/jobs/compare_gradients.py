"""How near is the gradient of each sampling to full KD's, for a teacher and a trained student (paper, Table 3)?

    training windows ─► teacher: hidden states, kept on disk ─► logits again, beside the student ─► gradient_similarity
                                                             <home>/gradient_similarity/<student>.json and .html ◄─┘

One model is loaded at a time. Ray has no part in it: a GPU is used where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rskd import records
from rskd.config import DistillConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import ConfigError
from rskd.evaluation.gradient_similarity import (
    MICRO_BATCH,
    Similarity,
    at_equal_unique_tokens,
    gradient_similarity,
)
from rskd.evaluation.kept_states import KeptStates, kept_states
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.lineage.student import check_student
from rskd.models.digests import whole_copy
from rskd.models.load import load_model
from rskd.models.memory import release_memory
from rskd.models.output_head import OutputHead
from rskd.pages.figures import gradient_angles
from rskd.pages.parts import definitions, figure_html, html_page, section, table
from rskd.provenance import provenance
from rskd.rng import permutation
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher

RECORDS_FOLDER = "gradient_similarity"
NUM_GROUPS = 8  # of the jackknife: twice as many gradients of the student are held in memory
PAPER = {"top_k 12": "58°, 2.4", "top_k 50": "48°, 1.8", "top_k 300": "30°, 1.3"}  # angle, norm ratio
GRADIENTS_HEAD = ("sampling", "unique tokens", "angle, °", "norm ratio", "paper's")
COMPARISON_HEAD = ("sampling", "unique tokens", "angle, °", "random's, °", "ratio")
GRADIENTS_NOTE = (
    "Angle between the gradient of the parameters and that of full KD, and ratio of their norms; ± one standard error, "
    "jackknife over groups of windows. The noise of an unbiased method cancels over a batch as the gradients of single "
    "windows do, bias does not: so compare at equal positions. The paper's batch had about a million; there random "
    "sampling with 12 unique tokens had 4° and a ratio of 1.0."
)


def compare_gradients(config: DistillConfig, student: str, *, windows: int) -> dict[str, Any]:
    """Measure one student over `windows` windows drawn from the training split; write record and page.

    Raises ConfigError for a student or number of windows that is not there, MissingOutputError for what has to be made
    first.
    """
    spec = config.student_spec(student)
    inputs = Inputs(config)
    uri = config.student_uri(student)
    with inputs_first(config):
        corpus = open_corpus(inputs, "train")
        if corpus.manifest.chat is not None:
            raise ConfigError(f"{corpus.uri} has conversations; gradients are compared on texts: set corpus.kind=text")
        batches = _batches(corpus, windows)
        check_student(inputs, student)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = corpus.manifest
    vocab_size = manifest.tokenizer["vocab_size"]
    end_of_text_id = manifest.tokenizer["end_of_text_id"] if manifest.isolate_documents else None
    batches = [batch.to(device) for batch in batches]
    with kept_states() as kept:
        head = _read_by_teacher(config, inputs.teacher_dir, batches, kept, end_of_text_id)
        release_memory()
        with whole_copy(Store(uri)) as (directory, _):
            model = load_model(str(directory), spec.student.attention, device=device)
        similarities = gradient_similarity(
            model,
            _logits_in_order(kept, head, vocab_size),
            batches,
            vocab_size=vocab_size,
            end_of_text_id=end_of_text_id,
        )
    found = {
        "student": student,
        "teacher": config.teacher.model,
        "tokens": sum(batch[:, 1:].numel() for batch in batches),
        "samplings": {row.name: row.to_dict() for row in similarities},
        "systematic_beside_random": at_equal_unique_tokens(similarities),
        "provenance": provenance(),
    }
    folder = Store(config.home).child(RECORDS_FOLDER)
    records.write(folder, f"{student}.json", found)
    folder.write(f"{student}.html", _page(config.name, found, similarities).encode())
    return found | {"page": f"{folder.uri}/{student}.html"}


def _read_by_teacher(
    config: DistillConfig, teacher_dir: str, batches: Sequence[Tensor], kept: KeptStates, end_of_text_id: int | None
) -> OutputHead:
    """Keep what the teacher makes of all windows, in batches as the student will read them; its output head."""
    teacher = TransformersTeacher.load(config.teacher, model_dir=teacher_dir, device=batches[0].device)
    for batch in batches:
        for windows in batch.split(MICRO_BATCH):
            kept.append(teacher.hidden(windows[:, :-1], end_of_text_id).flatten(0, 1))
    return teacher.head


def _logits_in_order(kept: KeptStates, head: OutputHead, vocab_size: int) -> Callable[[Tensor], Tensor]:
    """The teacher's logits [b, T, V] of windows that are asked for in the order in which they were kept."""
    num_read = 0

    @torch.no_grad()
    def logits(input_ids: Tensor) -> Tensor:
        nonlocal num_read
        hidden = kept.read(num_read, input_ids.numel()).to(head.weight.device)
        num_read += len(hidden)
        return head.logits(hidden.unflatten(0, input_ids.shape), vocab_size)

    return logits


def _batches(corpus: PackedCorpus, windows: int) -> Sequence[Tensor]:
    """NUM_GROUPS groups of windows int64 [B, S+1], drawn without replacement; a remainder is dropped."""
    if windows > corpus.num_rows:
        raise ConfigError(f"--windows {windows} exceeds the {corpus.num_rows} windows of {corpus.uri}: lower it")
    rows = permutation(corpus.num_rows, seed=0)[: windows // NUM_GROUPS * NUM_GROUPS]
    return torch.from_numpy(corpus.read_rows(rows.numpy()).input_ids).long().chunk(NUM_GROUPS)


def gradient_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Of a record: the texts of a row for each sampling, under GRADIENTS_HEAD."""
    return [
        [
            name,
            f"{row['unique_tokens']:.1f}",
            f"{row['angle']:.2f} ± {row['standard_error']['angle']:.2f}",
            f"{row['norm_ratio']:.3f} ± {row['standard_error']['norm_ratio']:.3f}",
            PAPER.get(name, "–"),
        ]
        for name, row in sorted(found["samplings"].items(), key=_by_method_and_size)
    ]


def _by_method_and_size(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, str, float]:
    name, row = item
    method = name.split()[0]
    return method != "top_k", method, row["unique_tokens"]


def comparison_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Of a record: systematic beside random at equal unique tokens, under COMPARISON_HEAD."""
    return [
        [
            f"systematic {row['num_samples']}",
            f"{row['unique_tokens']:.1f}",
            f"{row['angle']:.2f}",
            f"{row['random_angle']:.2f}",
            f"{row['ratio']:.3f} ± {row['standard_error']:.3f}",
        ]
        for row in found["systematic_beside_random"]
    ]


def _page(name: str, found: dict[str, Any], similarities: Sequence[Similarity]) -> str:
    facts = {"Teacher": found["teacher"], "Student": found["student"], "Positions": f"{found['tokens']:,}"}
    sections = [
        section("Setting", definitions(facts | found["provenance"])),
        section("Gradients beside full KD", table(GRADIENTS_HEAD, gradient_rows(found), num_text=1), GRADIENTS_NOTE),
        section(
            "Systematic beside random at equal unique tokens",
            table(COMPARISON_HEAD, comparison_rows(found), num_text=1),
            "Random's angle is interpolated between its samplings, on logarithmic axes. Below 1: systematic is nearer.",
        ),
        section("Figure", figure_html(gradient_angles(similarities))),
    ]
    return html_page("gradient similarity", name, sections)
