"""What flows/configs/sft-small.yaml reads, made from CPython's documentation and a finished `--scale cpu-small`.

    python -m rskd.reproduction.chat_inputs [HOME]

    CPython's documentation ─► HOME/chat/conversations.jsonl, prompts.jsonl (held out), LICENSE.txt
    prompts.jsonl ─► HOME/chat/tasks: multiple choice for lm-eval, the right one among four, in a fixed order
    HOME/teacher  ─► HOME/chat/teacher: the same weights, with a token that ends a turn

The tokenizer of cpu-small has one special token, which ends a document. A chat template needs another. The byte 0xFF
is in no UTF-8 text, so its token, which no model has ever seen, takes that part; all other ids stay what they were.
The same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rskd.cli import Outcome, run_app
from rskd.corpus.python_conversations import write_conversations
from rskd.errors import ConfigError
from rskd.storage import Store
from rskd.student.checkpoint import copy_student

END_OF_TURN = "<|end_of_turn|>"
_BYTE_FF = "ÿ"  # as a byte-level tokenizer spells it
_CHOICES, _WORDS, _CONTEXT = 4, 8, 12  # words of a choice, and of the text before it
_TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: {text}
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def write_inputs(home: Path) -> dict[str, Any]:
    """Write `home`/chat. Returns how many conversations and prompts there are, and the examples of each task.

    Raises ConfigError where `home` holds no finished teacher.
    """
    model, folder = home / "teacher" / "students" / "model", home / "chat"
    if not (model / "config.json").is_file():
        raise ConfigError(
            f"{home} has no teacher in teacher/students/model: run python -m flows.reproduce_paper --scale cpu-small "
            f"--home {home} first"
        )
    made = write_conversations(folder)
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    examples = write_tasks(prompts, folder / "tasks")
    write_chat_teacher(model, folder / "teacher")
    return {**made, **examples, "folder": str(folder)}


def write_tasks(prompts: Sequence[dict[str, str]], folder: Path) -> dict[str, int]:
    """Two tasks of lm-eval, by the name of each how many examples it has.

    python_answers: a question, and which text begins its answer. python_continuations: an answer's first words, and
    which text goes on. The wrong choices are of other prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [prompt["reference"].split() for prompt in prompts]
    opening = [" ".join(each[:_WORDS]) for each in words]
    context = [" ".join(each[:_CONTEXT]) for each in words]
    middle = [" ".join(each[_CONTEXT : _CONTEXT + _WORDS]) for each in words]
    questions = [prompt["prompt"] for prompt in prompts]
    return {
        name: _write_task(folder, name, text, _examples(before, choices))
        for name, text, before, choices in (
            ("python_answers", '"Question: {{before}}\\nAnswer:"', questions, opening),
            ("python_continuations", '"{{before}}"', context, middle),
        )
    }


def _examples(before: Sequence[str], right: Sequence[str]) -> list[dict[str, Any]]:
    """Each text with what follows it among choices, in an order that follows from the text."""
    different = list(dict.fromkeys(filter(None, right)))
    found = []
    for text, answer in zip(before, right, strict=True):
        if answer:
            random = Random(text)
            wrong = random.sample([other for other in different if other != answer], _CHOICES - 1)
            choices = [answer, *wrong]
            random.shuffle(choices)
            found.append({"before": text, "choices": choices, "answer": choices.index(answer)})
    return found


def _write_task(folder: Path, name: str, text: str, examples: Sequence[dict[str, Any]]) -> int:
    data = folder.resolve() / f"{name}.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples))
    (folder / f"{name}.yaml").write_text(_TASK.format(name=name, data=json.dumps(str(data)), text=text))
    return len(examples)


def write_chat_teacher(model: Path, folder: Path) -> None:
    """The model with a tokenizer whose end token is END_OF_TURN, by the id of the byte 0xFF."""
    copy_student(model, Store(str(folder)))
    tokenizer = AutoTokenizer.from_pretrained(model)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    index = backend["model"]["vocab"].pop(_BYTE_FF)
    backend["model"]["vocab"][END_OF_TURN] = index
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    backend["added_tokens"].append({"id": index, "content": END_OF_TURN, **flags})
    renamed = Tokenizer.from_str(json.dumps(backend))
    PreTrainedTokenizerFast(tokenizer_object=renamed, eos_token=END_OF_TURN).save_pretrained(folder)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="Home of the reproduction at cpu-small.")] = Path(
        ".rskd/paper-cpu-small"
    ),
) -> Outcome:
    """Make the conversations, prompts, tasks and teacher that flows/configs/sft-small.yaml names."""
    return Outcome(write_inputs(home), "inputs of sft-small")


if __name__ == "__main__":
    run_app(app)
