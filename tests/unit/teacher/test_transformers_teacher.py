from pathlib import Path

import pytest
import torch
from made_models import make_model
from transformers import AutoModelForCausalLM

from rskd.config import TeacherConfig
from rskd.errors import ConfigError
from rskd.teacher.transformers_teacher import TransformersTeacher, describe_teacher

VOCAB = 384


def load(directory: Path, **options) -> TransformersTeacher:
    config = TeacherConfig(model=str(directory), **{"dtype": "float32", **options})
    return TransformersTeacher.load(config, model_dir=str(directory))


@pytest.fixture(scope="module")
def teacher(tiny_teacher_dir: Path) -> TransformersTeacher:
    return load(tiny_teacher_dir)


def test_head_of_hidden_is_the_models_logits(teacher: TransformersTeacher, tiny_teacher_dir: Path):
    input_ids = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(0))
    expected = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)(input_ids).logits
    torch.testing.assert_close(teacher.head.logits(teacher.hidden(input_ids)), expected)
    logits = teacher.logits(input_ids, vocab_size=VOCAB)
    torch.testing.assert_close(logits[..., :VOCAB], expected[..., :VOCAB])
    assert (logits[..., VOCAB:] == -torch.inf).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_isolated_documents_do_not_see_each_other(tiny_teacher_dir: Path, attention: str):
    teacher = load(tiny_teacher_dir, attention=attention)
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(1, VOCAB, (2, 7), generator=generator)
    second = torch.randint(1, VOCAB, (2, 5), generator=generator)
    end = torch.zeros(2, 1, dtype=torch.int64)
    packed = torch.cat([first, end, second], dim=1)
    isolated = teacher.hidden(packed, end_of_text_id=0)
    torch.testing.assert_close(isolated[:, 8:], teacher.hidden(second))
    torch.testing.assert_close(isolated[:, :8], teacher.hidden(packed)[:, :8])
    assert not torch.allclose(isolated[:, 8:], teacher.hidden(packed)[:, 8:], atol=1e-2)


def test_weights_are_frozen_in_the_dtype_asked_for(tiny_teacher_dir: Path):
    teacher = load(tiny_teacher_dir, dtype="bfloat16")
    assert teacher.head.weight.dtype == torch.bfloat16
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_pickled_weights_are_refused(tiny_teacher_dir: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((tiny_teacher_dir / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"holds no model.safetensors") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_description_for_the_manifest():
    described = describe_teacher(TeacherConfig(model="org/model", revision="main"), "abc")
    assert described | {"engine_version": ""} == {
        "model": "org/model",
        "revision": "main",
        "fingerprint": "abc",
        "dtype": "bfloat16",
        "engine": "transformers",
        "engine_version": "",
    }


def test_description_of_a_teacher_that_vllm_runs():
    config = TeacherConfig(engine="vllm", model="org/model", quantization="fp8", engine_args={"enforce_eager": True})
    assert describe_teacher(config, "abc", vllm_version="0.32.0") == {
        "model": "org/model",
        "revision": None,
        "fingerprint": "abc",
        "dtype": "bfloat16",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "quantization": "fp8",
        "engine_settings": {"tensor_parallel": 1, "enforce_eager": True},
    }


def test_attention_keeps_its_softcap(tmp_path: Path):
    make_model("gemma2", tmp_path)
    input_ids = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(tmp_path).hidden(input_ids), load(tmp_path, attention="eager").hidden(input_ids))
