from typing import Any

import pytest

from rskd.corpus.conversations import Conversation, ConversationError, chat_columns, conversation_of, without_nulls
from rskd.errors import ConfigError

QUESTION, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"messages": [QUESTION, ANSWER]}, None, Conversation([QUESTION, ANSWER])),
        ({"chat": {"turns": [QUESTION]}}, "chat.turns", Conversation([QUESTION])),
        ({"prompt": "Why?", "completion": "Because."}, None, Conversation([QUESTION, ANSWER])),
        (
            {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]},
            None,
            Conversation([QUESTION, ANSWER, QUESTION, ANSWER], train={1: False}),
        ),
        (
            {"prompt": [QUESTION, ANSWER | {"train": True}, QUESTION], "completion": [ANSWER | {"train": False}]},
            None,
            Conversation([QUESTION, ANSWER, QUESTION, ANSWER], train={1: True, 3: False}),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            None,
            Conversation([{"role": "user", "content": "a\nb"}]),
        ),
        (
            {"messages": [ANSWER | {"tool_calls": [], "name": None}], "tools": "[]"},
            None,
            Conversation([ANSWER]),
        ),
        (
            {"messages": [QUESTION], "images": [], "tools": [{"name": "f"}]},
            None,
            Conversation([QUESTION], [{"name": "f"}]),
        ),
    ],
)
def test_a_row_is_a_conversation(row: dict[str, Any], column: str | None, expected: Conversation):
    assert conversation_of(row, column) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "has no messages, or prompt and completion, only nothing"),
        ({"messages": "hello"}, "has text in messages, which must be a list of messages"),
        ({"messages": ["hello"]}, "has text as message 1, which must be an object with role and content"),
        ({"messages": [QUESTION, {"content": "a"}]}, "has no role in message 2, only content"),
        ({"messages": [{"role": "user"}]}, "has nothing as content of message 1"),
        ({"messages": [QUESTION | {"train": 1}]}, "has train=1 in message 1: write true or false"),
        ({"messages": [QUESTION | {"audio": "x.wav"}]}, "has audio in message 1: only text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has a part of type image in message 1"),
        ({"messages": [ANSWER | {"tool_calls": [{"function": {}}]}]}, "has tool_calls without a function's name"),
        ({"messages": [QUESTION], "tools": "{"}, "has tools that are no JSON"),
        ({"messages": [QUESTION], "tools": [{"function": None}]}, "has nothing as the function of a tool"),
        ({"messages": [QUESTION], "tools": [{"function": "f"}]}, "has text as the function of a tool"),
        ({"messages": [QUESTION], "tools": ["f"]}, "has a list in tools, which must be a list of JSON schemas"),
        ({"prompt": 1, "completion": "a"}, "has a number in prompt"),
    ],
)
def test_a_row_that_is_none_is_refused(row: dict[str, Any], message: str):
    with pytest.raises(ConversationError, match=message):
        conversation_of(row, None)


def test_equal_conversations_have_equal_hashes():
    one, other = (
        Conversation([QUESTION, ANSWER]),
        Conversation([dict(reversed(QUESTION.items())), ANSWER], None, {1: True}),
    )
    assert one.content_hash == other.content_hash != Conversation([QUESTION]).content_hash
    assert 0 <= one.content_hash < 2**64


def test_columns_of_a_table():
    assert chat_columns(["id", "tools", "messages"], None, "t") == ["tools", "messages"]
    assert chat_columns(["prompt", "completion", "image"], None, "t") == ["prompt", "completion", "image"]
    assert chat_columns(["chat", "tools"], "chat.turns", "t") == ["chat", "tools"]
    with pytest.raises(
        ConfigError, match="t of the corpus source has no column messages, nor prompt and completion, only a"
    ):
        chat_columns(["a", "prompt"], None, "t")
    with pytest.raises(ConfigError, match=r"has no column b, only a: set corpus.source.field"):
        chat_columns(["a"], "b", "t")


def test_fields_that_arrow_adds_are_left_out():
    assert without_nulls({"a": None, "b": [{"c": None, "d": 1}], "e": [None]}) == {"b": [{"d": 1}], "e": [None]}
