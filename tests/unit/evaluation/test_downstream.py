"""lm-eval on a tiny local task, against log-likelihoods computed here."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd.errors import ConfigError
from rskd.evaluation import downstream
from rskd.evaluation.downstream import find_tasks, mean_score, score, score_error
from rskd.models.tokenizer import begin_texts_with

EXAMPLES = [
    {"question": "The with statement is", "choices": [" used to wrap", " an integer of"], "answer": 0},
    {"question": "A class definition", "choices": [" sleeps", " is an executable statement"], "answer": 1},
    {"question": "Names refer to", "choices": [" objects", " the sea and the wind"], "answer": 1},
    {"question": "An import statement", "choices": [" is", " was", " finds a module"], "answer": 2},
]


def write_task(folder: Path, name: str = "tiny_choice") -> Path:
    """A folder with the YAML file of a multiple-choice task and its data."""
    (folder / "data.jsonl").write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    (folder / f"{name}.yaml").write_text(
        f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "data.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
    )
    return folder


@pytest.mark.parametrize("bos_ids", [[], [7]])
def test_scores_are_those_of_the_models_own_likelihoods(tmp_path: Path, tiny_teacher_dir: Path, bos_ids: list[int]):
    pytest.importorskip("lm_eval")
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    begin_texts_with(tokenizer, bos_ids)
    found = score(model, tokenizer, "tiny_choice", vocab_size=384, task_path=str(write_task(tmp_path)), batch_size=2)

    def tokenize(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def log_likelihood(question: str, choice: str) -> float:
        ids, start = bos_ids + tokenize(question + choice), len(bos_ids + tokenize(question))
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0, :, : len(tokenizer)].log_softmax(-1)
        return sum(float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids)))

    right = {"acc": 0, "acc_norm": 0}
    for example in EXAMPLES:
        values = torch.tensor([log_likelihood(example["question"], choice) for choice in example["choices"]])
        lengths = torch.tensor([float(len(choice)) for choice in example["choices"]])
        right["acc"] += int(values.argmax()) == example["answer"]
        right["acc_norm"] += int((values / lengths).argmax()) == example["answer"]
    for metric, number in right.items():
        assert found[metric]["value"] == pytest.approx(number / len(EXAMPLES))
        assert found[metric]["standard_error"] >= 0
    assert mean_score({"tiny_choice": found, "other": {"acc": {"value": 1.0}}}) == pytest.approx(
        (found["acc_norm"]["value"] + 1) / 2
    )


def test_the_error_of_a_mean_score_is_that_of_independent_tasks():
    tasks = {"a": {"acc": {"value": 0.5, "standard_error": 0.3}}, "b": {"acc": {"value": 0.1, "standard_error": 0.4}}}
    assert score_error(tasks) == pytest.approx(0.25)
    assert score_error(tasks | {"perplexity": {"ppl": {"value": 3.0}}}) == pytest.approx(0.25)
    assert score_error(tasks | {"c": {"acc": {"value": 0.1}}}) is None
    assert score_error({}) is None


def test_says_which_task_is_unknown_or_has_no_data(tmp_path: Path, tiny_teacher_dir: Path):
    pytest.importorskip("lm_eval")
    write_task(tmp_path)
    find_tasks(["tiny_choice", "hellaswag", "arc_easy", "lambada_openai", "lambada_standard", "piqa"], str(tmp_path))
    with pytest.raises(ConfigError, match=r"hellaswagg is no task of lm-eval"):
        find_tasks(["hellaswag", "hellaswagg"], str(tmp_path))
    (tmp_path / "data.jsonl").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    with pytest.raises(ConfigError, match=r"the data of tiny_choice cannot be had") as error:
        score(model, tokenizer, "tiny_choice", vocab_size=384, task_path=str(tmp_path), batch_size=1)
    assert "\n" not in str(error.value)


def test_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(downstream.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rskd\[downstream\]'"):
        find_tasks(["hellaswag"], None)
