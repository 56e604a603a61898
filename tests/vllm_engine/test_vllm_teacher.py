"""The vLLM teacher beside the Transformers teacher, in fp32: same windows, same keys, same draws.

One engine with chunked prefill, in a process of its own, for most tests; one after another inside this process for the
architectures.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm")

import torch
from made_models import ARCHITECTURES, VOCAB, make_model
from torch import Tensor

from rskd.config import PlannedTeacher, TeacherConfig
from rskd.errors import ConfigError
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import Order, SampledRows
from rskd.teacher.sampling import Drawn, Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher
from rskd.teacher.vllm_teacher import VllmTeacher, engine_args

pytestmark = pytest.mark.vllm

SEQ_LEN, CHUNK, END_OF_TEXT = 96, 64, 0
ORDER = Order(
    {"systematic": Sampling(), "random": Sampling("random", 50, seed=3), "top_k": Sampling("top_k", k=10)},
    ("label_logprob", "entropy", "top1"),
    VOCAB,
)


def config(model: Path, *, ranks: int = 1, **engine_args) -> PlannedTeacher:
    small = {"enforce_eager": True, "max_num_batched_tokens": CHUNK, "max_num_seqs": 16} | engine_args
    return PlannedTeacher(
        engine="vllm",
        model=str(model),
        dtype="float32",
        tensor_parallel=ranks,
        engine_args=small,
        batch_windows=8,
        workers=1,
        gpus_per_worker=0,
    )


def transformers_teacher(model: Path) -> TransformersTeacher:
    return TransformersTeacher.load(TeacherConfig(model=str(model), dtype="float32"), model_dir=str(model))


def windows(number: int) -> tuple[Tensor, Tensor]:
    """Ids [B, S+1], an end of text every 20 tokens or so, and keys [B, S]."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, VOCAB, (number, SEQ_LEN + 1), generator=generator)
    ends = torch.rand(input_ids.shape, generator=generator) < 0.05
    return input_ids.masked_fill(ends, END_OF_TEXT), position_keys(torch.arange(number), SEQ_LEN)


def share_of_equal_draws(one: Drawn, other: Drawn) -> float:
    def dense(drawn: Drawn) -> Tensor:
        return torch.zeros(len(drawn.ids), VOCAB).scatter_add_(1, drawn.ids, drawn.values.float())

    return float(torch.minimum(dense(one), dense(other)).sum() / dense(other).sum())


def assert_same(found: SampledRows, expected: SampledRows) -> None:
    for name, drawn in expected.drawn.items():
        assert share_of_equal_draws(found.drawn[name], drawn) > 0.99
    for name in ("label_logprob", "entropy"):
        torch.testing.assert_close(found.statistics[name], expected.statistics[name], atol=1e-3, rtol=1e-3)
    assert (found.statistics["top1"] == expected.statistics["top1"]).float().mean() > 0.99


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reference(model: Path) -> TransformersTeacher:
    return transformers_teacher(model)


@pytest.fixture(scope="module")
def teacher(model: Path) -> Iterator[VllmTeacher]:
    teacher = VllmTeacher.load(config(model), model_dir=str(model), seq_len=SEQ_LEN)
    yield teacher
    teacher.close()


def test_windows_longer_than_a_chunk(teacher: VllmTeacher, reference: TransformersTeacher):
    """They are also as long as the engine's longest sequence, and the head has more rows than there are ids."""
    input_ids, keys = windows(12)
    found = teacher.sample(input_ids, keys, ORDER)
    assert_same(found, reference.sample(input_ids, keys, ORDER))
    assert all(int(drawn.ids.max()) < VOCAB <= teacher.num_ids for drawn in found.drawn.values())


def test_isolated_documents_are_requests_of_mixed_lengths(teacher: VllmTeacher, reference: TransformersTeacher):
    input_ids, keys = windows(12)
    found = teacher.sample(input_ids, keys, ORDER, END_OF_TEXT)
    assert_same(found, reference.sample(input_ids, keys, ORDER, END_OF_TEXT))
    torch.testing.assert_close(
        teacher.hidden(input_ids[:, :-1], END_OF_TEXT),
        reference.hidden(input_ids[:, :-1], END_OF_TEXT),
        atol=1e-3,
        rtol=1e-3,
    )


def test_the_places_that_are_wanted_are_sampled_as_all_are(teacher: VllmTeacher, reference: TransformersTeacher):
    """Also where a chunk, a document or a window has none of them."""
    input_ids, keys = windows(12)
    wanted = torch.rand(keys.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    wanted[1, :70], wanted[2] = False, False
    places = wanted.flatten().nonzero()[:, 0]
    for isolating_id in (None, END_OF_TEXT):
        found = teacher.sample(input_ids, keys, ORDER, isolating_id, places)
        assert all(len(values) == len(places) for values in found.statistics.values())
        assert_same(found, reference.sample(input_ids, keys, ORDER, isolating_id, places))
    nothing = teacher.sample(input_ids, keys, ORDER, END_OF_TEXT, places[:0])
    assert all(len(drawn.ids) == 0 for drawn in nothing.drawn.values())


def test_draws_do_not_depend_on_the_batch(teacher: VllmTeacher):
    input_ids, keys = windows(200)
    together = teacher.sample(input_ids, keys, ORDER)
    alone = teacher.sample(input_ids[150:152], keys[150:152], ORDER)
    rows = slice(150 * SEQ_LEN, 152 * SEQ_LEN)
    for name, drawn in alone.drawn.items():
        of_these = Drawn(together.drawn[name].ids[rows], together.drawn[name].values[rows])
        assert share_of_equal_draws(drawn, of_these) > 0.99


def test_an_engine_that_dies_is_started_again(teacher: VllmTeacher):
    input_ids, keys = windows(4)
    before = teacher.sample(input_ids, keys, ORDER)
    for process in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
    again = teacher.sample(input_ids, keys, ORDER)
    assert share_of_equal_draws(again.drawn["systematic"], before.drawn["systematic"]) > 0.999


def test_two_ranks_share_a_model(model: Path, reference: TransformersTeacher):
    input_ids, keys = windows(6)
    teacher = VllmTeacher.load(config(model, ranks=2), model_dir=str(model), seq_len=SEQ_LEN)
    found = teacher.sample(input_ids, keys, ORDER)
    teacher.close()
    assert_same(found, reference.sample(input_ids, keys, ORDER))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_architectures(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    directory = make_model(architecture, tmp_path / architecture)
    input_ids, keys = windows(6)
    # First, since vLLM's own model of an architecture may replace that of Transformers in this process.
    expected = transformers_teacher(directory).sample(input_ids, keys, ORDER)
    teacher = VllmTeacher.load(config(directory), model_dir=str(directory), seq_len=SEQ_LEN)
    found = teacher.sample(input_ids, keys, ORDER)
    teacher.close()
    assert_same(found, expected)


def test_arguments_that_vllm_does_not_know(model: Path):
    for name, message in {"enforce_egaer": "no argument of vLLM", "runner": "set by rskd"}.items():
        with pytest.raises(ConfigError, match=message):
            engine_args(config(model, **{name: True}), model_dir=str(model), seq_len=SEQ_LEN)


def test_an_architecture_that_vllm_does_not_know(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(ConfigError, match="NoSuchForCausalLM"):
        engine_args(config(tmp_path), model_dir=str(tmp_path), seq_len=SEQ_LEN)
