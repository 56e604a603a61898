"""Hidden states and the head beside the model's own forward pass; documents of a window beside each alone."""

import pytest
import torch
from made_architectures import tiny_config, tiny_model

from rskd.models.causal_lm import _batches, close, hidden_states, isolates_by_positions, output_head

END = 5
# Architectures that scale, cap or shift their logits, each in a way of its own.
SCALED = {
    "cohere": {"logit_scale": 0.25},
    "falcon_h1": {"lm_head_multiplier": 0.1},
    "gemma2": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.0625},
    "inkling_text": {"logits_mup_width_multiplier": 3.0},
    "minicpm3": {},
    "mpt": {"logit_scale": 0.25},
    "phi": {},  # a bias
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "xlstm": {"output_logit_soft_cap": 3.0},
}


@pytest.mark.parametrize("model_type", SCALED)
def test_logits_are_those_of_the_models_own_forward_pass(model_type):
    model = tiny_model(tiny_config(model_type, **SCALED[model_type]))
    ids = torch.arange(3, 60, 3)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert close(output_head(model).logits(hidden_states(model, ids)), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "by_positions"),
    [("llama", True), ("gpt_oss", False), ("opt", False), ("falcon", False), ("mamba", False), ("qwen3_next", False)],
)
def test_documents_of_a_window_are_as_each_is_alone(model_type, by_positions, dtype):
    model = tiny_model(tiny_config(model_type)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 60, (2, 40), generator=generator)
    ends = ([6, 7, 25], [39])  # a document of one token, one that ends its row
    for row, at in zip(ids, ends):
        row[at] = END
    assert isolates_by_positions(model) == by_positions
    with torch.no_grad():
        together = hidden_states(model, ids, END)
        for row, at, found in zip(ids, ends, together):
            for start, end in zip([0, *(e + 1 for e in at)], [*(e + 1 for e in at), 40]):
                if start < end:
                    assert close(found[None, start:end], hidden_states(model, row[None, start:end]))


def test_documents_alone_have_the_gradient_of_their_sum():
    model = tiny_model(tiny_config("opt"))
    ids = torch.arange(6, 46)[None]
    ids[0, [9, 20]] = END
    hidden_states(model, ids, END).sin().sum().backward()
    found = gradient(model)
    model.zero_grad()
    for start, end in ((0, 10), (10, 21), (21, 40)):
        hidden_states(model, ids[:, start:end]).sin().sum().backward()
    assert close(found, gradient(model))


def gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_batches_of_documents_hold_no_more_tokens_than_the_rows_did():
    lengths = [1, 30, 2, 2, 7, 1, 64, 21]
    batches = list(_batches(lengths, 64))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert all(max(lengths[index] for index in batch) * len(batch) <= 64 for batch in batches)
