import ast
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rskd.config import PromptSetConfig, SourceConfig
from rskd.corpus.python_conversations import _of_module, write_conversations
from rskd.corpus.sources import group_files, list_files, read_conversations
from rskd.evaluation.prompts import load_prompts

NAMES = ("conversations.jsonl", "prompts.jsonl", "LICENSE.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "deep" / "er"
    write_conversations(folder)
    return folder


@pytest.fixture(scope="module")
def conversations(folder: Path) -> list[list[dict[str, str]]]:
    """The messages of each conversation, as a corpus of kind chat reads them."""
    source = SourceConfig(kind="jsonl", uri=str(folder / NAMES[0]))
    groups = group_files(list_files(source, chat=True), kind="jsonl")
    return [found.messages for group in groups for found, _ in read_conversations(source, group)]


def subject_of(question: str) -> str | None:
    """The dotted name that a question is about, if it is about one."""
    found = re.search(r"`([\w.]+\.\w+)`", question)
    return found and found[1]


def test_size(conversations):
    answers = [message["content"] for one in conversations for message in one[1::2]]
    assert 1500 <= len(conversations) <= 4000
    assert sum(len(one) == 4 for one in conversations) > 300
    assert {len(one) for one in conversations} == {2, 4}
    assert all(20 <= len(answer.split()) <= 150 for answer in answers)


def test_roles_alternate_and_nothing_is_empty(conversations):
    assert all([m["role"] for m in one] == ["user", "assistant"] * (len(one) // 2) for one in conversations)
    assert all(message["content"].strip() for one in conversations for message in one)


def test_conversations_are_unique(conversations):
    assert len({one[0]["content"] for one in conversations}) == len(conversations)
    assert len({one[1]["content"] for one in conversations}) == len(conversations)


def test_prompts_are_of_other_subjects(folder, conversations):
    prompts = load_prompts(PromptSetConfig(kind="own", uri=str(folder / NAMES[1])), "held_out")
    said = {message["content"] for one in conversations for message in one}
    assert len(prompts) > 150
    assert all(len(prompt.messages) == 1 for prompt in prompts)
    assert not said & {text for prompt in prompts for text in (prompt.question, prompt.reference)}
    asked_about = {subject_of(one[0]["content"]) for one in conversations} - {None}
    assert len(asked_about) > 1500
    assert not asked_about & {subject_of(prompt.question) for prompt in prompts}


def test_another_process_writes_equal_bytes(folder, tmp_path):
    command = [sys.executable, "-m", "rskd.corpus.python_conversations", str(tmp_path)]
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in NAMES)


def test_what_the_licence_says(folder):
    text = (folder / NAMES[2]).read_text()
    assert f"CPython {sys.version.split()[0]}" in text
    assert "PSF-2.0" in text
    assert "Python Software Foundation" in text
    if (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").exists():
        assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "rskd.corpus.python_conversations", str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_how_a_function_is_called():
    source = """
class Shelf:
    @staticmethod
    def find(folder: str, *, deep=False, key): "Search a folder."
    async def put(self, book, /, at: int = 0, *others): "Put a book on it."
    def clear(self): "Take all off."
    def _private(self): "Not for users."
    @property
    def width(self): "How wide it is."
"""
    found = {subject.name: (subject.kind, subject.call) for subject in _of_module(ast.parse(source), "lib/shelves.py")}
    assert found == {
        "lib.shelves.Shelf.find": (
            "method",
            "Call it as `lib.shelves.Shelf.find(folder, *, deep=False, key)`. It needs `folder` and `key`. "
            "Optional: `deep` (by default `False`).",
        ),
        "lib.shelves.Shelf.put": (
            "method",
            "Call it as `await lib.shelves.Shelf.put(book, /, at=0, *others)`. It needs `book`. "
            "Optional: `at` (by default `0`).",
        ),
        "lib.shelves.Shelf.clear": ("method", "Call it as `lib.shelves.Shelf.clear()`."),
        "lib.shelves.Shelf.width": ("property", ""),
    }
