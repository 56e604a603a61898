"""Students are built as the config says: shapes of the presets, layers of the teacher, the same weights every time."""

from pathlib import Path

import pytest
import torch
from made_models import make_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rskd.config import StudentConfig
from rskd.errors import ConfigError
from rskd.student.architecture import PRESETS, build_student, student_architecture

FIT = {"vocab_size": 384, "seq_len": 32, "end_of_text_id": 0}


@pytest.mark.parametrize(("preset", "millions"), [("100m", 106.2), ("300m", 308.3), ("1b", 973.1), ("3b", 2818.7)])
def test_a_preset_has_the_size_in_its_name_and_the_tokenizers_vocabulary(preset: str, millions: float):
    config = student_architecture(StudentConfig(preset=preset), teacher_dir="unused", **FIT)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert model.get_input_embeddings().weight.shape == (384, PRESETS[preset]["hidden_size"])
    assert sum(p.numel() for p in model.model.layers.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_teacher_layers_copies_layers_embeddings_norm_and_head(tmp_path: Path):
    teacher = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            layer_types=["full_attention", "sliding_attention"] * 2 + ["full_attention"],
            use_sliding_window=True,
            sliding_window=8,
            tie_word_embeddings=False,
        )
    )
    teacher.save_pretrained(tmp_path)
    student = build_student(
        StudentConfig(init="teacher_layers", num_layers=3), teacher_dir=str(tmp_path), seed=0, **FIT
    )
    for new, old in enumerate([0, 2, 4]):
        copied, original = student.model.layers[new].state_dict(), teacher.model.layers[old].state_dict()
        assert all(torch.equal(copied[name], original[name]) for name in original)
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
    assert torch.equal(student.model.norm.weight, teacher.model.norm.weight)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert student.config.layer_types == ["full_attention"] * 3


@pytest.mark.parametrize("changes", [{"init": "checkpoint"}, {"init": "random"}])
def test_a_student_with_an_attention_soft_cap_keeps_it(tmp_path: Path, changes: dict):
    make_model("gemma2", tmp_path)  # torch's sdpa knows no soft-cap
    config = StudentConfig(model=str(tmp_path), attention="sdpa", **changes)
    student = build_student(config, teacher_dir="unused", vocab_size=100, seq_len=32, end_of_text_id=0, seed=0)
    assert student.config._attn_implementation == "eager"


def test_teacher_layers_keeps_tied_weights_tied(tiny_teacher_dir: Path):
    student = build_student(
        StudentConfig(init="teacher_layers", num_layers=1), teacher_dir=str(tiny_teacher_dir), seed=0, **FIT
    )
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    assert torch.equal(student.get_output_embeddings().weight, teacher.get_output_embeddings().weight)


def test_random_weights_depend_on_the_seed_alone(tiny_teacher_dir: Path):
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # the global generator stands elsewhere each time
        student = build_student(StudentConfig(), teacher_dir=str(tiny_teacher_dir), seed=seed, **FIT)
        return torch.cat([p.flatten() for p in student.parameters()])

    before = torch.random.get_rng_state()
    first = weights(3)
    torch.random.set_rng_state(before)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))
    assert first.dtype == torch.float32


def test_checkpoint_starts_from_its_weights(tiny_teacher_dir: Path):
    student = build_student(
        StudentConfig(model=str(tiny_teacher_dir), init="checkpoint"), teacher_dir="unused", seed=0, **FIT
    )
    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))


def test_what_does_not_fit_is_refused_in_one_line(tiny_teacher_dir: Path, tmp_path: Path):
    directory = str(tiny_teacher_dir)

    def refused(config: StudentConfig, **changed) -> str:
        with pytest.raises(ConfigError) as error:
            student_architecture(config, teacher_dir=directory, **(FIT | changed))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "has 400 ids but the tokenizer has 401" in refused(StudentConfig(), vocab_size=401)
    assert "takes 256 positions but corpus.seq_len=257" in refused(StudentConfig(), seq_len=257)
    assert "exceeds the teacher's 2 layers" in refused(StudentConfig(init="teacher_layers", num_layers=3))
    assert "nowhere cannot be loaded" in refused(StudentConfig(model=str(tmp_path / "nowhere")))
    assert "pip install 'rskd[gpu]'" in refused(StudentConfig(attention="flash_attention_2"))


def test_a_directory_with_a_config_alone_gives_a_random_student(tmp_path: Path):
    LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path)
    config = StudentConfig(model=str(tmp_path))
    assert build_student(config, teacher_dir="unused", seed=0, **FIT).config.hidden_size == 16
    with pytest.raises(ConfigError, match=r"holds no model.safetensors"):
        build_student(config.model_copy(update={"init": "checkpoint"}), teacher_dir="unused", seed=0, **FIT)


@pytest.mark.parametrize("section", [None, "student.model"])
def test_a_quantised_models_architecture_gives_a_plain_student(tmp_path: Path, section: str | None):
    """Its export would be read as quantised weights, which it does not hold."""
    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    config.save_pretrained(tmp_path / "quantised")
    name = str(tmp_path / "quantised")
    chosen = StudentConfig() if section is None else StudentConfig(model=name)
    student = build_student(chosen, teacher_dir=name, seed=0, **FIT)
    student.save_pretrained(tmp_path / "student")
    assert "quantization_config" not in (tmp_path / "student" / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters()))
    for init in ({"init": "teacher_layers", "num_layers": 1}, {"init": "checkpoint", "model": name}):
        with pytest.raises(ConfigError, match=r"which are quantised \(gptq\): name a model that is not"):
            student_architecture(StudentConfig(**init), teacher_dir=name, **FIT)
