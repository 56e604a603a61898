"""Students of the teacher's layers: of any decoder, layer by layer of the same kind, or refused by name before work."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rskd.errors import ConfigError
from rskd.student.teacher_layers import copy_layers, kept_layers, thinned_config

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "use_mamba_kernels": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": False},
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 8},
    "gemma3n_text": SIZES
    | {
        "head_dim": 8,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "layer_types": ["full_attention"] * 4,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "smollm3": SIZES | {"no_rope_layers": [1, 0, 0, 1]},
    "deepseek_v3": SIZES
    | LATENT
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
    | {"first_k_dense_replace": 2},
    "qwen3_moe": SIZES | EXPERTS | {"decoder_sparse_step": 2},
    "qwen2_moe": SIZES | EXPERTS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1, 3]},
    "jamba": SIZES | MAMBA | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "minicpm3": SIZES | LATENT | {"scale_depth": 1.4},
    "recurrent_gemma": SIZES | {"head_dim": 8, "lru_width": 32, "attention_window_size": 16},
}


def _teacher(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **ARCHITECTURES[architecture] | changes)
    )
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return teacher.float().eval()


def _student(teacher: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    return _filled(teacher, thinned_config(teacher.config, num_layers))


def _filled(teacher: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    student = AutoModelForCausalLM.from_config(config, attn_implementation=teacher.config._attn_implementation)
    copy_layers(teacher, student.float())
    return student.eval()


def _logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None], use_cache=False).logits


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


@pytest.mark.parametrize(("num_layers", "kept"), [(1, [0]), (2, [0, 29]), (4, [0, 10, 19, 29]), (30, list(range(30)))])
def test_kept_layers_are_spread_evenly_from_first_to_last(num_layers: int, kept: list[int]):
    assert kept_layers(30, num_layers) == kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_of_all_layers_equals_its_teacher(architecture: str):
    teacher = _teacher(architecture)
    assert torch.equal(_logits(_student(teacher, 4)), _logits(teacher))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_layers", [2, 3])
def test_each_layer_is_the_teachers_own_and_the_config_is_read_again_alike(architecture, num_layers, tmp_path):
    teacher = _teacher(architecture)
    student = _student(teacher, num_layers)
    assert len(_layers(student)) == num_layers
    for layer, old in zip(_layers(student), kept_layers(4, num_layers)):
        original = _layers(teacher)[old]
        assert [type(m) for m in layer.modules()] == [type(m) for m in original.modules()]
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), original.parameters(), strict=True))
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(_logits(again), _logits(student))


def test_gpt2_of_two_layers_computes_what_the_teachers_two_layers_do():
    teacher = _teacher("gpt2")
    student = _student(teacher, 2)
    teacher.transformer.h = nn.ModuleList([teacher.transformer.h[0], teacher.transformer.h[3]])
    assert torch.equal(_logits(student), _logits(teacher))


def test_lists_of_layers_and_counts_are_renumbered():
    found = thinned_config(_teacher("qwen3_moe").config, 3)  # experts in 1 and 3; kept: 0, 2, 3
    assert (found.decoder_sparse_step, found.mlp_only_layers) == (1, [0, 1])
    found = thinned_config(_teacher("deepseek_v3").config, 3)  # dense: 0 and 1
    assert found.first_k_dense_replace == 1
    found = thinned_config(_teacher("smollm3").config, 3)
    assert found.no_rope_layers == [1, 0, 1]
    assert thinned_config(_teacher("minicpm3").config, 2).scale_depth == pytest.approx(1.4 / 2**0.5)


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        ("diffllama", SIZES, "self_attn.lambda_init 0.35550906759096934, not 0.5560582041556406"),
        ("gpt2", GPT | {"scale_attn_by_inverse_layer_idx": True}, "attn.scaling"),
        ("zaya", {}, "each of its layers depends on the one before it"),
        ("xlm", {"vocab_size": 64, "emb_dim": 32, "n_layers": 4, "n_heads": 4}, "it has 4 lists of 4 layers"),
    ],
)
def test_what_cannot_be_thinned_is_refused_by_name_without_weights(architecture: str, config: dict, reason: str):
    with pytest.raises(ConfigError) as refused:
        thinned_config(AutoConfig.for_model(architecture, **config), 2)
    assert f"not possible for architecture {architecture} (" in str(refused.value)
    assert reason in str(refused.value)
    assert "choose another student.num_layers" in str(refused.value)
    assert "\n" not in str(refused.value.args[0])


def test_shared_keys_whose_source_is_left_out_are_refused():
    teacher = _teacher("gemma3n_text", num_kv_shared_layers=1)  # layer 3 reads the keys of layer 2
    assert torch.equal(_logits(_student(teacher, 4)), _logits(teacher))
    assert len(_layers(_student(teacher, 3))) == 3  # layers 0, 2, 3
    with pytest.raises(ConfigError, match=r"its layer 0 would differ as layer 0 of 2: self_attn\.store_full_length_kv"):
        thinned_config(teacher.config, 2)


def test_another_function_of_layers_that_look_alike_is_refused():
    teacher = _teacher("gpt2")
    config = thinned_config(teacher.config, 2)
    config.layer_norm_epsilon = 0.5
    with pytest.raises(ConfigError, match=r"gpt2 \(with 2 of its 4 layers it is another function: logits differ by"):
        _filled(teacher, config)
