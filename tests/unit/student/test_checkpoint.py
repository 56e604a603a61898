"""A checkpoint is an ordinary Hugging Face directory, and holds what a bit-identical continuation needs."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rskd.config import TrainConfig
from rskd.errors import ConfigError
from rskd.models.load import load_model
from rskd.student.checkpoint import CheckpointWriter, Progress, export_checkpoint, load_progress
from rskd.student.shards import load_optimizer
from rskd.student.trainer import make_optimizer

PROGRESS = Progress(2, {"epoch": 0, "step": 2})
LOG = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.1 + 0.2}]


@pytest.fixture
def student(tiny_teacher_dir: Path):
    return load_model(str(tiny_teacher_dir), "sdpa").eval()


def _steps(student, optimizer, count: int) -> None:
    for step in range(count):
        ids = torch.arange(step, step + 8)[None]
        student(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _save(directory: Path, student, optimizer, tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    CheckpointWriter(student, tokenizer, optimizer).write(directory, PROGRESS, LOG)


def test_training_goes_on_bit_identically(student, tiny_tokenizer_dir: Path, tmp_path: Path):
    config = TrainConfig()
    optimizer = make_optimizer(student, config)
    _steps(student, optimizer, 2)
    _save(tmp_path, student, optimizer, tiny_tokenizer_dir)
    _steps(student, optimizer, 2)

    restored = load_model(str(tmp_path), "sdpa").eval()
    restored_optimizer = make_optimizer(restored, config)
    load_optimizer(tmp_path, restored_optimizer)
    _steps(restored, restored_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), restored.parameters()))
    assert load_progress(tmp_path) == (PROGRESS, LOG)


def test_nothing_is_pickled(student, tiny_tokenizer_dir: Path, tmp_path: Path):
    optimizer = make_optimizer(student, TrainConfig())
    _steps(student, optimizer, 1)
    _save(tmp_path, student, optimizer, tiny_tokenizer_dir)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".jsonl", ".safetensors"}


def test_export_copies_what_links_point_to(student, tiny_tokenizer_dir: Path, tmp_path: Path):
    _save(tmp_path / "blobs", student, make_optimizer(student, TrainConfig()), tiny_tokenizer_dir)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    export_checkpoint(tmp_path / "snapshot", tmp_path / "exported")
    assert not any(file.is_symlink() for file in (tmp_path / "exported").iterdir())
    assert (tmp_path / "exported" / "config.json").read_bytes() == (tmp_path / "blobs" / "config.json").read_bytes()
    (tmp_path / "blobs" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json of checkpoint .* is a link whose target is missing"):
        export_checkpoint(tmp_path / "snapshot", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_export_is_a_directory_that_transformers_loads(student, tiny_tokenizer_dir: Path, tmp_path: Path):
    _save(tmp_path / "checkpoint", student, make_optimizer(student, TrainConfig()), tiny_tokenizer_dir)
    exported = tmp_path / "deep" / "student"
    assert export_checkpoint(tmp_path / "checkpoint", exported) == str(exported)
    assert not {"optimizer.safetensors", "trainer.json", "training_log.jsonl"} & {
        path.name for path in exported.iterdir()
    }

    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, student(ids).logits)
    assert len(AutoTokenizer.from_pretrained(exported)) == 384


def test_export_refuses_what_it_cannot_do(student, tiny_tokenizer_dir: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no student"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    _save(tmp_path / "checkpoint", student, make_optimizer(student, TrainConfig()), tiny_tokenizer_dir)
    with pytest.raises(ConfigError, match="is not empty"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "file").touch()
    for unwritable in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/student")):
        with pytest.raises(ConfigError, match=r"directory: .* choose another directory"):
            export_checkpoint(tmp_path / "checkpoint", unwritable)


def test_the_student_stops_where_its_documents_end_and_keeps_the_chat_templates(
    student, tiny_tokenizer_dir: Path, tmp_path: Path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})  # of a chat model: it ends a turn
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    student.generation_config = GenerationConfig(eos_token_id=7, temperature=0.6)  # which could not even be saved
    optimizer = make_optimizer(student, TrainConfig())
    CheckpointWriter(student, tokenizer, optimizer).write(tmp_path / "checkpoint", PROGRESS, LOG)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "student")

    found = GenerationConfig.from_pretrained(tmp_path / "student")
    assert (found.eos_token_id, found.pad_token_id, found.bos_token_id) == (0, 0, 0)
    assert found.temperature in (None, 1.0)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == tokenizer.chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config.eos_token_id == 0
