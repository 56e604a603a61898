"""FlashAttention on the device, where it is installed, beside sdpa: hidden states, documents isolated or not."""

from pathlib import Path

import pytest
import torch
from devices import DEVICE
from made_models import VOCAB, make_model

from rskd.config import TeacherConfig
from rskd.models.causal_lm import FLASH_ATTENTION, TOLERANCE, relative_error
from rskd.teacher.transformers_teacher import TransformersTeacher

pytestmark = pytest.mark.gpu
END_OF_TEXT = 0


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model_dir(request, tmp_path_factory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("isolating_id", [None, END_OF_TEXT])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hidden_states_are_those_of_sdpa_but_for_rounding(model_dir, dtype, isolating_id):
    ids = torch.randint(1, VOCAB, (3, 120), generator=torch.Generator().manual_seed(0))
    ids[:, 20::31] = END_OF_TEXT
    hidden = {}
    for attention in (FLASH_ATTENTION, "sdpa"):
        config = TeacherConfig(model=str(model_dir), dtype=dtype, attention=attention)  # pyright: ignore[reportArgumentType]
        teacher = TransformersTeacher.load(config, model_dir=str(model_dir), device=DEVICE, isolated=True)
        assert teacher.model.config._attn_implementation == attention
        hidden[attention] = teacher.hidden(ids, isolating_id)
    assert relative_error(hidden[FLASH_ATTENTION], hidden["sdpa"]) <= 2 * TOLERANCE[getattr(torch, dtype)]


def test_auto_takes_it_in_half_precision(model_dir):
    config = TeacherConfig(model=str(model_dir), dtype="bfloat16")
    teacher = TransformersTeacher.load(config, model_dir=str(model_dir), device=DEVICE)
    assert teacher.model.config._attn_implementation == FLASH_ATTENTION
