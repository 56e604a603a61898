"""Answers: draws with the right frequencies, independent of the batch, that end where a turn does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import make_model
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from rskd.config import GenerateConfig, PromptSetConfig
from rskd.errors import ConfigError, NonFiniteLogitsError
from rskd.evaluation.generation import Answer, Question, Voice, draw, generate, question_key
from rskd.evaluation.prompts import Prompt
from rskd.models.load import load_model
from rskd.rng import uniforms

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDS_BY_EOS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% elif m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}"
)
STRICT = Prompt(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}), "Because.", "raw")
PROMPT = Prompt(({"role": "user", "content": "Why?"},), "Because.", "Instruction: Why?\nResponse:")


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir)


def settings(**changed: Any) -> GenerateConfig:
    sets = {"own": PromptSetConfig(kind="own", uri="none.jsonl")}
    return GenerateConfig(prompt_sets=sets, **{"max_new_tokens": 12} | changed)


def some_questions(tokenizer: PreTrainedTokenizerFast) -> list[Question]:
    """Of 2 to 23 tokens."""
    texts = ["a b", "the statement", "A longer question about what a statement is", "x" * 20]
    return [
        Question(tuple(tokenizer(text)["input_ids"]), question_key(index, generation))
        for index, text in enumerate(texts)
        for generation in range(2)
    ]


def test_draws_have_the_frequencies_of_the_softmax():
    """Uniforms on a grid of 1,000: each id is drawn as often as its probability says, to one."""
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.05])
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = probabilities.log().expand(1000, 4)

    def counts(**options: float) -> list[int]:
        return torch.bincount(draw(logits, grid, **{"temperature": 1.0} | options), minlength=4).tolist()

    assert counts() == pytest.approx([500, 250, 200, 50], abs=1)
    assert counts(top_p=0.7) == pytest.approx([667, 333, 0, 0], abs=1)
    assert counts(top_p=0.4) == [1000, 0, 0, 0]
    roots = probabilities.sqrt() / probabilities.sqrt().sum()
    assert counts(temperature=2.0) == pytest.approx((1000 * roots).tolist(), abs=1)
    assert counts(temperature=0.0) == [1000, 0, 0, 0]


def test_an_id_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    drawn = draw(logits, torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64), temperature=1.0)
    assert drawn.tolist() == [1, 3, 3]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(value: float, temperature: float):
    with pytest.raises(NonFiniteLogitsError):
        draw(torch.tensor([[0.0, value]]), torch.tensor([0.5]), temperature=temperature)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_an_answer_does_not_depend_on_its_batch(architecture: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = load_model(str(make_model(architecture, tmp_path)))
    voice, questions = Voice.of(tokenizer), some_questions(tokenizer)

    def answers(asked: list[Question], **changed: int) -> list[Answer]:
        return list(generate(model, voice, asked, settings(max_new_tokens=8, **changed)))

    alone = answers(questions, batch_answers=1)
    assert answers(questions, batch_answers=5) == alone
    assert answers(questions[::-1]) == alone[::-1]
    assert len({answer.text for answer in alone}) == 8
    assert answers(questions, seed=1) != alone


def test_an_answer_is_what_a_loop_without_a_cache_draws(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = load_model(str(make_model("llama", tmp_path)))
    model.generation_config = GenerationConfig(repetition_penalty=5.0, temperature=0.1)  # not part of the protocol
    question, asked = some_questions(tokenizer)[7], settings(temperature=0.7, top_p=0.9)
    [found] = generate(model, Voice.of(tokenizer), [question], asked)
    ids = list(question.ids)
    for number in uniforms(torch.tensor(question.key), 12, seed=0):
        logits = model(torch.tensor([ids])).logits[:, -1, :384]
        ids += draw(logits, number[None], temperature=0.7, top_p=0.9).tolist()
    said = ids[len(question.ids) :]
    said = said[: said.index(0)] if 0 in said else said
    assert found.text == tokenizer.decode(said)
    assert found.num_tokens == len(said)


def made(tokenizer: PreTrainedTokenizerFast, directory: Path, favourite: int) -> PreTrainedModel:
    """A model that says one token whatever it is asked."""
    model = load_model(str(make_model("qwen2", directory)))
    model.lm_head.weight.data.zero_()
    bias = torch.zeros(400)
    bias[favourite] = 50.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def test_an_answer_ends_with_the_turn(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    [question, *_] = some_questions(tokenizer)
    [ended] = generate(made(tokenizer, tmp_path, 0), Voice.of(tokenizer), [question], settings())
    assert (ended.text, ended.num_tokens, ended.finish) == ("", 0, "stop")
    letter = tokenizer("b")["input_ids"][0]
    [cut] = generate(made(tokenizer, tmp_path, letter), Voice.of(tokenizer), [question], settings())
    assert (cut.text, cut.num_tokens, cut.finish) == ("b" * 12, 12, "length")


def test_ids_that_the_tokenizer_does_not_have_are_never_said(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    [found] = generate(made(tokenizer, tmp_path, 390), Voice.of(tokenizer), some_questions(tokenizer)[:1], settings())
    assert found.num_tokens > 0
    assert len(set(found.text)) > 1


def test_a_prompt_that_fills_the_model_leaves_less_room_or_none(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """The model has 256 positions; questions of other lengths are not cut with it."""
    letter = tokenizer("b")["input_ids"][0]
    model, voice = made(tokenizer, tmp_path, letter), Voice.of(tokenizer)
    questions = [Question((5,) * length, length) for length in (3, 251, 256, 300, 4)]
    found = list(generate(model, voice, questions, settings()))
    assert [answer.num_tokens for answer in found] == [12, 5, 0, 0, 12]
    assert [answer.finish for answer in found] == ["length", "length", "no room", "no room", "length"]


def test_a_model_without_a_chat_template_continues_the_raw_text(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.decode(Voice.of(tokenizer).ask(PROMPT)) == PROMPT.raw


def test_a_chat_template_asks_and_says_what_ends_a_turn(tokenizer: PreTrainedTokenizerFast):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    voice = Voice.of(tokenizer, GenerationConfig(eos_token_id=[7, 9]))
    assert voice.stop_ids == (0, 7, 9, end)
    assert tokenizer.decode(voice.ask(STRICT)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    hello = tokenizer("hello")["input_ids"]
    assert voice.read([*hello, end, start, *hello], 99).text == "hello"
    assert voice.read([*hello, end], len(hello)).finish == "length"

    tokenizer.chat_template = ENDS_BY_EOS
    voice = Voice.of(tokenizer)
    assert voice.stop_ids == (0,)
    assert tokenizer.decode(voice.ask(PROMPT)) == "[INST] Why? [/INST]"
    with pytest.raises(ConfigError, match=r"refuses a prompt \(no role system\)"):
        voice.ask(STRICT)

    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert tokenizer.decode(Voice.of(tokenizer).ask(PROMPT)) == "26 Jul 2024 Why?"
