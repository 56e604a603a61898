"""Conversations: what a row of a chat corpus says, checked before a template sees it.

    row ─► conversation_of ─► Conversation: messages, tools, and what messages say of their own loss

A row has `messages` (or the column that source.field names), or `prompt` and `completion`: two strings, or two lists of
messages. Answers in `prompt` are context and have no loss, unless they say `train: true`. `tools` are JSON schemas, as
a list or as the JSON text of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rskd.errors import ConfigError, printable

if TYPE_CHECKING:  # Transformers, which reading needs not
    from rskd.models.chat_template import Message

ASSISTANT = "assistant"
MEDIA = (
    "image",
    "images",
    "image_url",
    "input_image",
    "audio",
    "audios",
    "audio_url",
    "input_audio",
    "video",
    "videos",
)
_PAIR = ("prompt", "completion")
_COLUMNS = ("messages", *_PAIR, "tools", *MEDIA)


class ConversationError(Exception):
    """What is wrong with a row, and the fix; who reads it adds the file and the row."""


@dataclass(frozen=True)
class Conversation:
    """Messages as templates take them; `train` has what messages say of their own loss, by index."""

    messages: list[Message]
    tools: list[Any] | None = None
    train: dict[int, bool] = field(default_factory=dict)

    @property
    def content_hash(self) -> int:
        """The first 8 bytes of a sha256 of what is said, whatever the order of keys: uniform in [0, 2^64)."""
        said = json.dumps([self.messages, self.tools], sort_keys=True, default=str)
        return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8])


def conversation_of(row: Mapping[str, Any], column: str | None) -> Conversation:
    """The conversation of a row; `column` is where its messages are, None for the usual columns.

    Raises ConversationError.
    """
    _refuse_media(row, "it")
    context = 0
    found = _at(row, column or "messages")
    if found is None and column is None and any(row.get(name) is not None for name in _PAIR):
        prompt, answer = (_as_messages(row, *pair) for pair in zip(_PAIR, ("user", ASSISTANT)))
        found, context = [*prompt, *answer], len(prompt)
    if found is None:
        wanted = column or "messages, or prompt and completion"
        raise ConversationError(f"has no {wanted}, only {_keys(row)}: set corpus.source.field")
    if not isinstance(found, list):
        raise ConversationError(f"has {_kind(found)} in {column or 'messages'}, which must be a list of messages")
    if not found:
        raise ConversationError("has no messages: remove it")
    messages, said = zip(*(_checked(message, number) for number, message in enumerate(found, 1)))
    train = {index: False for index in range(context) if messages[index]["role"] == ASSISTANT}
    train |= {index: train for index, train in enumerate(said) if train is not None}
    return Conversation(list(messages), _tools(row.get("tools")), train)


def chat_columns(names: Iterable[str], column: str | None, where: str) -> list[str]:
    """The columns of a table that a conversation is read from; ConfigError, naming `where`, if it has none."""
    names = list(names)
    if column is not None:
        top = column if column in names else column.partition(".")[0]
        wanted, is_there = [top, "tools", *MEDIA], top in names
    else:
        wanted, is_there = _COLUMNS, "messages" in names or {*_PAIR} <= {*names}
    if not is_there:
        expected = f"column {column}" if column else "column messages, nor prompt and completion"
        raise ConfigError(
            f"{where} of the corpus source has no {expected}, only {', '.join(names)}: set corpus.source.field"
        )
    return [name for name in names if name in wanted]


def without_nulls(value: Any) -> Any:
    """The value without the null fields that Arrow adds to objects of one list or column."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _at(row: Mapping[str, Any], field: str) -> Any:
    """What is at `field`: a key of that very name, or one of nested objects."""
    if field in row:
        return row[field]
    key, _, rest = field.partition(".")
    return _at(row[key], rest) if rest and isinstance(row.get(key), Mapping) else None


def _as_messages(row: Mapping[str, Any], name: str, role: str) -> list[Any]:
    value = row.get(name)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list):
        return value
    raise ConversationError(f"has {_kind(value)} in {name}, which must be text or a list of messages")


def _checked(message: Any, number: int) -> tuple[Message, bool | None]:
    """A message without its `train`, and that."""
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"has {_kind(message)} as message {number}, which must be an object with role and content"
        )
    where = f"message {number}"
    _refuse_media(message, where)
    role, content, train = message.get("role"), message.get("content"), message.get("train")
    if not isinstance(role, str) or not role:
        raise ConversationError(f"has no role in {where}, only {_keys(message)}: rename its keys to role and content")
    if train is not None and not isinstance(train, bool):
        raise ConversationError(f"has train={train!r} in {where}: write true or false")
    if isinstance(content, list):
        content = "\n".join(_part(part, where) for part in content)
    calls = message.get("tool_calls")
    if calls is not None and not _are_calls(calls):
        raise ConversationError(f"has tool_calls without a function's name in {where}: correct them")
    if not isinstance(content, str) and not (content is None and calls):
        raise ConversationError(f"has {_kind(content)} as content of {where}, which must be text")
    empty = {"train"} | ({"tool_calls"} if not calls else set())
    kept = {key: value for key, value in message.items() if key not in empty and value is not None}
    return kept | ({} if content is None else {"content": content}), train


def _part(part: Any, where: str) -> str:
    """The text of a part of a message that is a list of parts."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise ConversationError(
            f"has a part of type {printable(str(kind))} in {where}: only text can be learned from, remove it"
        )
    return text


def _refuse_media(holder: Mapping[str, Any], where: str) -> None:
    found = next((name for name in MEDIA if holder.get(name)), None)
    if found is not None:
        raise ConversationError(f"has {found} in {where}: only text can be learned from, remove it")


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(isinstance(call_name(call), str) for call in calls)


def call_name(call: Any) -> str | None:
    """The name of the function that a tool call, or a tool's schema, is of."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None


def _tools(tools: Any) -> list[Any] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise ConversationError("has tools that are no JSON: write a list of JSON schemas") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ConversationError(f"has {_kind(tools)} in tools, which must be a list of JSON schemas")
    for tool in tools:
        if "function" in tool and not isinstance(tool["function"], dict):
            raise ConversationError(f"has {_kind(tool['function'])} as the function of a tool: write its JSON schema")
    return tools


def _keys(row: Mapping[str, Any]) -> str:
    return printable(", ".join(map(str, row))) or "nothing"


def _kind(value: Any) -> str:
    names = {type(None): "nothing", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
