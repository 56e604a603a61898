"""The inputs of flows/configs/sft-small.yaml: its tasks, and a teacher whose tokenizer has an end of turn."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rskd.config import load_config
from rskd.errors import ConfigError
from rskd.models.chat_template import chat_template, end_of_turn_id, separator_id
from rskd.models.files import model_fingerprint
from rskd.reproduction.chat_inputs import END_OF_TURN, write_chat_teacher, write_inputs, write_tasks

CONFIG = Path(__file__).parents[3] / "flows" / "configs" / "sft-small.yaml"
PROMPTS = [
    {"prompt": f"What is {n}?", "reference": " ".join(f"word{n}-{place}" for place in range(30))} for n in range(6)
]


def test_a_task_has_the_right_choice_among_four_of_other_prompts(tmp_path: Path):
    short = {"prompt": "Short?", "reference": "only five words are here"}
    assert write_tasks([*PROMPTS, short], tmp_path) == {"python_answers": 7, "python_continuations": 6}
    for name, start in (("python_answers", 0), ("python_continuations", 12)):
        data = (tmp_path / f"{name}.jsonl").read_bytes()
        examples = [json.loads(line) for line in data.splitlines()]
        for number, example in enumerate(examples[:6]):
            right = " ".join(f"word{number}-{place}" for place in range(start, start + 8))
            assert example["choices"][example["answer"]] == right
            assert len(set(example["choices"])) == 4
        assert len({example["answer"] for example in examples}) > 1
        write_tasks([*PROMPTS, short], tmp_path)
        assert (tmp_path / f"{name}.jsonl").read_bytes() == data


@pytest.mark.e2e
def test_lm_eval_reads_the_tasks(tmp_path: Path, tiny_teacher_dir: Path):
    pytest.importorskip("lm_eval")
    from transformers import AutoModelForCausalLM

    from rskd.evaluation.downstream import score

    write_tasks(PROMPTS, tmp_path)
    model, tokenizer = (kind.from_pretrained(tiny_teacher_dir) for kind in (AutoModelForCausalLM, AutoTokenizer))
    for name in ("python_answers", "python_continuations"):
        found = score(model, tokenizer, name, vocab_size=384, task_path=str(tmp_path), batch_size=8)
        assert 0 <= found["acc_norm"]["value"] <= 1


def test_the_chat_teacher_reads_text_as_the_teacher_does_and_can_end_a_turn(tmp_path: Path, tiny_teacher_dir: Path):
    write_chat_teacher(tiny_teacher_dir, tmp_path)
    plain, chat = AutoTokenizer.from_pretrained(tiny_teacher_dir), AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(): ... naïve ☃ ÿ <|user|>\nWhat?"
    assert chat(text)["input_ids"] == plain(text)["input_ids"]
    assert chat.decode(chat(text)["input_ids"]) == text
    assert (len(chat), chat.eos_token) == (len(plain), END_OF_TURN)
    assert model_fingerprint(str(tmp_path)) == model_fingerprint(str(tiny_teacher_dir))

    template = chat_template(chat, load_config(CONFIG).corpus.chat_template)
    assert chat.convert_ids_to_tokens(separator_id(chat, template, 384)) == "<|endoftext|>"
    chat.chat_template = template.text
    assert end_of_turn_id(chat) == chat.eos_token_id != plain.eos_token_id


def test_a_home_without_a_teacher_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"run python -m flows\.reproduce_paper"):
        write_inputs(tmp_path)
