"""What students are asked: prompts with a reference answer each, from a published set or from one's own file.

    file ─► lines ─► Prompt(messages, reference, raw) ─┬─► a chat template renders the messages
                                                       └─► a model without one continues the raw text

MiniLLM (Gu et al. 2024) publishes the paper's five sets (E.3), each as valid.jsonl with `prompt` (the raw text),
`instruction`, `input` and `output` (a reference, or several of which the first counts). Of S-NI and UnNI the folder
`11_` has the pairs whose reference is longer than 10 tokens, which the paper takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rskd.config import PromptSetConfig
from rskd.errors import ConfigError, printable
from rskd.storage import Store

PAPERS_PROMPTS = {"dolly": 500, "self_inst": 252, "vicuna": 80, "s_ni": 1694, "un_ni": 10_000}  # paper, E.3
_FILES = {"s_ni": ("11_/valid.jsonl", "valid.jsonl"), "un_ni": ("11_/valid.jsonl", "valid.jsonl")}
_RAW = (
    "Below is an instruction that describes a task{with_input}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
)
_WITH_INPUT = ", paired with an input that provides further context"
_INSTRUCTION = re.compile(r"### Instruction:\n(.*?)(?:\n\n### Input:\n(.*?))?\n\n### Response:\s*", re.DOTALL)

Message = Mapping[str, str]  # role and content


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's turn, and what a good answer looks like."""

    messages: tuple[Message, ...]
    reference: str
    raw: str  # the prompt of a model that has no chat template

    @property
    def question(self) -> str:
        """The conversation as a judge reads it."""
        return _in_turns(self.messages)


def load_prompts(config: PromptSetConfig, name: str) -> list[Prompt]:
    """The prompts of the set `name`, `config.num_prompts` at most, in the order of its file.

    Raises ConfigError, naming file and line, for what is missing or no prompt.
    """
    store, file = _located(config, name)
    parse = _own if config.kind == "own" else _published
    prompts: list[Prompt] = []
    for number, line in enumerate(store.read(file).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if len(prompts) == config.num_prompts:
            break
        if line.strip():
            prompts.append(_parsed(parse, line, f"prompt set {name}: line {number} of {printable(file)}"))
    if not prompts:
        raise ConfigError(f"prompt set {name}: {config.uri} has no prompts: name a file with one JSON object a line")
    return prompts


def _located(config: PromptSetConfig, name: str) -> tuple[Store, str]:
    """The folder and the name in it of the file of a set."""
    uri = str(Path(config.uri).expanduser().absolute()) if "://" not in config.uri else config.uri.rstrip("/")
    folder, _, file = uri.rpartition("/")
    within = () if config.kind == "own" else _FILES.get(config.kind, ("valid.jsonl",))
    candidates = [*((uri, name) for name in within), (folder, file)]
    for place, name_in_it in candidates:
        parent, _, last = f"{place}/{name_in_it}".rpartition("/")
        if last in Store(parent).sizes():
            return Store(parent), last
    wanted = f"a file, or a folder with {within[0]}" if within else "a file"
    raise ConfigError(f"prompt set {name}: {config.uri} does not exist, or is not {wanted}: correct its uri")


def _parsed(parse: Callable[[dict[str, Any]], Prompt], line: bytes, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not JSON ({line[:40]!r}): write one object a line") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object: write one object a line")
    try:
        return parse(row)
    except _UnusableError as problem:
        raise ConfigError(f"{where} {problem}: correct or remove it") from None


class _UnusableError(ValueError):
    """What is wrong with a line."""


def _published(row: dict[str, Any]) -> Prompt:
    """A line of MiniLLM's files."""
    output = row.get("output")
    if isinstance(output, list):
        output = output[0] if output else None
    reference = _text({"output": output}, "output")
    raw = row["prompt"].replace("<n>", "\n") if isinstance(row.get("prompt"), str) else None
    if isinstance(row.get("instruction"), str) and row["instruction"].strip():
        instruction, given = row["instruction"], row.get("input") or ""
    elif raw is not None and (found := _INSTRUCTION.search(raw)):
        instruction, given = found[1], found[2] or ""
    else:
        instruction, given = _text(row, "prompt").replace("<n>", "\n"), ""
    if not isinstance(given, str):
        raise _UnusableError("has an 'input' that is not text")
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    wrapped = raw if raw is not None and _INSTRUCTION.search(raw) else _raw(instruction, given)
    return Prompt(({"role": "user", "content": asked},), reference, wrapped)


def _own(row: dict[str, Any]) -> Prompt:
    """A line of one's own file."""
    if "messages" not in row:
        prompt = _text(row, "prompt")
        return Prompt(({"role": "user", "content": prompt},), _text(row, "reference"), _raw(prompt))
    messages = [_message(message) for message in row["messages"]] if isinstance(row["messages"], list) else []
    if "reference" in row:
        reference = _text(row, "reference")
    elif messages and messages[-1]["role"] == "assistant":
        reference = messages.pop()["content"]
    else:
        raise _UnusableError("has no 'reference', and its messages do not end with the assistant's")
    if not messages or messages[-1]["role"] != "user":
        raise _UnusableError("has messages of which the last, but for the reference, is not the user's")
    return Prompt(tuple(messages), reference, _raw(_in_turns(messages)))


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _UnusableError("has a message without a 'role'")
    if isinstance(message.get("content"), list):
        raise _UnusableError(
            f"has content in parts, such as images, in a message of the {message['role']}: only text is read"
        )
    return {"role": message["role"], "content": _text(message, "content")}


def _text(row: Mapping[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str) or not row[field].strip():
        raise _UnusableError(f"has no text in {field!r}")
    return row[field].encode(errors="replace").decode()  # a lone surrogate, which JSON can spell, is no text


def _in_turns(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _raw(instruction: str, given: str = "") -> str:
    """The instruction in the words that MiniLLM tunes and asks models without a chat template in (Alpaca's)."""
    if not given.strip():
        return _RAW.format(with_input="", instruction=instruction, input="")
    return _RAW.format(with_input=_WITH_INPUT, instruction=instruction, input=f"\n\n### Input:\n{given}")
