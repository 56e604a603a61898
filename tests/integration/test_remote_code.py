"""A teacher that brings its own code goes the whole way where the configuration trusts it, and nowhere else."""

import json
import shutil
from pathlib import Path

import pytest

from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError
from rskd.estimate import estimate
from rskd.evaluation.audit import audit_cache
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.train import train_student

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def teacher_dir(tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "teacher"
    shutil.copytree(tiny_teacher_dir, directory)
    (directory / "own.py").write_text(CODE)
    _change(
        directory / "config.json",
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    _change(
        directory / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    return directory


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_config(teacher_dir: Path, student: Path, home: Path, *, trust: bool) -> DistillConfig:
    return validate_config(
        {
            "name": "own",
            "storage": {"root": str(home)},
            "corpus": {"source": {"kind": "python_docs"}, "seq_len": 32, "eval_windows": 4, "max_windows": 32},
            "teacher": {"model": str(teacher_dir), "dtype": "float32", "trust_remote_code": trust},
            "student": {"model": str(student), "init": "random"},
            "train": {"steps": 1, "global_batch": 2, "micro_batch": 2, "workers": 0, "precision": "float32"},
            "ray": {"enabled": False},
            "tracking": {"enabled": False},
        }
    )


def test_from_text_to_evaluation(teacher_dir: Path, tiny_teacher_dir: Path, tmp_path: Path):
    config = make_config(teacher_dir, tiny_teacher_dir, tmp_path / "home", trust=True)
    pack_corpus(config)
    cache_logits(config)
    train_student(config, "default")
    assert evaluate_students(config)["default"]["lm_loss"] > 0
    assert estimate(config)["teacher"]["tokens_per_s"] > 0
    uri = config.cache_uri("default")
    assert audit_cache(uri, str(teacher_dir), rows=4, trust_remote_code=True).ok
    with pytest.raises(ConfigError, match=r"teacher .* cannot be loaded"):
        audit_cache(uri, str(teacher_dir), rows=4)


def test_code_that_is_not_trusted_does_not_run(teacher_dir: Path, tiny_teacher_dir: Path, tmp_path: Path):
    (teacher_dir / "own.py").write_text(f"{CODE}\nopen({str(tmp_path / 'ran')!r}, 'w')")
    config = make_config(teacher_dir, tiny_teacher_dir, tmp_path / "home", trust=False)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        pack_corpus(config)
    assert not (tmp_path / "ran").exists()
