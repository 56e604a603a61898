"""Prompts: the layout that MiniLLM publishes, one's own files, and what is wrong with a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from rskd.config import PromptSetConfig
from rskd.errors import ConfigError
from rskd.evaluation.prompts import load_prompts

RAW = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a colour.\n\n### Response:\n"
)
RAW_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nHund\n\n"
    "### Response:\n"
)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(kind: Any, path: Path | str, limit: int | None = None):
    return load_prompts(PromptSetConfig(kind=kind, uri=str(path), limit=limit), "name")


def user(content: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": content},)


def test_a_published_set(tmp_path: Path):
    file = write(
        tmp_path / "dolly" / "valid.jsonl",
        {"prompt": RAW, "instruction": "Name a colour.", "input": "", "output": "Red."},
        {"prompt": RAW_WITH_INPUT, "instruction": "Translate.", "input": "Hund", "output": ["dog", "hound"]},
        {"prompt": RAW_WITH_INPUT.replace("\n", "<n>"), "output": "dog"},
    )
    found = load("dolly", file.parent)
    assert [prompt.messages for prompt in found] == [user("Name a colour."), *[user("Translate.\n\nHund")] * 2]
    assert [prompt.reference for prompt in found] == ["Red.", "dog", "dog"]
    assert [prompt.raw for prompt in found] == [RAW, RAW_WITH_INPUT, RAW_WITH_INPUT]
    assert load("dolly", file) == found
    assert load("dolly", f"{file.parent}/", limit=1) == found[:1]


def test_of_long_references_there_is_a_folder(tmp_path: Path):
    write(tmp_path / "valid.jsonl", {"instruction": "all", "output": "x"})
    write(tmp_path / "11_" / "valid.jsonl", {"instruction": "long", "output": "x"})
    assert [load(kind, tmp_path)[0].question for kind in ("s_ni", "un_ni", "vicuna")] == ["long", "long", "all"]


def test_of_unnatural_instructions_10_000_are_taken(tmp_path: Path):
    file = write(tmp_path / "valid.jsonl", *[{"instruction": str(index), "output": "x"} for index in range(10_001)])
    assert len(load("un_ni", file)) == 10_000
    assert len(load("s_ni", file)) == 10_001


def test_ones_own_file(tmp_path: Path):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, *user("And 3+3?")]
    file = write(
        tmp_path / "own.jsonl",
        {"prompt": "Name a colour.", "reference": "Red."},
        {"messages": turns, "reference": "6"},
        {"messages": [*turns, {"role": "assistant", "content": "6"}], "id": 7},
    )
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\n  \n")
    found = load("own", file)
    assert [prompt.reference for prompt in found] == ["Red.", "6", "6"]
    assert found[0].messages == user("Name a colour.")
    assert found[0].raw == RAW
    assert found[0].question == "Name a colour."
    assert found[1] == found[2]
    assert found[1].question == "user: 2+2?\n\nassistant: 4\n\nuser: And 3+3?"


def test_a_lone_surrogate_is_replaced(tmp_path: Path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "a\\ud800b", "reference": "c"}')
    assert load("own", tmp_path / "own.jsonl")[0].question == "a?b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "reference"', r"line 2 of own.jsonl is not JSON"),
        ('["a"]', "line 2 of own.jsonl is no JSON object"),
        ('{"prompt": "a"}', "has no text in 'reference'"),
        ('{"prompt": " ", "reference": "b"}', "has no text in 'prompt'"),
        ('{"prompt": 3, "reference": "b"}', "has no text in 'prompt'"),
        ('{"messages": [], "reference": "b"}', "is not the user's"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "has no 'reference'"),
        ('{"messages": [{"content": "a"}], "reference": "b"}', "a message without a 'role'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}], "reference": "b"}', "such as images"),
        ('{"messages": [{"role": "user", "content": ""}], "reference": "b"}', "has no text in 'content'"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, message: str):
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "reference": "b"}\n' + line)
    with pytest.raises(ConfigError, match=message) as raised:
        load("own", tmp_path / "own.jsonl")
    assert "prompt set name" in str(raised.value)


@pytest.mark.parametrize("kind", ["own", "dolly", "s_ni"])
def test_a_file_that_is_missing_or_empty(tmp_path: Path, kind: str):
    (tmp_path / "empty.jsonl").touch()
    for uri, message in ((tmp_path / "none", "does not exist"), (tmp_path, "does not exist"),
                         (tmp_path / "empty.jsonl", "has no prompts")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            load(kind, uri)
