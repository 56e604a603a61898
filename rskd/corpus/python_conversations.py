"""A small set of conversations from CPython's own documentation: questions by template, answers cut from its text.

    python -m rskd.corpus.python_conversations FOLDER

    files of python_docs ─► subjects ─► questions and answers ─┬─► conversations.jsonl
    (rskd.corpus.sources)     by sha256 of the subject's name ─┴─► prompts.jsonl, held out

A subject is a module, class, function, method or property with a docstring, or a section or entry of Python's manual.
Each gives one conversation, or one prompt with its reference. Of subjects with one name, or one text, the first counts.
All follows from the files of the Python that runs this: the same gives equal bytes, another version another set.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rskd.config import SourceConfig
from rskd.corpus.prose import clean_paragraphs, cut, num_words
from rskd.corpus.readers import TOPICS_FILE, topics_of
from rskd.corpus.sources import list_files
from rskd.errors import RskdError
from rskd.storage import Store

LEAST, MOST = 20, 150  # words of an answer
ENOUGH = 40  # words, after which an answer takes no further paragraph
HELD_OUT = 0.1  # of the subjects
_LONGEST_CALL = 160  # characters

_WHAT = {
    "module": ("What is the module `{}` for?", "What does Python's module `{}` offer?", "Describe the module `{}`."),
    "class": ("What is the class `{}`?", "What is `{}` for?", "Describe the class `{}` of Python's library."),
    "function": ("What does `{}` do?", "Explain the function `{}`.", "What is the function `{}` for?"),
    "method": ("What does the method `{}` do?", "Explain the method `{}`.", "What happens when `{}` is called?"),
    "property": ("What is the property `{}`?", "What does `{}` hold?"),
    "manual": ("What does Python's manual say about “{}”?", "Explain this part of Python: {}."),
}
_HOW = ("How do I call `{}`?", "Show me how `{}` is called, and what it does.", "What are the arguments of `{}`?")
_THEN_HOW = ("How is it called?", "Which arguments does it take?", "And how do I call it?")
_THEN_MORE = ("Can you say more?", "Tell me more about it.", "What else should I know about it?")
_TITLE = re.compile(r"^(\S.*)\n([*=-])\2{2,}\n", re.MULTILINE)
_ENTRY = re.compile(r"^(?:class |classmethod |static )?([a-z_]\w*\.[\w.]+)(\(.*\))\n\n((?:   .*\n|\n)+)", re.MULTILINE)


_LICENCE = """\
conversations.jsonl and prompts.jsonl were made by rskd.corpus.python_conversations from the docstrings of the standard
library and the topics of the manual (pydoc_data.topics) of {python}. Answers are excerpts, with lines joined
and markup removed; questions, and the descriptions of calls, were added.

The texts are under CPython's licence, PSF-2.0, without any warranty. Modules of the library that have a notice of their
own (turtle is one) keep it: see their source.
"""


@dataclass(frozen=True)
class Subject:
    """What is asked about, and what the documentation says of it."""

    kind: str  # a key of _WHAT
    name: str
    paragraphs: tuple[str, ...]
    call: str = ""  # how it is called, in sentences

    @property
    def is_held_out(self) -> bool:
        """Whether it is asked about in prompts.jsonl."""
        return self._hash("split") < HELD_OUT * 2**64

    def question(self, templates: Sequence[str]) -> str:
        """One of the templates, chosen by the name, which it is filled with."""
        return templates[self._hash("question") % len(templates)].format(self.name)

    def _hash(self, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{purpose} {self.name}".encode()).digest()[:8])


def write_conversations(folder: Path) -> dict[str, int]:
    """Write conversations.jsonl, prompts.jsonl and LICENSE.txt to `folder`; the numbers of the first two.

    conversations.jsonl is a source of a corpus of kind chat, prompts.jsonl a set of prompts of kind own.
    """
    store = Store(str(folder))
    store.check_writable("FOLDER")
    conversations, prompts = [], []
    for subject in subjects():
        turns = _turns(subject)
        if turns and subject.is_held_out:
            question, answer = turns[0]
            prompts.append({"prompt": question, "reference": answer})
        elif turns:
            roles = zip(("user", "assistant") * len(turns), (text for turn in turns for text in turn))
            conversations.append({"messages": [{"role": role, "content": text} for role, text in roles]})
    store.write("LICENSE.txt", _licence().encode())
    store.write("prompts.jsonl", _lines(prompts).encode())
    store.write("conversations.jsonl", _lines(conversations).encode())
    return {"conversations": len(conversations), "prompts": len(prompts)}


def subjects() -> list[Subject]:
    """Every subject of this Python's documentation, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[Subject] = []
    for file in list_files(SourceConfig(kind="python_docs")):
        tree = ast.parse((folder / file.name).read_bytes())
        found += _of_manual(topics_of(tree)) if file.name == TOPICS_FILE else _of_module(tree, file.name)
    kept: dict[str, Subject] = {}
    texts: set[str] = set()
    for subject in sorted(found, key=lambda subject: (subject.name, subject.paragraphs)):
        if subject.name not in kept and subject.paragraphs[0] not in texts:
            kept[subject.name] = subject
            texts.add(subject.paragraphs[0])
    return list(kept.values())


def _of_manual(topics: dict[str, str]) -> Iterator[Subject]:
    """The sections of the topics, which have underlined titles, and the methods that they list."""
    for topic in topics.values():
        for name, call, text in _ENTRY.findall(topic):
            yield from _documented("method", name, text, f"Call it as `{name}{call}`.")
        titles = list(_TITLE.finditer(topic))
        for title, end in zip(titles, [*(title.start() for title in titles[1:]), len(topic)]):
            text = _ENTRY.split(topic[title.end() : end])[0]
            yield from _documented("manual", title[1].replace('"', "`"), text)


def _of_module(tree: ast.Module, file: str) -> Iterator[Subject]:
    """The module, its public classes and functions, and their methods."""
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if not any(_is_private(part) for part in name.split(".")):
        yield from _documented("module", name, ast.get_docstring(tree))
        yield from _of_body(tree, name)


def _of_body(parent: ast.Module | ast.ClassDef, parent_name: str) -> Iterator[Subject]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or _is_private(node.name):
            continue
        name, text = f"{parent_name}.{node.name}", ast.get_docstring(node)
        if isinstance(node, ast.ClassDef):
            yield from _documented("class", name, text)
            yield from _of_body(node, name)
        elif any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield from _documented("property", name, text)
        else:
            is_method = isinstance(parent, ast.ClassDef)
            yield from _documented("method" if is_method else "function", name, text, _call(node, name, is_method))


def _documented(kind: str, name: str, text: str | None, call: str = "") -> Iterator[Subject]:
    paragraphs = clean_paragraphs(text or "", name)
    if paragraphs:
        yield Subject(kind, name, paragraphs, call)


def _is_private(name: str) -> bool:
    return name.startswith("_") or name in ("main", "test", "tests")


def _turns(subject: Subject) -> list[tuple[str, str]]:
    """Questions and answers about a subject; none where too little is said of it."""
    answer, rest = cut(subject.paragraphs, ENOUGH, MOST)
    if answer and num_words(answer) < LEAST and subject.call:
        return _fitting([(subject.question(_HOW), f"{subject.call} {answer}")])
    first = _fitting([(subject.question(_WHAT[subject.kind]), answer)])
    more, _ = cut(rest, ENOUGH, MOST)
    then = _fitting([(subject.question(_THEN_HOW), subject.call), (subject.question(_THEN_MORE), more)])
    return [*first, *then[:1]] if first else []


def _fitting(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns whose answer is neither too short nor too long."""
    return [turn for turn in turns if LEAST <= num_words(turn[1]) <= MOST]


def _call(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, is_method: bool) -> str:
    """How a function is called, in sentences; nothing where that is long."""
    taken = node.args
    for argument in ast.walk(taken):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    if is_method and not is_static and (taken.posonlyargs or taken.args):
        (taken.posonlyargs or taken.args).pop(0)
    positional = [*taken.posonlyargs, *taken.args]
    defaults = [*[None] * (len(positional) - len(taken.defaults)), *taken.defaults, *taken.kw_defaults]
    pairs = list(zip([*positional, *taken.kwonlyargs], defaults))
    needed = [f"`{one.arg}`" for one, default in pairs if default is None]
    optional = [f"`{one.arg}` (by default `{ast.unparse(default)}`)" for one, default in pairs if default is not None]
    call = f"Call it as `{'await ' * isinstance(node, ast.AsyncFunctionDef)}{name}({ast.unparse(taken)})`."
    said = [
        call,
        f"It needs {_listed(needed)}." if needed else "",
        f"Optional: {_listed(optional)}." if optional else "",
    ]
    return " ".join(filter(None, said)) if len(call) <= _LONGEST_CALL else ""


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _licence() -> str:
    """Where the texts come from, and under which licence; its text where this Python has it."""
    file = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    text = file.read_text(encoding="utf-8") if file.exists() else "Its text: https://docs.python.org/3/license.html\n"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{_LICENCE.format(python=python)}\n{sys.copyright}\n\n{text}"


def main() -> int:
    """The command; its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m rskd.corpus.python_conversations FOLDER", file=sys.stderr)
        return 2
    try:
        written = write_conversations(Path(sys.argv[1]))
    except RskdError as error:
        print(f"rskd: {error}", file=sys.stderr)
        return error.exit_code
    print(*(f"{number:,} {what}" for what, number in written.items()), sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
