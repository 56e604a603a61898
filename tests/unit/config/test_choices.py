"""The choices that the configuration offers are those that the code has."""

from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rskd.cache.layout import Layout
from rskd.cli import audit as audit_command
from rskd.config import ObjectiveConfig, SamplingConfig, SourceConfig, StudentConfig, TeacherConfig, TrainConfig
from rskd.config.promotion import FloorsConfig, ImprovementConfig, MarginsConfig
from rskd.corpus.readers import READERS
from rskd.evaluation.audit import audit_cache
from rskd.evaluation.window_values import METRICS
from rskd.reproduction.command import as_app
from rskd.student.architecture import PRESETS
from rskd.student.divergence import Divergence
from rskd.student.objective import Impl, Residual
from rskd.teacher.sampling import Method
from rskd.teacher_statistics import STATISTICS, StatisticName


def choices(annotation: Any) -> set[str]:
    """The strings of every Literal in a type."""
    parts = get_args(annotation)
    return {part for part in parts if isinstance(part, str)}.union(*map(choices, parts))


def of(section: Any, field: str) -> set[str]:
    found = choices(section.model_fields[field].annotation)
    assert found
    return found


def _reproduction() -> dict[str, Any]:
    """The types of the options of a reproduction."""
    [command] = as_app(lambda *_: {}).registered_commands
    assert command.callback is not None
    return get_type_hints(command.callback)


@pytest.mark.parametrize(
    ("section", "field", "implemented"),
    [
        (SamplingConfig, "method", choices(Method)),
        (SamplingConfig, "statistics", choices(StatisticName)),
        (SamplingConfig, "statistics", set(STATISTICS)),
        (ObjectiveConfig, "residual", choices(Residual)),
        (ObjectiveConfig, "divergence", choices(Divergence)),
        (ObjectiveConfig, "impl", choices(Impl)),
        (StudentConfig, "preset", set(PRESETS)),
        (SourceConfig, "kind", set(READERS) | {"hf"}),
        (TeacherConfig, "engine", choices(get_type_hints(audit_cache)["engine"])),
        (TeacherConfig, "engine", choices(get_type_hints(audit_command)["engine"])),
        (SourceConfig, "kind", choices(_reproduction()["kind"]) | {"python_docs"}),
    ],
)
def test_the_config_offers_what_is_implemented(section: Any, field: str, implemented: set[str]) -> None:
    assert of(section, field) == implemented


def test_the_gate_knows_every_metric() -> None:
    assert of(ImprovementConfig, "metric") == set(METRICS)
    assert set(MarginsConfig.model_fields) == set(FloorsConfig.model_fields) == set(METRICS)


def test_every_precision_is_one_of_torch() -> None:
    for name in of(TeacherConfig, "dtype") | of(TrainConfig, "precision"):
        assert isinstance(getattr(torch, name), torch.dtype)


def test_every_attention_is_one_of_transformers() -> None:
    known = set(ALL_ATTENTION_FUNCTIONS.valid_keys()) | {"eager", "auto"}
    assert of(TeacherConfig, "attention") == of(StudentConfig, "attention")
    assert of(TeacherConfig, "attention") <= known


@pytest.mark.parametrize("name", sorted(of(SamplingConfig, "layout")))
def test_every_layout_is_built(name: str) -> None:
    sampling = SamplingConfig.model_validate({"layout": name}).model_dump()
    layout = Layout.of({"sampling": sampling, "tokenizer": {"most_frequent": [1, 0], "vocab_size": 3}})
    assert (layout.ranked is not None) == (name == "compact")
