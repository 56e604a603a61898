"""From a conversation to token ids and a mask of the tokens that have a loss.

    Conversation ─► template ─► text ─► ids, with the characters of each
                         └────► spans of characters that the assistant wrote ─► loss mask

What the assistant wrote is what the template's {% generation %} blocks say, token for token as Transformers'
`return_assistant_tokens_mask`. Elsewhere it is found by rendering prefixes: a turn begins where the conversation before
it, with a generation prompt, ends, and ends with its end-of-turn token. The text after that token, up to the next turn,
is the template's. A token counts if one of its characters does.

A template may write a turn otherwise once others follow it. Two such ways are understood: text that only ever ends a
conversation (Phi 3), and text that stands before an answer only as long as it is the last, whatever the answer (the
empty <think> block of Qwen 3). All others would change or drop what the assistant wrote, and are refused.

What looks like a special token in a message is text, as in a document: no message can end itself, or open a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from rskd.corpus.chat_packing import MaskedTokens
from rskd.corpus.conversations import ASSISTANT, Conversation, ConversationError, call_name
from rskd.errors import first_line, printable
from rskd.models.chat_template import ChatTemplate, Message, Rendering

LossOn = Literal["assistant", "last_assistant", "all"]
Span = tuple[int, int]  # of characters: the first, and one past the last

_OPEN, _CLOSE, _PROBE = "\ufdd0", "\ufdd1", "\ufdd2"  # noncharacters, which are for use within a program
_MARKED = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


@dataclass(frozen=True)
class ChatRecipe:
    """How conversations become tokens; `tokenizer` is the corpus's."""

    tokenizer: Tokenizer
    template: ChatTemplate
    loss_on: LossOn
    separator_id: int

    def encode(self, conversation: Conversation) -> MaskedTokens:
        """The ids of the rendered conversation, and which of them have a loss; the first has none, nothing predicts it.

        Raises ConversationError.
        """
        turns = _Turns(self.template, self._marked(conversation))
        text = turns.whole.text
        ids, offsets = self._encoded(text)
        if self.separator_id in ids:
            token = self.tokenizer.id_to_token(self.separator_id)
            raise ConversationError(f"becomes text with {token}, which stands between conversations: remove it")
        mask = np.zeros(len(ids), np.uint8)
        if self.loss_on == "all":
            mask[:] = 1
        learned = self._learned(conversation)
        for first, last in turns.tokens(learned, offsets):
            mask[first:last] = self.loss_on != "all"
        mask[:1] = 0
        return MaskedTokens(ids, mask)

    def _learned(self, conversation: Conversation) -> list[int]:
        """The turns of the assistant that have a loss, or have none where all others do."""
        counts_by_default = self.loss_on != "all"
        for index, train in conversation.train.items():
            role = conversation.messages[index]["role"]
            if role != ASSISTANT and train == counts_by_default:
                raise ConversationError(
                    f"has train: {str(train).lower()} in message {index + 1}, of {printable(role)}, which "
                    f"corpus.loss_on={self.loss_on} does not allow: remove it"
                )
        turns = [index for index, message in enumerate(conversation.messages) if message["role"] == ASSISTANT]
        if self.loss_on == "all":
            return [index for index in turns if conversation.train.get(index) is False]
        candidates = turns[-1:] if self.loss_on == "last_assistant" else turns
        return [index for index in candidates if conversation.train.get(index) is not False]

    def _marked(self, conversation: Conversation) -> Conversation:
        """The conversation with what looks like a special token between marks."""
        messages, tools = _mark([conversation.messages, conversation.tools], self._control)
        return Conversation(messages, tools, conversation.train)

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids, int32 [L], and the characters, int64 [L, 2], of each; what is between marks is text."""
        ids, offsets = [], []
        for start, piece, is_text in _pieces(text):
            if _OPEN in piece or _CLOSE in piece:
                raise ConversationError(
                    "has what looks like a special token at a place where the chat template cuts its text: remove it, "
                    "or set corpus.chat_template"
                )
            self._plain.encode_special_tokens = is_text
            encoding = self._plain.encode(piece, add_special_tokens=False)
            ids.append(np.array(encoding.ids, np.int32))
            offsets.append(np.array(encoding.offsets, np.int64).reshape(-1, 2) + start)
        return np.concatenate(ids), np.concatenate(offsets)

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer, which cuts nothing off a text nor off the characters of a token."""
        plain = Tokenizer.from_str(self.tokenizer.to_str())
        plain.post_processor = None
        plain.no_truncation()
        plain.no_padding()
        return plain

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(map(re.escape, sorted(self.template.control_tokens, key=len, reverse=True))) or "(?!)"
        )


def _mark(value: Any, control: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        for mark in (_OPEN, _CLOSE, _PROBE):
            if mark in value:
                raise ConversationError(f"has U+{ord(mark):04X}, which is no character: remove it")
        return control.sub(rf"{_OPEN}\g<0>{_CLOSE}", value) if control.search(value) else value
    if isinstance(value, dict):
        return {key: _mark(item, control) for key, item in value.items()}
    return [_mark(item, control) for item in value] if isinstance(value, list) else value


def _pieces(text: str) -> Iterator[tuple[int, str, bool]]:
    """Where each piece of the text begins, the piece, and whether it stood between marks."""
    end = 0
    for marked in _MARKED.finditer(text):
        yield end, text[end : marked.start()], False
        yield marked.start(1), marked[1], True
        end = marked.end()
    yield end, text[end:], False


@dataclass(frozen=True)
class _Turns:
    """Where the assistant's turns are in a rendered conversation."""

    template: ChatTemplate
    conversation: Conversation

    @cached_property
    def whole(self) -> Rendering:
        """The whole conversation; refused where the template leaves something out of it."""
        whole = self._render(len(self.messages))
        self._check_complete()
        return whole

    def tokens(self, turns: Sequence[int], offsets: np.ndarray) -> Iterator[Span]:
        """The tokens of these turns, as spans."""
        starts, ends = offsets[:, 0], offsets[:, 1]
        marked = self.template.marks_generation
        for first, last in self._generated(turns) if marked else map(self._span, turns):
            # Of the tokens that share their last character, Transformers takes the first (char_to_token).
            end = np.searchsorted(ends, last - 1, "right") + 1 if marked else np.searchsorted(starts, last)
            yield int(np.searchsorted(ends, first, "right")), int(end)

    @property
    def messages(self) -> list[Message]:
        return self.conversation.messages

    def _render(self, count: int, **options: bool) -> Rendering:
        """The first `count` messages."""
        return self._render_messages(self.messages[:count], **options)

    def _render_messages(self, messages: list[Message], **options: bool) -> Rendering:
        try:
            return self.template.render(messages, self.conversation.tools, **options)
        except Exception as error:  # a template may raise anything
            roles = printable(", ".join(dict.fromkeys(message["role"] for message in messages))) or "no one"
            raise ConversationError(
                f"is refused by the chat template ({first_line(error)}; messages of {roles}): correct it, or set "
                "corpus.chat_template to a template that takes it"
            ) from None

    def _generated(self, turns: Sequence[int]) -> list[Span]:
        """The {% generation %} blocks of these turns."""
        if not turns:
            return []
        blocks = self.whole.generated
        assistant = [index for index, message in enumerate(self.messages) if message["role"] == ASSISTANT]
        if list(turns) == assistant:
            return blocks
        if len(blocks) != len(assistant):
            raise ConversationError(
                f"has {len(assistant)} answers, but the chat template {len(blocks)} {{% generation %}} blocks for "
                "them, so none can be left out: set corpus.loss_on=assistant and remove train: false"
            )
        return [block for index, block in zip(assistant, blocks) if index in turns]

    def _span(self, turn: int) -> Span:
        """What the assistant wrote in a turn, by rendering the conversation up to it."""
        whole, closed = self.whole.text, self._render(turn + 1).text
        prompt = self._render(turn, add_generation_prompt=True).text
        if not closed.startswith(prompt):
            raise ConversationError(
                f"cannot be masked: the generation prompt of the chat template is not how it begins the answer in "
                f"message {turn + 1}: set corpus.chat_template to one that begins it so or has {{% generation %}} "
                "blocks, or train: false in the message"
            )
        if not whole.startswith(prompt):
            raise self._rewritten(turn, "what is before it")
        start = len(prompt)
        answer = self._up_to_end_of_turn(closed[start:])
        if not whole.startswith(answer, start):
            answer = answer.removeprefix(self._lead(turn, prompt))
            if not whole.startswith(answer, start):
                raise self._rewritten(turn, "it")
        return start, start + len(answer)

    def _lead(self, turn: int, prompt: str) -> str:
        """What the template writes before the last answer, whatever that is."""
        probe = [*self.messages[:turn], {"role": ASSISTANT, "content": _PROBE}]
        return self._render_messages(probe).text.removeprefix(prompt).partition(_PROBE)[0]

    def _rewritten(self, turn: int, what: str) -> ConversationError:
        return ConversationError(
            f"cannot be masked: the chat template writes {what} differently once messages follow (answer in message "
            f"{turn + 1}), so what the assistant wrote is not in the text: set corpus.loss_on=last_assistant, or "
            "corpus.chat_template to one that keeps turns as they are or has {% generation %} blocks"
        )

    def _up_to_end_of_turn(self, text: str) -> str:
        """The text up to the first of the special tokens, with space between them, that it ends in."""
        rest = text.rstrip()
        end = len(rest)
        while token := next((token for token in self.template.control_tokens if token and rest.endswith(token)), None):
            end, rest = len(rest), rest[: -len(token)].rstrip()
        return text[:end]

    def _check_complete(self) -> None:
        """ConversationError if the template leaves a message, a tool call or the tools out: seen by probes of each."""
        messages = [_probed(message, f"{index}") for index, message in enumerate(self.messages)]
        tools = [_named(tool, f"tool {number}") for number, tool in enumerate(self.conversation.tools or ())] or None
        text = _Turns(self.template, Conversation(messages, tools))._render(len(messages)).text
        for index, message in enumerate(messages):
            if message.get("content") and message["content"] not in text:
                raise ConversationError(
                    f"has a message of {printable(message['role'])} (message {index + 1}) that the chat template "
                    "leaves out: rename the role, remove the message, or set corpus.chat_template"
                )
            if any((call_name(call) or "") not in text for call in message.get("tool_calls") or ()):
                raise ConversationError(
                    f"has tool_calls (message {index + 1}) that the chat template leaves out: set corpus.chat_template "
                    "to one that has tools"
                )
        if any((call_name(tool) or "") not in text for tool in tools or ()):
            raise ConversationError(
                "has tools that the chat template leaves out: set corpus.chat_template to one that has tools, or "
                "remove them"
            )


def _probed(message: Message, name: str) -> Message:
    """The message with another content, and other names of its tool calls, which no text has."""
    probed = dict(message)
    if message.get("content"):
        probed["content"] = f"{_PROBE}{name}{_PROBE}"
    if message.get("tool_calls"):
        probed["tool_calls"] = [_named(call, f"{name} {i}") for i, call in enumerate(message["tool_calls"])]
    return probed


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    """A tool call or tool with another name for its function."""
    if "function" in call:
        return call | {"function": _named(call["function"], name)}
    return call | {"name": f"{_PROBE}{name}{_PROBE}"} if "name" in call else call
