"""A teacher on the device beside the same on the CPU: hidden states, isolated documents, draws, statistics."""

from pathlib import Path

import pytest
import torch
from devices import DEVICE
from made_models import VOCAB, make_model

from rskd.config import TeacherConfig
from rskd.models.causal_lm import TOLERANCE, relative_error
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import Order
from rskd.teacher.sampling import Sampling
from rskd.teacher.transformers_teacher import TransformersTeacher

pytestmark = pytest.mark.gpu
END_OF_TEXT = 0
ROWS, SEQ_LEN = 4, 96
ORDER = Order(
    {"fine": Sampling(num_samples=50), "random": Sampling("random"), "top": Sampling("top_k", k=9)},
    ("label_logprob", "entropy", "top1"),
    VOCAB,
)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma2"])
def model_dir(request, tmp_path_factory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


def load(model_dir: Path, dtype: str, device: torch.device | str = DEVICE) -> TransformersTeacher:
    config = TeacherConfig(model=str(model_dir), dtype=dtype)  # pyright: ignore[reportArgumentType]
    return TransformersTeacher.load(config, model_dir=str(model_dir), device=device, isolated=True)


def windows() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T+1] of a few documents in each window, and keys [B, T]."""
    ids = torch.randint(1, VOCAB, (ROWS, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    ids[:, 20::31] = END_OF_TEXT
    return ids, position_keys(torch.arange(ROWS), SEQ_LEN)


@pytest.mark.parametrize("isolating_id", [None, END_OF_TEXT])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_the_cpus_in_float32_but_for_rounding(model_dir, dtype, isolating_id):
    ids, _ = windows()
    wanted = load(model_dir, "float32", "cpu").hidden(ids[:, :-1], isolating_id)
    found = load(model_dir, dtype).hidden(ids[:, :-1], isolating_id).cpu()
    error = relative_error(found, wanted)
    if dtype == "float32":
        assert error <= TOLERANCE[torch.float32]
        return
    naive = relative_error(load(model_dir, dtype, "cpu").hidden(ids[:, :-1], isolating_id), wanted)
    assert error <= 2 * naive + TOLERANCE[torch.bfloat16]


def test_draws_and_statistics_are_the_cpus_but_for_rounding(model_dir):
    ids, keys = windows()
    found, wanted = (load(model_dir, "float32", device).sample(ids, keys, ORDER) for device in (DEVICE, "cpu"))
    for name, sampling in ORDER.samplings.items():
        mine, theirs = (rows.drawn[name].targets(sampling).to("cpu").to_dense(VOCAB) for rows in (found, wanted))
        assert torch.minimum(mine, theirs).sum() > 0.995 * theirs.sum()
    for name in ("label_logprob", "entropy"):
        torch.testing.assert_close(found.statistics[name].cpu(), wanted.statistics[name], rtol=1e-3, atol=1e-3)
    assert (found.statistics["top1"].cpu() == wanted.statistics["top1"]).float().mean() > 0.99


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_batch_gives_the_same_bits(model_dir, dtype):
    teacher, (ids, keys) = load(model_dir, dtype), windows()
    first, second = (teacher.sample(ids, keys, ORDER, END_OF_TEXT) for _ in range(2))
    for name in ORDER.samplings:
        assert torch.equal(first.drawn[name].ids, second.drawn[name].ids)
        assert torch.equal(first.drawn[name].values, second.drawn[name].values)


def test_some_places_have_the_targets_that_they_have_among_all(model_dir):
    teacher, (ids, keys) = load(model_dir, "float32"), windows()
    places = torch.arange(0, ROWS * SEQ_LEN, 3)
    some = teacher.sample(ids, keys, ORDER, END_OF_TEXT, places).drawn["fine"].targets(ORDER.samplings["fine"])
    every = teacher.sample(ids, keys, ORDER, END_OF_TEXT).drawn["fine"].targets(ORDER.samplings["fine"])
    overlap = torch.minimum(some.to_dense(VOCAB), every.to_dense(VOCAB)[places.to(DEVICE)]).sum() / len(places)
    assert overlap > 0.995
