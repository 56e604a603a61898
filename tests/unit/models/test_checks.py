"""What cannot be computed right is refused by name, in one line."""

import pytest
import torch
from made_architectures import tiny_config, tiny_model

from rskd.errors import ConfigError
from rskd.models import causal_lm
from rskd.models.causal_lm import FLASH_ATTENTION, can_isolate, isolates_by_positions
from rskd.models.checks import check_computation


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        ("bert", "BertLMHeadModel computes its logits in another way than from its last hidden states and its head"),
        ("modernbert-decoder", "ModernBertDecoderForCausalLM computes its logits in another way"),
        ("xlnet", "XLNetLMHeadModel lets a token see the tokens after it: it is no causal LM"),
        ("xmod", "XmodForCausalLM cannot be run as a causal LM in float32"),
    ],
)
def test_refused_by_name(model_type, problem):
    with pytest.raises(ConfigError, match=f"^teacher t: {problem}.*: choose another model( or dtype)?$"):
        check_computation(tiny_model(tiny_config(model_type)), "teacher t")


def test_an_architecture_that_cannot_compute_a_long_text_in_a_dtype():
    model = tiny_model(tiny_config("xlstm"))  # Transformers computes chunks of 64 tokens in two dtypes at once
    check_computation(model, "teacher t")
    with pytest.raises(ConfigError, match=r"xLSTMForCausalLM cannot be run as a causal LM in bfloat16 \(.*dtype"):
        check_computation(model.bfloat16(), "teacher t")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_head_that_is_wrong_by_a_factor_is_seen_in_any_dtype(dtype, monkeypatch):
    model = tiny_model(tiny_config("granite", logits_scaling=1.25)).to(dtype)
    check_computation(model, "teacher t", isolated=True)
    monkeypatch.setattr(causal_lm, "_LOGIT_SCALES", {"": {}})
    with pytest.raises(ConfigError, match="GraniteForCausalLM computes its logits in another way"):
        check_computation(model, "teacher t")


def test_a_leak_between_documents_is_seen(monkeypatch):
    model = tiny_model(tiny_config("llama"))
    monkeypatch.setattr(causal_lm, "_last_hidden_state", leaking(causal_lm._last_hidden_state))
    assert not can_isolate(model)


def test_positions_that_count_in_a_single_row_alone_isolate_nothing(monkeypatch):
    def heeds_one_row(model, input_ids, **options):  # as FlashAttention does
        return original(model, input_ids, **(options if len(input_ids) == 1 else {}))

    original = causal_lm._last_hidden_state
    monkeypatch.setattr(causal_lm, "_last_hidden_state", heeds_one_row)
    assert not isolates_by_positions(tiny_model(tiny_config("llama")))


def test_flash_attention_is_checked_by_sdpa_where_it_cannot_run_and_isolates_one_by_one():
    model = tiny_model(tiny_config("llama"))
    model.config._attn_implementation = FLASH_ATTENTION
    check_computation(model, "student", isolated=True)
    assert model.config._attn_implementation == FLASH_ATTENTION
    assert not isolates_by_positions(model)


def leaking(hidden_states):
    """States that are moved by what the model saw before, as those of a model that keeps its state would be."""
    seen = 0.0

    def leak(model, input_ids, **options):
        nonlocal seen
        before, seen = seen, seen + input_ids.float().mean()
        return hidden_states(model, input_ids) + before

    return leak
