"""A model is loaded whole, or refused by the name of a tensor and a file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_architectures import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Llama4ForConditionalGeneration

from rskd.errors import ConfigError
from rskd.models.load import load_model, new_model, num_parameters

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of four layers with a head of its own."""
    directory = tmp_path_factory.mktemp("whole")
    tiny_model(tiny_config("llama", tie_word_embeddings=False)).save_pretrained(directory)
    return directory


@pytest.fixture
def model_dir(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def without(directory: Path, pattern: str) -> None:
    tensors = load_file(directory / WEIGHTS)
    kept = {name: tensor for name, tensor in tensors.items() if pattern not in name}
    save_file(kept, directory / WEIGHTS, metadata={"format": "pt"})


def set_config(directory: Path, **values) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_every_weight_comes_from_the_file(whole):
    loaded, expected = load_model(str(whole)).state_dict(), load_file(whole / WEIGHTS)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("pattern", "named"), [(".layers.1.", "model.layers.1"), ("lm_head", "lm_head.weight"), ("embed", "embed_tokens")]
)
def test_missing_tensors_are_never_random(model_dir, pattern, named):
    without(model_dir, pattern)
    with pytest.raises(ConfigError, match=rf"^teacher t: tensor .*{named}.* is missing in model.safetensors"):
        load_model(str(model_dir), named="teacher t")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_hidden_layers": 3}, r"tensor model\.layers\.3.* \(and 8 more\) of model.safetensors has no place"),
        ({"num_hidden_layers": 5}, r"tensor model\.layers\.4.* \(and 8 more\) is missing in model.safetensors"),
        ({"vocab_size": 63}, r"of model.safetensors has shape \[64, 32\] but config.json means \[63, 32\]"),
        ({"intermediate_size": 40}, r"has shape \[.*\] but config.json means"),
        ({"model_type": "nothing"}, "cannot be loaded"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
    ],
)
def test_a_config_that_does_not_fit_its_weights(model_dir, change, problem):
    set_config(model_dir, **change)
    with pytest.raises(ConfigError, match=problem):
        load_model(str(model_dir))


def test_a_truncated_file_and_a_pointer_in_its_place(model_dir):
    data = (model_dir / WEIGHTS).read_bytes()
    for damaged in (data[:-1000], data[:100], b""):
        (model_dir / WEIGHTS).write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"model.safetensors is not a whole safetensors file .*download"):
            load_model(str(model_dir))
    (model_dir / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ConfigError, match=r"model.safetensors is a Git LFS pointer, not weights: run git lfs pull"):
        load_model(str(model_dir))


def test_shards_that_are_missing_or_have_no_index(whole, tmp_path):
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(str(tmp_path))
    shards[1].unlink()
    with pytest.raises(ConfigError, match=rf"{shards[1].name}, which model.safetensors.index.json lists, is missing"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"index.json is not the index of its weights"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no model.safetensors and no model.safetensors.index.json"):
        load_model(str(tmp_path))


def test_a_tensor_in_two_shards_and_an_index_of_nothing(whole, tmp_path):
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="50KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor * 0}, second, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"tensor {name} is in both {first.name} and {second.name}"):
        load_model(str(tmp_path))
    for index in ('{"metadata": {}, "weight_map": {}}', '{"weight_map": {"a": "b.safetensors"}}', '{"weight_map": 1}'):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(ConfigError, match=r"index.json is not the index of its weights"):
            load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("value", "dtype"), [(torch.nan, torch.float32), (torch.inf, torch.bfloat16), (1e6, torch.float16)]
)
def test_weights_that_are_not_finite(model_dir, value, dtype):
    tensors = load_file(model_dir / WEIGHTS)
    tensors["model.embed_tokens.weight"][60, 0] = value  # of an id that no probe uses
    save_file(tensors, model_dir / WEIGHTS, metadata={"format": "pt"})
    problem = rf"tensor model.embed_tokens.weight of model.safetensors .*not finite in {str(dtype)[6:]}"
    with pytest.raises(ConfigError, match=problem):
        load_model(str(model_dir), dtype=dtype)


def test_the_text_model_of_a_larger_one_leaves_its_vision_alone(tmp_path):
    config = tiny_config("llama4")
    Llama4ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert any("vision" in name for name in load_file(tmp_path / WEIGHTS))
    load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "implementation"), [("llama", "sdpa"), ("gpt_oss", "eager"), ("gemma2", "eager")]
)
def test_attention_auto_is_what_the_architecture_has(model_type, implementation, tmp_path):
    config = tiny_config(model_type)
    assert new_model(config, seed=0, named="student").config._attn_implementation == implementation


def test_an_attention_that_the_architecture_lacks_names_the_key(tmp_path):
    tiny_model(tiny_config("gpt_oss")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="set attention=auto in place of sdpa"):
        load_model(str(tmp_path), "sdpa")
    with pytest.raises(ConfigError, match="attention=flash_attention_2 needs flash-attn on a GPU: pip install"):
        load_model(str(tmp_path), "flash_attention_2")


def test_new_models_are_a_function_of_their_seed():
    first, again, other = (
        new_model(tiny_config("llama"), seed=seed, named="student").state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_parameters_are_counted_without_weights(whole):
    assert num_parameters(str(whole)) == sum(tensor.numel() for tensor in load_file(whole / WEIGHTS).values())
