"""How many unique tokens sampling rounds draw, found by running the teacher on a few windows.

first windows ─► teacher ─► rounds against unique tokens ─► a power law, kept in <home>/unique_tokens.json and .html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rskd import records
from rskd.config import DistillConfig
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.errors import ConfigError
from rskd.evaluation.unique_tokens import PowerLaw, UniqueTokens, rounds_against_unique_tokens
from rskd.lineage.corpus import open_corpus
from rskd.lineage.inputs import Inputs, inputs_first
from rskd.pages.figures import unique_tokens_by_rounds
from rskd.pages.parts import definitions, figure_html, html_page, section
from rskd.progress import progress_bar
from rskd.provenance import provenance
from rskd.storage import Store
from rskd.teacher.transformers_teacher import TransformersTeacher

PROBE = "unique_tokens"  # .json and .html in the distillation's folder


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


def probed_laws(config: DistillConfig) -> dict[str, PowerLaw] | None:
    """The laws that `probe` found for this teacher and corpus, or None."""
    found = records.read(Store(config.home), f"{PROBE}.json")
    if found is None or found["of"] != _probe_inputs(config):
        return None
    return {name: PowerLaw(**method["law"]) for name, method in found["methods"].items()}
