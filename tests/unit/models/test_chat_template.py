from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rskd.lineage.corpus import template_digest
from rskd.models.chat_template import chat_template, end_of_turn_id

TURNS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WITH_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


@pytest.mark.parametrize(
    ("template", "ends"), [(None, False), (TURNS, True), (WITH_SYSTEM, True), ("{{ no( }}", False)]
)
def test_the_token_that_ends_a_turn(tokenizer: PreTrainedTokenizerFast, template: str | None, ends: bool):
    tokenizer.chat_template = template
    assert end_of_turn_id(tokenizer) == (tokenizer.eos_token_id if ends else None)


def test_a_token_that_the_template_names_is_part_of_it(tokenizer: PreTrainedTokenizerFast):
    def digest(template: str) -> str:
        found = chat_template(tokenizer, template)
        return template_digest({"template": found.text, "named": found.named_tokens})

    plain = TURNS.replace(" + eos_token", "")
    before = digest(TURNS), digest(plain)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    assert digest(TURNS) != before[0]
    assert digest(plain) == before[1]
